// MemoryPageSink: a PageSink that keeps the newest content of each page in memory, and what was
// told to it.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "pager/page_sink.h"

namespace pageferry::fakes {

class MemoryPageSink : public PageSink {
 public:
  Result<void> begin(const MemoryLayout& layout) override {
    layout_ = layout;
    ++begins;
    if (begin_error) return tl::make_unexpected(*begin_error);
    return {};
  }
  void begin_pass(std::uint32_t pass) override { passes.push_back(pass); }
  Result<void> begin_blackout() override {
    ++blackouts;
    return {};
  }
  Result<void> put_page(PageIndex page, PageBytes bytes) override {
    if (put_error) return tl::make_unexpected(*put_error);
    pages[raw(page)].assign(bytes.begin(), bytes.end());
    if (blackouts > 0) ++blackout_puts;
    return {};
  }
  Result<void> put_zero(PageIndex page) override {
    if (put_error) return tl::make_unexpected(*put_error);
    pages[raw(page)].clear();
    return {};
  }

  const MemoryLayout& layout() const { return layout_; }

  std::map<std::uint64_t, std::vector<std::byte>> pages;  // empty vector: a zero page
  std::vector<std::uint32_t> passes;
  int begins = 0;
  int blackouts = 0;
  std::uint64_t blackout_puts = 0;
  std::optional<Error> begin_error;
  std::optional<Error> put_error;

 private:
  MemoryLayout layout_;
};

}  // namespace pageferry::fakes

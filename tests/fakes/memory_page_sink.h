// MemoryPageSink: a PageSink that keeps the newest content of each page in memory, and what was
// told to it.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <utility>
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
  Result<void> prepare_blackout(std::uint64_t remaining_bytes) override {
    prepared_for_bytes.push_back(remaining_bytes);
    if (on_prepare) on_prepare();
    return {};
  }
  Result<void> begin_blackout() override {
    ++blackouts;
    return {};
  }
  Result<void> put_page(PageIndex page, PageBytes bytes) override {
    if (auto error = put_error()) return tl::make_unexpected(std::move(*error));
    pages[raw(page)].assign(bytes.begin(), bytes.end());
    if (blackouts > 0) ++blackout_puts;
    return {};
  }
  Result<void> put_zero(PageIndex page) override {
    if (auto error = put_error()) return tl::make_unexpected(std::move(*error));
    pages[raw(page)].clear();
    return {};
  }

  const MemoryLayout& layout() const { return layout_; }

  // From any thread: pages that come from now on are refused. Everything else is the reader's until it was joined.
  void refuse_pages(Error error) {
    const std::lock_guard lock(mutex_);
    put_error_ = std::move(error);
  }

  std::map<std::uint64_t, std::vector<std::byte>> pages;  // empty vector: a zero page
  std::vector<std::uint32_t> passes;
  std::vector<std::uint64_t> prepared_for_bytes;  // each time it was asked
  std::function<void()> on_prepare;
  int begins = 0;
  int blackouts = 0;
  std::uint64_t blackout_puts = 0;
  std::optional<Error> begin_error;

 private:
  std::optional<Error> put_error() const {
    const std::lock_guard lock(mutex_);
    return put_error_;
  }

  MemoryLayout layout_;
  mutable std::mutex mutex_;
  std::optional<Error> put_error_;  // guarded by mutex_
};

}  // namespace pageferry::fakes

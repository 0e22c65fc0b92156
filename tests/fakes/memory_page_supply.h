// MemoryPageSupply: a PageSupply whose pages live in memory. Content is set page by page; reads
// finish at once (answering), or when the test says so (holding). Pages can be broken: every read
// that covers one fails.
//
// Contiguity as in a page file: home slots lie in page order, so neighbours go together, except
// where set_tail() moved a page to the sequential tail: a tail page goes together with the next
// page only if that was moved right after it.
//
// Thread rule: one thread.
#pragma once

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "pager/memory_layout.h"
#include "pager/page_supply.h"
#include "transport/os/fd.h"

namespace pageferry::testing_support {

class MemoryPageSupply final : public PageSupply {
 public:
  enum class Answers : std::uint8_t { at_once, when_told };

  explicit MemoryPageSupply(MemoryLayout layout, Answers answers = Answers::at_once)
      : layout_(std::move(layout)),
        answers_(answers),
        pages_(layout_.pages()),
        ready_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

  // --- set-up ---------------------------------------------------------------------------------
  void set_page(PageIndex page, PageBytes bytes, std::uint32_t version = 1) {
    Stored& stored = pages_.at(raw(page));
    if (!stored.bytes) stored.bytes = std::make_unique<Bytes>();
    std::memcpy(stored.bytes->data(), bytes.data(), kPageSizeBytes);
    stored.version = version;
  }
  // A page whose every byte is `fill`.
  void set_filled(PageIndex page, unsigned char fill, std::uint32_t version = 1) {
    Bytes bytes;
    bytes.fill(static_cast<std::byte>(fill));
    set_page(page, bytes, version);
  }
  void set_zero(PageIndex page, std::uint32_t version) {
    pages_[raw(page)].bytes.reset();
    pages_[raw(page)].version = version;
  }
  void set_tail(PageIndex page) { pages_[raw(page)].place = ++last_tail_place_; }
  void break_page(PageIndex page) { broken_.insert(raw(page)); }
  void mend_page(PageIndex page) { broken_.erase(raw(page)); }
  void set_recent(std::vector<PageIndex> pages) { recent_ = std::move(pages); }
  std::span<const PageIndex> recent_pages() const override { return recent_; }
  // How many reads may be under way; more are refused with busy.
  void set_slots(std::size_t slots) { slots_ = slots; }

  // --- what happened ----------------------------------------------------------------------------
  struct Started {
    PageRun run;
    ReadClass read_class{};
  };
  const std::vector<Started>& started() const { return started_; }
  std::size_t under_way() const { return waiting_.size(); }
  std::size_t unreleased() const { return handed_out_.size(); }
  // Finishes the oldest read, or all of them.
  void finish_one() {
    finished_.push_back(waiting_.front());
    waiting_.pop_front();
    signal();
  }
  void finish_all() {
    while (!waiting_.empty()) finish_one();
  }

  // --- PageSupply
  // ---------------------------------------------------------------------------------
  const MemoryLayout& layout() const override { return layout_; }
  bool is_zero(PageIndex page) const override { return !pages_[raw(page)].bytes; }
  std::uint32_t version(PageIndex page) const override { return pages_[raw(page)].version; }

  PageRun contiguous_run(PageIndex page, std::uint64_t pages_max) const override {
    PageRun run{.first = page, .pages = 1};
    while (run.pages < pages_max && raw(page) + run.pages < pages_.size()) {
      const Stored& last = pages_[raw(page) + run.pages - 1];
      const Stored& next = pages_[raw(page) + run.pages];
      const std::uint64_t follows = last.place == 0 ? 0 : last.place + 1;
      if (!next.bytes || next.place != follows) break;
      ++run.pages;
    }
    return run;
  }

  Result<std::uint64_t> start_read(PageRun run, ReadClass read_class) override {
    if (waiting_.size() + finished_.size() + handed_out_.size() >= slots_) {
      return fail(Errc::busy, "no slot");
    }
    started_.push_back({run, read_class});
    const Waiting read{.ticket = ++last_ticket_, .run = run, .read_class = read_class};
    if (answers_ == Answers::at_once) {
      finished_.push_back(read);
      signal();
    } else {
      waiting_.push_back(read);
    }
    return read.ticket;
  }

  int ready_fd() const override { return ready_.get(); }

  std::vector<ReadDone> poll() override {
    std::uint64_t count = 0;
    while (::read(ready_.get(), &count, sizeof count) > 0) {
    }
    std::vector<ReadDone> done;
    for (const Waiting& read : std::exchange(finished_, {})) {
      std::vector<std::byte>& buffer = handed_out_[read.ticket];
      done.push_back({.ticket = read.ticket,
                      .run = read.run,
                      .read_class = read.read_class,
                      .bytes = content(read.run, buffer)});
    }
    return done;
  }

  void release(std::uint64_t ticket) override { PF_CHECK(handed_out_.erase(ticket) == 1); }

 private:
  using Bytes = std::array<std::byte, kPageSizeBytes>;
  struct Stored {
    std::unique_ptr<Bytes> bytes;  // null: zero
    std::uint32_t version = 0;
    std::uint64_t place = 0;  // in the tail; 0 = at home
  };
  struct Waiting {
    std::uint64_t ticket = 0;
    PageRun run;
    ReadClass read_class{};
  };

  Result<std::span<const std::byte>> content(PageRun run, std::vector<std::byte>& buffer) const {
    buffer.resize(bytes_of_pages(run.pages));
    for (std::uint64_t i = 0; i < run.pages; ++i) {
      const std::uint64_t page = raw(run.first) + i;
      if (broken_.contains(page)) return fail(Errc::corrupt, "checksum is wrong");
      const Stored& stored = pages_[page];
      std::byte* to = buffer.data() + bytes_of_pages(i);
      if (stored.bytes) {
        std::memcpy(to, stored.bytes->data(), kPageSizeBytes);
      } else {
        std::memset(to, 0, kPageSizeBytes);
      }
    }
    return std::span<const std::byte>(buffer);
  }

  void signal() {
    const std::uint64_t one = 1;
    PF_CHECK(::write(ready_.get(), &one, sizeof one) == sizeof one);
  }

  MemoryLayout layout_;
  Answers answers_;
  std::vector<Stored> pages_;
  std::set<std::uint64_t> broken_;
  UniqueFd ready_;
  std::vector<PageIndex> recent_;
  std::size_t slots_ = 64;
  std::uint64_t last_tail_place_ = 0;
  std::uint64_t last_ticket_ = 0;
  std::deque<Waiting> waiting_;
  std::vector<Waiting> finished_;
  std::unordered_map<std::uint64_t, std::vector<std::byte>> handed_out_;
  std::vector<Started> started_;
};

}  // namespace pageferry::testing_support

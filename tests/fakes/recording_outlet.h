// RecordingOutlet: a PageOutlet that remembers what left on which channel, in order, and takes no
// more than it is told to. Thread rule: one thread.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <vector>

#include "pager/page_outlet.h"

namespace pageferry::testing_support {

class RecordingOutlet final : public PageOutlet {
 public:
  static constexpr std::uint64_t kNoLimit = std::numeric_limits<std::uint64_t>::max();
  struct Sent {
    PageChannel channel{};
    PageIndex page{};
    unsigned char first_byte = 0;  // 0 for a zero page
    friend bool operator==(const Sent&, const Sent&) = default;
  };

  // Pages that a channel takes before it is full.
  void set_room(PageChannel channel, std::uint64_t pages) { room_of(channel) = pages; }
  const std::vector<Sent>& sent() const { return sent_; }
  std::vector<std::uint64_t> pages_on(PageChannel channel) const {
    std::vector<std::uint64_t> pages;
    for (const Sent& one : sent_) {
      if (one.channel == channel) pages.push_back(raw(one.page));
    }
    return pages;
  }

  Result<std::uint64_t> put_pages(PageChannel channel, PageRun run,
                                  std::span<const std::byte> bytes) override {
    PF_CHECK(bytes.size() == bytes_of_pages(run.pages));
    const std::uint64_t taken = take_room(channel, run.pages);
    for (std::uint64_t i = 0; i < taken; ++i) {
      sent_.push_back(
          {channel, run.first + i, std::to_integer<unsigned char>(bytes[bytes_of_pages(i)])});
    }
    return taken;
  }
  Result<std::uint64_t> put_zeros(PageChannel channel, PageRun run) override {
    const std::uint64_t taken = take_room(channel, run.pages);
    for (std::uint64_t i = 0; i < taken; ++i) sent_.push_back({channel, run.first + i, 0});
    return taken;
  }

 private:
  std::uint64_t& room_of(PageChannel channel) { return room_[static_cast<std::size_t>(channel)]; }
  std::uint64_t take_room(PageChannel channel, std::uint64_t pages) {
    std::uint64_t& room = room_of(channel);
    const std::uint64_t taken = pages < room ? pages : room;
    if (room != kNoLimit) room -= taken;
    return taken;
  }

  std::array<std::uint64_t, 2> room_{kNoLimit, kNoLimit};
  std::vector<Sent> sent_;
};

}  // namespace pageferry::testing_support

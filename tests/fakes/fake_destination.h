// FakeDestination: the test plays the destination QEMU: it listens, accepts the page channels, asks for pages, takes the page
// records apart and keeps what arrived.
//
// Thread rule: one thread, the test's.
#pragma once

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "fakes/scratch_directory.h"
#include "pager/memory_layout.h"
#include "transport/os/fd.h"
#include "vmstate/big_endian.h"
#include "vmstate/qemu_return_path.h"
#include "vmstate/qemu_stream_format.h"

namespace pageferry::testing_support {

class FakeDestination {
 public:
  explicit FakeDestination(const MemoryLayout& layout) : layout_(&layout) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path().c_str(), sizeof address.sun_path - 1);
    listener_.reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(::listen(listener_.get(), 4), 0);
  }

  std::string path() const { return directory_.file("channel"); }
  // The next connection; the first is the main channel, the second the urgent one.
  void accept_channel() {
    Channel channel;
    channel.fd.reset(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    EXPECT_TRUE(channel.fd.valid());
    // On the urgent channel records are bare.
    channel.in_records = !channels_.empty();
    channels_.push_back(std::move(channel));
  }

  void ask(std::string_view block, std::uint64_t offset, std::uint32_t bytes = kPageSizeBytes) {
    ByteBuffer message;
    qemu_stream::append_request_pages(message, block, offset, bytes);
    say(message);
  }
  void pong(std::uint32_t value) {
    ByteBuffer message;
    qemu_stream::append_pong(message, value);
    say(message);
  }
  void shut(std::uint32_t status) {
    ByteBuffer message;
    qemu_stream::append_shut(message, status);
    say(message);
  }
  void say(const ByteBuffer& bytes) {
    EXPECT_EQ(::send(channels_[0].fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(bytes.size()));
  }
  void close_channels() { channels_.clear(); }

  // Reads what comes until `enough` says so; a failure when nothing comes for 10 s.
  template <typename Enough>
  void read_until(Enough enough) {
    while (!enough() && !::testing::Test::HasFailure()) {
      std::vector<pollfd> entries;
      for (const Channel& channel : channels_) {
        entries.push_back({.fd = channel.fd.get(), .events = POLLIN, .revents = 0});
      }
      ASSERT_GT(::poll(entries.data(), entries.size(), 10'000), 0) << "nothing comes";
      for (std::size_t i = 0; i < entries.size(); ++i) {
        if (entries[i].revents != 0) read_from(channels_[i]);
      }
    }
  }
  void read_until_ended() {
    read_until([this] {
      return std::all_of(channels_.begin(), channels_.end(),
                         [](const Channel& channel) { return channel.ended; });
    });
  }

  // How often each page came, and the first byte of its content (0 for a zero record).
  struct Arrived {
    int times = 0;
    unsigned char first_byte = 0;
    std::size_t channel = 0;
  };
  const std::map<std::uint64_t, Arrived>& pages() const { return pages_; }
  bool has(std::uint64_t page) const { return pages_.contains(page); }
  // Pages in the order in which they came on a channel.
  const std::vector<std::uint64_t>& order(std::size_t channel) const {
    return channels_[channel].order;
  }

 private:
  struct Channel {
    UniqueFd fd;
    ByteBuffer held;
    std::size_t block = 0;
    bool in_records = false;  // inside a PART, or bare
    bool ended = false;
    std::vector<std::uint64_t> order;
  };

  void read_from(Channel& channel) {
    std::array<std::byte, 65536> buffer;
    const ssize_t got = ::recv(channel.fd.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
    ASSERT_GT(got, 0) << "the pager closed the channel";
    put_bytes(channel.held, std::span(buffer).first(static_cast<std::size_t>(got)));
    std::size_t used = 0;
    for (;;) {
      const std::size_t step = take_one(channel, std::span(channel.held).subspan(used));
      if (step == 0) break;
      used += step;
    }
    channel.held.erase(channel.held.begin(),
                       channel.held.begin() + static_cast<std::ptrdiff_t>(used));
  }

  // One record at the front of `bytes`: its length, 0 when more is needed.
  std::size_t take_one(Channel& channel, std::span<const std::byte> bytes) {
    using qemu_stream::RecordType;
    constexpr std::size_t kSectionHeader = 1 + 4;
    constexpr std::size_t kFooter = 1 + 4;
    if (channel.in_records) return take_ram_record(channel, bytes);
    if (bytes.empty()) return 0;
    const auto type = static_cast<RecordType>(bytes[0]);
    if (type == RecordType::eof) {
      channel.ended = true;
      return 1;
    }
    if (type == RecordType::section_footer) return bytes.size() < kFooter ? 0 : kFooter;
    EXPECT_TRUE(type == RecordType::section_part || type == RecordType::section_end);
    if (bytes.size() < kSectionHeader) return 0;
    channel.in_records = true;
    return kSectionHeader;
  }

  std::size_t take_ram_record(Channel& channel, std::span<const std::byte> bytes) {
    if (bytes.size() < 8) return 0;
    const auto word = get_be<std::uint64_t>(bytes);
    const std::uint64_t flags = word & qemu_stream::kRamFlagsMask;
    if (flags == qemu_stream::kRamFlagEos) {
      channel.in_records = false;
      if (&channel != &channels_[0]) channel.ended = true;
      return 8;
    }
    std::size_t used = 8;
    std::size_t block = channel.block;
    if ((flags & qemu_stream::kRamFlagContinue) == 0) {
      if (bytes.size() < used + 1) return 0;
      const auto length = std::to_integer<std::size_t>(bytes[used]);
      if (bytes.size() < used + 1 + length) return 0;
      const std::string name(reinterpret_cast<const char*>(bytes.data()) + used + 1, length);
      const auto found = layout_->find_block(name);
      EXPECT_TRUE(found) << name;
      if (found) block = *found;
      used += 1 + length;
    }
    const bool zero = (flags & qemu_stream::kRamFlagZero) != 0;
    const std::size_t body = zero ? 1 : kPageSizeBytes;
    if (bytes.size() < used + body) return 0;
    channel.block = block;
    const std::uint64_t page = raw(layout_->blocks()[block].first_page) +
                               pages_of_bytes(word & ~qemu_stream::kRamFlagsMask);
    Arrived& arrived = pages_[page];
    ++arrived.times;
    arrived.first_byte = std::to_integer<unsigned char>(bytes[used]);
    arrived.channel = static_cast<std::size_t>(&channel - channels_.data());
    channel.order.push_back(page);
    return used + body;
  }

  const MemoryLayout* layout_;
  ScratchDirectory directory_;
  UniqueFd listener_;
  std::vector<Channel> channels_;
  std::map<std::uint64_t, Arrived> pages_;
};

}  // namespace pageferry::testing_support

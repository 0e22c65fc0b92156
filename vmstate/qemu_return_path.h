// Messages of the return path: what a migration destination says to its source, on the same socket
// in the other direction. A decoder (we are a postcopy source: page requests, bitmaps,
// acknowledgements) and builders (we are a precopy destination: PONG, SWITCHOVER_ACK, SHUT; tests
// build the rest).
//
// Thread rule: builders are pure; a decoder belongs to one thread.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "pager/memory_layout.h"
#include "pager/page.h"
#include "transport/os/error.h"
#include "vmstate/big_endian.h"

namespace pageferry::qemu_stream {

struct Shut {
  std::uint32_t status = 0;  // 0 = the destination has all and runs on its own
  friend bool operator==(const Shut&, const Shut&) = default;
};
struct Pong {
  std::uint32_t value = 0;
  friend bool operator==(const Pong&, const Pong&) = default;
};
// The destination needs these pages (one backing page of its block; checked against the layout).
struct PageRequest {
  std::size_t block = 0;  // index into the layout's blocks
  PageRun run;
  friend bool operator==(const PageRequest&, const PageRequest&) = default;
};
// Which pages of a block the destination already has: bit i of byte i / 8 is page i of the block,
// lowest bit first. The vector is rounded up to 8 bytes; bits past the block's last page mean
// nothing.
struct ReceivedBitmap {
  std::size_t block = 0;
  std::vector<std::byte> bits;
  friend bool operator==(const ReceivedBitmap&, const ReceivedBitmap&) = default;
};
struct ResumeAck {
  std::uint32_t value = 0;  // 1 = go on
  friend bool operator==(const ResumeAck&, const ResumeAck&) = default;
};
struct SwitchoverAck {
  friend bool operator==(const SwitchoverAck&, const SwitchoverAck&) = default;
};
using ReturnPathMessage =
    std::variant<Shut, Pong, PageRequest, ReceivedBitmap, ResumeAck, SwitchoverAck>;

// Incremental: bytes may come in pieces of any size. Holds at most one unfinished message (the
// longest is a bitmap: 1/32768 of its block) and hands out messages in order. One decoder per
// connection: the block that REQ_PAGES refers to is forgotten on reconnect.
class ReturnPathDecoder {
 public:
  // `layout` outlives the decoder; every request and bitmap is checked against it.
  explicit ReturnPathDecoder(const MemoryLayout& layout) : layout_(&layout) {}

  // Takes all of `bytes` and appends the messages they complete to `messages`. On Errc::invalid
  // (unknown type, wrong length, unknown block, range outside the block) the decoder is useless:
  // the connection must be closed.
  Result<void> feed(std::span<const std::byte> bytes, std::vector<ReturnPathMessage>& messages);

 private:
  // Tries to decode one message at the start of `bytes`: bytes used, 0 = more needed.
  Result<std::size_t> decode_one(std::span<const std::byte> bytes,
                                 std::vector<ReturnPathMessage>& messages);
  Result<PageRequest> decode_request(std::span<const std::byte> payload) const;
  Result<std::size_t> decode_bitmap(std::span<const std::byte> bytes, std::size_t message_bytes,
                                    std::vector<ReturnPathMessage>& messages);
  Result<std::size_t> block_named(std::span<const std::byte> counted_name) const;

  const MemoryLayout* layout_;
  std::optional<std::size_t> last_block_;
  ByteBuffer pending_;
  std::size_t needed_ = 0;  // pending_ is not looked at again before it has this many bytes
};

void append_shut(ByteBuffer& out, std::uint32_t status);
void append_pong(ByteBuffer& out, std::uint32_t value);
void append_switchover_ack(ByteBuffer& out);
void append_resume_ack(ByteBuffer& out, std::uint32_t value);
// REQ_PAGES_ID when `block_name` is not empty, else REQ_PAGES. Start in bytes inside the block.
void append_request_pages(ByteBuffer& out, std::string_view block_name, std::uint64_t start_bytes,
                          std::uint32_t length_bytes);
// `bits` rounded up to 8 bytes by the caller.
void append_received_bitmap(ByteBuffer& out, std::string_view block_name,
                            std::span<const std::byte> bits);
// Bytes of a block's bitmap on the wire: one bit a page, rounded up to 8 bytes.
std::uint64_t received_bitmap_bytes(const RamBlock& block);

}  // namespace pageferry::qemu_stream

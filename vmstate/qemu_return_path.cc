// Return path codec. A message is u16 type, u16 length, payload; only RECV_BITMAP has more behind
// it, which its length does not count: u64 size, that many bytes, u64 end mark. Every number is
// checked against the memory layout before it is used.
//
// Whole messages are decoded straight from the caller's bytes; only an unfinished one is kept.
// `needed_` keeps a long bitmap that arrives in many pieces from being looked at (and copied) once
// per piece.
#include "vmstate/qemu_return_path.h"

#include <fmt/core.h>

#include "vmstate/qemu_stream_format.h"

namespace pageferry::qemu_stream {
namespace {

constexpr std::size_t kHeaderBytes = 4;
constexpr std::size_t kRequestBytes = 12;  // u64 start, u32 length
constexpr std::size_t kPayloadBytesMax =
    kRequestBytes + 1 + 255;  // REQ_PAGES_ID with the longest name
constexpr std::size_t kBitmapSizeFieldBytes = 8;
constexpr std::size_t kBitmapEndMarkBytes = 8;

void append_header(ByteBuffer& out, ReturnPathType type, std::size_t payload_bytes) {
  put_be(out, static_cast<std::uint16_t>(type));
  put_be(out, static_cast<std::uint16_t>(payload_bytes));
}

void append_u32_message(ByteBuffer& out, ReturnPathType type, std::uint32_t value) {
  append_header(out, type, sizeof value);
  put_be(out, value);
}

// The exact payload length a type must have, or nullopt when a name makes it vary.
std::optional<std::size_t> fixed_length(ReturnPathType type) {
  switch (type) {
    case ReturnPathType::shut:
    case ReturnPathType::pong:
    case ReturnPathType::resume_ack:
      return sizeof(std::uint32_t);
    case ReturnPathType::request_pages:
      return kRequestBytes;
    case ReturnPathType::switchover_ack:
      return 0;
    case ReturnPathType::request_pages_id:
    case ReturnPathType::received_bitmap:
      break;
  }
  return std::nullopt;
}

Result<ReturnPathType> check_header(std::uint16_t type, std::uint16_t length) {
  if (type < static_cast<std::uint16_t>(ReturnPathType::shut) ||
      type > static_cast<std::uint16_t>(ReturnPathType::switchover_ack)) {
    return fail(Errc::invalid, fmt::format("return path: unknown message type {}", type));
  }
  const auto known = static_cast<ReturnPathType>(type);
  const auto expected = fixed_length(known);
  if (expected && length != *expected) {
    return fail(Errc::invalid, fmt::format("return path: message type {} has length {}, must be {}",
                                           type, length, *expected));
  }
  if (!expected && (length == 0 || length > kPayloadBytesMax)) {
    return fail(Errc::invalid,
                fmt::format("return path: message type {} has length {}, limit is {}", type, length,
                            kPayloadBytesMax));
  }
  return known;
}

}  // namespace

std::uint64_t received_bitmap_bytes(const RamBlock& block) {
  constexpr std::uint64_t kBitsPerWord = 64;
  return (block.pages() + kBitsPerWord - 1) / kBitsPerWord * sizeof(std::uint64_t);
}

Result<void> ReturnPathDecoder::feed(std::span<const std::byte> bytes,
                                     std::vector<ReturnPathMessage>& messages) {
  const bool had_pending = !pending_.empty();
  if (had_pending) {
    put_bytes(pending_, bytes);
    if (pending_.size() < needed_) return {};
    bytes = pending_;
  }
  std::size_t used = 0;
  while (used < bytes.size()) {
    PF_ASSIGN(const std::size_t step, decode_one(bytes.subspan(used), messages));
    if (step == 0) break;
    used += step;
  }
  if (used == bytes.size()) needed_ = 0;
  if (had_pending) {
    pending_.erase(pending_.begin(), pending_.begin() + static_cast<std::ptrdiff_t>(used));
  } else {
    put_bytes(pending_, bytes.subspan(used));
  }
  return {};
}

Result<std::size_t> ReturnPathDecoder::decode_one(std::span<const std::byte> bytes,
                                                  std::vector<ReturnPathMessage>& messages) {
  if (bytes.size() < kHeaderBytes) {
    needed_ = kHeaderBytes;
    return 0;
  }
  const auto length = get_be<std::uint16_t>(bytes.subspan(2));
  PF_ASSIGN(const ReturnPathType type, check_header(get_be<std::uint16_t>(bytes), length));
  if (bytes.size() < kHeaderBytes + length) {
    needed_ = kHeaderBytes + length;
    return 0;
  }
  const auto payload = bytes.subspan(kHeaderBytes, length);
  switch (type) {
    case ReturnPathType::shut:
      messages.emplace_back(Shut{get_be<std::uint32_t>(payload)});
      break;
    case ReturnPathType::pong:
      messages.emplace_back(Pong{get_be<std::uint32_t>(payload)});
      break;
    case ReturnPathType::resume_ack:
      messages.emplace_back(ResumeAck{get_be<std::uint32_t>(payload)});
      break;
    case ReturnPathType::switchover_ack:
      messages.emplace_back(SwitchoverAck{});
      break;
    case ReturnPathType::request_pages:
    case ReturnPathType::request_pages_id: {
      if (type == ReturnPathType::request_pages_id) {
        if (payload.size() <= kRequestBytes) {
          return fail(Errc::invalid,
                      fmt::format("return path: REQ_PAGES_ID of {} bytes, at least {} needed",
                                  payload.size(), kRequestBytes + 2));
        }
        PF_ASSIGN(last_block_, block_named(payload.subspan(kRequestBytes)));
      }
      PF_ASSIGN(const PageRequest request, decode_request(payload));
      messages.emplace_back(request);
      break;
    }
    case ReturnPathType::received_bitmap:
      return decode_bitmap(bytes, kHeaderBytes + length, messages);
  }
  return kHeaderBytes + length;
}

Result<PageRequest> ReturnPathDecoder::decode_request(std::span<const std::byte> payload) const {
  if (!last_block_) {
    return fail(Errc::invalid, "return path: REQ_PAGES before any REQ_PAGES_ID named a block");
  }
  const RamBlock& block = layout_->blocks()[*last_block_];
  const auto start = get_be<std::uint64_t>(payload);
  const auto length = get_be<std::uint32_t>(payload.subspan(sizeof start));
  if (length == 0 || !is_page_aligned(start) || !is_page_aligned(length) ||
      start >= block.length_bytes || length > block.length_bytes - start) {
    return fail(Errc::invalid,
                fmt::format("return path: request for {} bytes at {} of block \"{}\", which has {}",
                            length, start, block.name, block.length_bytes));
  }
  return PageRequest{
      .block = *last_block_,
      .run = {.first = block.first_page + pages_of_bytes(start), .pages = pages_of_bytes(length)}};
}

Result<std::size_t> ReturnPathDecoder::decode_bitmap(std::span<const std::byte> bytes,
                                                     std::size_t message_bytes,
                                                     std::vector<ReturnPathMessage>& messages) {
  PF_ASSIGN(const std::size_t block,
            block_named(bytes.subspan(kHeaderBytes, message_bytes - kHeaderBytes)));
  needed_ = message_bytes + kBitmapSizeFieldBytes;
  if (bytes.size() < needed_) return 0;
  const auto size = get_be<std::uint64_t>(bytes.subspan(message_bytes));
  const std::uint64_t expected = received_bitmap_bytes(layout_->blocks()[block]);
  if (size != expected) {
    return fail(Errc::invalid,
                fmt::format("return path: bitmap of block \"{}\" has {} bytes, must be {}",
                            layout_->blocks()[block].name, size, expected));
  }
  const std::size_t bits_at = needed_;
  needed_ += size + kBitmapEndMarkBytes;
  if (bytes.size() < needed_) return 0;
  const auto mark = get_be<std::uint64_t>(bytes.subspan(bits_at + size));
  if (mark != kBitmapEndMark) {
    return fail(
        Errc::invalid,
        fmt::format("return path: bitmap of block \"{}\" ends with {:#018x}, must be {:#018x}",
                    layout_->blocks()[block].name, mark, kBitmapEndMark));
  }
  const auto bits = bytes.subspan(bits_at, size);
  messages.emplace_back(ReceivedBitmap{.block = block, .bits = {bits.begin(), bits.end()}});
  return needed_;
}

Result<std::size_t> ReturnPathDecoder::block_named(std::span<const std::byte> counted_name) const {
  const auto length = std::to_integer<std::size_t>(counted_name[0]);
  if (counted_name.size() != length + 1) {
    return fail(Errc::invalid, fmt::format("return path: block name of {} bytes in a field of {}",
                                           length, counted_name.size() - 1));
  }
  std::string name(length, '\0');
  for (std::size_t i = 0; i < length; ++i) name[i] = std::to_integer<char>(counted_name[i + 1]);
  const auto block = layout_->find_block(name);
  if (!block) {
    return fail(Errc::invalid, fmt::format("return path: unknown RAM block \"{}\"", name));
  }
  return *block;
}

void append_shut(ByteBuffer& out, std::uint32_t status) {
  append_u32_message(out, ReturnPathType::shut, status);
}

void append_pong(ByteBuffer& out, std::uint32_t value) {
  append_u32_message(out, ReturnPathType::pong, value);
}

void append_switchover_ack(ByteBuffer& out) {
  append_header(out, ReturnPathType::switchover_ack, 0);
}

void append_resume_ack(ByteBuffer& out, std::uint32_t value) {
  append_u32_message(out, ReturnPathType::resume_ack, value);
}

void append_request_pages(ByteBuffer& out, std::string_view block_name, std::uint64_t start_bytes,
                          std::uint32_t length_bytes) {
  if (block_name.empty()) {
    append_header(out, ReturnPathType::request_pages, kRequestBytes);
  } else {
    append_header(out, ReturnPathType::request_pages_id, kRequestBytes + 1 + block_name.size());
  }
  put_be(out, start_bytes);
  put_be(out, length_bytes);
  if (!block_name.empty()) put_counted_string(out, block_name);
}

void append_received_bitmap(ByteBuffer& out, std::string_view block_name,
                            std::span<const std::byte> bits) {
  append_header(out, ReturnPathType::received_bitmap, 1 + block_name.size());
  put_counted_string(out, block_name);
  put_be(out, std::uint64_t{bits.size()});
  put_bytes(out, bits);
  put_be(out, kBitmapEndMark);
}

}  // namespace pageferry::qemu_stream

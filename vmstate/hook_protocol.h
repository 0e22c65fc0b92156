// What goes over the socket between a pager and the hook in a VMM, as bytes: docs/hook-protocol.md has every one of them. Both sides use
// this codec, and neither trusts the other: what a decoder returns is in its bounds, and what it refuses is said in one line.
//
// One request is one packet of a SOCK_SEQPACKET socket, and has one reply. A packet is a header and a payload, little-endian:
//
//   0 magic u32   4 type u16   6 zero u16   8 payload bytes u32   12 serial u32   16 payload
//
// A reply has its request's serial, and its type with kReplyBit, or is an error: kErrorType. Strings are a u32 length and that many
// bytes without control characters. A payload is used up to its last byte, or refused.
//
// Thread rule: pure functions. Errors: invalid, unless it says otherwise.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "pager/memory_layout.h"
#include "transport/os/error.h"

namespace pageferry {

// As pageferry_hook_state in tools/vmm_hook/pageferry_hook.h.
enum class HookState : std::uint8_t {
  running,
  moving,
  paused,
  committed,
  incoming,
  restoring,
  moved_away,
};

enum class HookRole : std::uint8_t { mover, restorer, observer };

namespace hook_protocol {

inline constexpr std::uint32_t kMagic = 0x4b484650;  // "PFHK"
inline constexpr std::uint16_t kVersion = 1;         // the only one so far
inline constexpr std::size_t kHeaderBytes = 16;
inline constexpr std::size_t kPacketBytesMax = std::size_t{64} << 10;
inline constexpr std::uint16_t kReplyBit = 0x8000;
inline constexpr std::uint16_t kErrorType = 0xffff;

inline constexpr std::size_t kVmNameBytesMax = 255;
inline constexpr std::size_t kMachineBytesMax = 4096;
inline constexpr std::size_t kAttemptIdBytesMax = 255;
inline constexpr std::size_t kErrorLineBytesMax = 1024;
inline constexpr std::size_t kCommandWordsMax = 256;
inline constexpr std::size_t kCommandBytesMax = std::size_t{32} << 10;  // of all words together
inline constexpr std::uint64_t kStateBytesMax = std::uint64_t{256} << 20;
inline constexpr std::uint64_t kPauseLimitMsMax = 3'600'000;

enum class Type : std::uint16_t {
  hello = 1,
  get_state = 2,
  get_slot = 3,
  get_command = 4,
  share_progress = 5,  // with a descriptor
  get_progress = 6,
  track = 16,
  collect = 17,
  untrack = 18,
  pause = 19,
  save_state = 20,
  commit = 21,
  resume = 22,
  end = 23,
  take_userfault = 32,
  load_state = 33,  // with a descriptor
  resident = 34,
};

// Which members count depends on the type; the others are as they are here.
struct Request {
  Type type = Type::get_state;
  std::uint32_t serial = 0;
  std::uint16_t version_min = 0;       // hello
  std::uint16_t version_max = 0;       // hello
  HookRole role = HookRole::observer;  // hello
  std::uint32_t slot = 0;              // get_slot
  std::uint64_t limit_ms = 0;          // pause; 0: none
  std::uint64_t epoch = 0;             // commit, resume
  std::uint64_t state_bytes = 0;       // load_state
  std::string attempt_id = {};         // load_state; track: what counts as not written, "": nothing
  friend bool operator==(const Request&, const Request&) = default;
};

// How many descriptors come with it: 0 or 1.
std::size_t descriptors_with(Type request);

std::vector<std::byte> encode(const Request& request);
Result<Request> decode_request(std::span<const std::byte> packet);

// Where the guest is; part of some replies.
struct GuestFacts {
  HookState state = HookState::running;
  bool has_epoch = false;
  std::uint64_t epoch = 0;  // of the last commit or resume; 0 without one
  std::string attempt_id;   // of the state that was loaded; "" without one
  // The attempt whose image, together with the pages written since, is the guest's memory: every write since its first page was placed is
  // known. "": there is none.
  std::string tracked_since_attempt = {};
  friend bool operator==(const GuestFacts&, const GuestFacts&) = default;
};

// How a restorer places pages.
enum class PagePlacing : std::uint16_t {
  plain = 0,
  write_protected = 1,  // so that they do not count as written (pager/restored_write_source.h)
};

// With the shared segment.
struct HelloReply {
  std::uint16_t version = kVersion;
  PagePlacing placing = PagePlacing::plain;
  std::uint32_t slots = 0;
  std::uint32_t command_words = 0;
  std::uint64_t pages = 0;
  std::uint64_t segment_bytes = 0;
  GuestFacts guest;
  std::string vm_name;
  std::string machine;
  friend bool operator==(const HelloReply&, const HelloReply&) = default;
};

// With a descriptor of the memory, if has_memory.
struct SlotReply {
  std::string name;
  std::uint64_t guest_address = 0;
  std::uint64_t size_bytes = 0;
  std::uint64_t host_address = 0;
  std::uint64_t backing_page_bytes = kPageSizeBytes;
  std::uint64_t memory_offset_bytes = 0;
  bool has_memory = false;
  friend bool operator==(const SlotReply&, const SlotReply&) = default;
};

struct CollectReply {
  std::uint64_t collection = 0;  // as it stands in the segment
  std::uint64_t pages = 0;       // how many bits are set
  friend bool operator==(const CollectReply&, const CollectReply&) = default;
};

struct ReplyHeader {
  Type type = Type::get_state;  // of the request
  std::uint32_t serial = 0;
};

std::vector<std::byte> encode_reply(ReplyHeader header);  // without a payload
std::vector<std::byte> encode_reply(ReplyHeader header, const HelloReply& reply);
std::vector<std::byte> encode_reply(ReplyHeader header, const GuestFacts& reply);
std::vector<std::byte> encode_reply(ReplyHeader header, const SlotReply& reply);
std::vector<std::byte> encode_reply(ReplyHeader header, const CollectReply& reply);
std::vector<std::byte> encode_reply(ReplyHeader header, const std::vector<std::string>& words);
// save_state: how long the state in the descriptor is.
std::vector<std::byte> encode_reply(ReplyHeader header, std::uint64_t bytes);
// The message is cut and cleaned. The request may have been unreadable: serial 0.
std::vector<std::byte> encode_error(std::uint32_t serial, const Error& error);

// The payload of a reply to this request; or what the hook said that is wrong (its class, its words); or invalid: no such reply.
Result<std::span<const std::byte>> decode_reply(ReplyHeader expected,
                                                std::span<const std::byte> packet);
Result<HelloReply> decode_hello(std::span<const std::byte> payload);
Result<GuestFacts> decode_guest_facts(std::span<const std::byte> payload);
Result<SlotReply> decode_slot(std::span<const std::byte> payload);
Result<CollectReply> decode_collect(std::span<const std::byte> payload);
Result<std::vector<std::string>> decode_command(std::span<const std::byte> payload);
Result<std::uint64_t> decode_state_bytes(std::span<const std::byte> payload);
Result<void> decode_nothing(std::span<const std::byte> payload);

// All slots together: each in its bounds and aligned, names unique, neither guest addresses nor host addresses overlap. Blocks of the
// layout are in the order of the slots.
Result<MemoryLayout> check_slots(std::span<const SlotReply> slots);
Result<void> check_text(std::string_view what, std::string_view text, std::size_t bytes_min,
                        std::size_t bytes_max);
Result<void> check_command(std::string_view what, std::span<const std::string> words);

}  // namespace hook_protocol
}  // namespace pageferry

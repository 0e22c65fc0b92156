// What the hook answers. Classes of errors have numbers of their own on the wire, which never change; a class that the other side does
// not know of arrives as vmm.
#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "vmstate/hook_protocol.h"
#include "vmstate/hook_protocol_fields.h"

namespace pageferry::hook_protocol {
namespace {

// The number on the wire is the place in this row, from 1.
constexpr std::array kClasses = {Errc::vmm,         Errc::invalid,   Errc::busy,     Errc::version,
                                 Errc::not_owner,   Errc::not_found, Errc::no_space, Errc::io,
                                 Errc::unsupported, Errc::timeout,   Errc::canceled, Errc::gone};

std::uint16_t number_of(Errc code) {
  const auto at = std::ranges::find(kClasses, code);
  return static_cast<std::uint16_t>(at == kClasses.end() ? 1 : at - kClasses.begin() + 1);
}
Errc class_of(std::uint16_t number) {
  return number >= 1 && number <= kClasses.size() ? kClasses[number - 1U] : Errc::vmm;
}

std::string one_line(std::string_view text) {
  std::string line(text.substr(0, kErrorLineBytesMax));
  std::ranges::replace_if(
      line, [](char each) { return static_cast<unsigned char>(each) < ' ' || each == '\x7f'; },
      '?');
  return line;
}

std::vector<std::byte> reply_packet(ReplyHeader header, const FieldWriter& payload) {
  const auto type = static_cast<std::uint16_t>(static_cast<std::uint16_t>(header.type) | kReplyBit);
  return make_packet({.type = type, .serial = header.serial}, payload.bytes());
}

void put_guest(FieldWriter& payload, const GuestFacts& guest) {
  payload.put(static_cast<std::uint16_t>(guest.state));
  payload.put(static_cast<std::uint16_t>(guest.has_epoch ? 1 : 0));
  payload.put(guest.epoch);
  payload.put_text(guest.attempt_id);
  payload.put_text(guest.tracked_since_attempt);
}

Result<GuestFacts> take_guest(FieldReader& payload) {
  const auto state = payload.take<std::uint16_t>();
  const auto has_epoch = payload.take<std::uint16_t>();
  GuestFacts guest;
  guest.epoch = payload.take<std::uint64_t>();
  guest.attempt_id = payload.take_text();
  guest.tracked_since_attempt = payload.take_text();
  if (state > static_cast<std::uint16_t>(HookState::moved_away)) {
    return fail(Errc::invalid, fmt::format("the hook's state {} is unknown", state));
  }
  if (has_epoch > 1 || (has_epoch == 0 && guest.epoch != 0)) {
    return fail(Errc::invalid,
                fmt::format("the hook has {} epochs, number {}", has_epoch, guest.epoch));
  }
  PF_TRY(check_text("attempt id", guest.attempt_id, 0, kAttemptIdBytesMax));
  guest.state = static_cast<HookState>(state);
  guest.has_epoch = has_epoch == 1;
  return guest;
}

}  // namespace

std::vector<std::byte> encode_reply(ReplyHeader header) {
  return reply_packet(header, FieldWriter());
}

std::vector<std::byte> encode_reply(ReplyHeader header, const HelloReply& reply) {
  FieldWriter payload;
  payload.put(reply.version);
  payload.put(static_cast<std::uint16_t>(reply.placing));
  payload.put(reply.slots);
  payload.put(reply.command_words);
  payload.put(reply.pages);
  payload.put(reply.segment_bytes);
  put_guest(payload, reply.guest);
  payload.put_text(reply.vm_name);
  payload.put_text(reply.machine);
  return reply_packet(header, payload);
}

std::vector<std::byte> encode_reply(ReplyHeader header, const GuestFacts& reply) {
  FieldWriter payload;
  put_guest(payload, reply);
  return reply_packet(header, payload);
}

std::vector<std::byte> encode_reply(ReplyHeader header, const SlotReply& reply) {
  FieldWriter payload;
  payload.put(reply.guest_address);
  payload.put(reply.size_bytes);
  payload.put(reply.host_address);
  payload.put(reply.backing_page_bytes);
  payload.put(reply.memory_offset_bytes);
  payload.put(static_cast<std::uint32_t>(reply.has_memory ? 1 : 0));
  payload.put_text(reply.name);
  return reply_packet(header, payload);
}

std::vector<std::byte> encode_reply(ReplyHeader header, const CollectReply& reply) {
  FieldWriter payload;
  payload.put(reply.collection);
  payload.put(reply.pages);
  return reply_packet(header, payload);
}

std::vector<std::byte> encode_reply(ReplyHeader header, const std::vector<std::string>& words) {
  FieldWriter payload;
  payload.put(static_cast<std::uint32_t>(words.size()));
  for (const std::string& word : words) payload.put_text(word);
  return reply_packet(header, payload);
}

std::vector<std::byte> encode_reply(ReplyHeader header, std::uint64_t bytes) {
  FieldWriter payload;
  payload.put(bytes);
  return reply_packet(header, payload);
}

std::vector<std::byte> encode_error(std::uint32_t serial, const Error& error) {
  FieldWriter payload;
  payload.put(number_of(error.code));
  payload.put(std::uint16_t{0});
  payload.put_text(one_line(error.message));
  return make_packet({.type = kErrorType, .serial = serial}, payload.bytes());
}

Result<std::span<const std::byte>> decode_reply(ReplyHeader expected,
                                                std::span<const std::byte> packet) {
  PF_ASSIGN(const Packet opened, open_packet(packet));
  const bool is_error = opened.header.type == kErrorType;
  const bool is_for_us =
      opened.header.serial == expected.serial || (is_error && opened.header.serial == 0);
  if (is_error && is_for_us) {
    FieldReader payload(opened.payload);
    const auto number = payload.take<std::uint16_t>();
    payload.take<std::uint16_t>();
    const std::string line = payload.take_text();
    PF_TRY(payload.end("an error of the hook"));
    return fail(class_of(number), one_line(line));
  }
  const auto type =
      static_cast<std::uint16_t>(static_cast<std::uint16_t>(expected.type) | kReplyBit);
  if (opened.header.type == type && is_for_us) return opened.payload;
  return fail(Errc::invalid,
              fmt::format("the hook answers {:#x} number {} to request {:#x} number {}",
                          opened.header.type, opened.header.serial,
                          static_cast<std::uint16_t>(expected.type), expected.serial));
}

Result<HelloReply> decode_hello(std::span<const std::byte> bytes) {
  FieldReader payload(bytes);
  HelloReply reply;
  reply.version = payload.take<std::uint16_t>();
  const auto placing = payload.take<std::uint16_t>();
  reply.slots = payload.take<std::uint32_t>();
  reply.command_words = payload.take<std::uint32_t>();
  reply.pages = payload.take<std::uint64_t>();
  reply.segment_bytes = payload.take<std::uint64_t>();
  PF_ASSIGN(reply.guest, take_guest(payload));
  reply.vm_name = payload.take_text();
  reply.machine = payload.take_text();
  PF_TRY(payload.end("the answer to hello"));
  if (reply.version != kVersion) {
    return fail(Errc::version,
                fmt::format("the hook speaks version {}, we {}", reply.version, kVersion));
  }
  if (placing > static_cast<std::uint16_t>(PagePlacing::write_protected)) {
    return fail(Errc::invalid, fmt::format("placing {} of pages is unknown", placing));
  }
  reply.placing = static_cast<PagePlacing>(placing);
  if (reply.slots == 0 || reply.slots > kBlocksMax) {
    return fail(Errc::invalid,
                fmt::format("{} memory slots, limit 1..{}", reply.slots, kBlocksMax));
  }
  if (reply.command_words > kCommandWordsMax) {
    return fail(Errc::invalid, fmt::format("a command of {} words, limit {}", reply.command_words,
                                           kCommandWordsMax));
  }
  if (reply.pages == 0 || reply.pages > pages_of_bytes(kMemoryBytesMax)) {
    return fail(Errc::invalid,
                fmt::format("{} pages, limit 1..{}", reply.pages, pages_of_bytes(kMemoryBytesMax)));
  }
  PF_TRY(check_text("VM name", reply.vm_name, 1, kVmNameBytesMax));
  PF_TRY(check_text("machine", reply.machine, 1, kMachineBytesMax));
  return reply;
}

Result<GuestFacts> decode_guest_facts(std::span<const std::byte> bytes) {
  FieldReader payload(bytes);
  PF_ASSIGN(GuestFacts guest, take_guest(payload));
  PF_TRY(payload.end("the guest's state"));
  return guest;
}

Result<SlotReply> decode_slot(std::span<const std::byte> bytes) {
  FieldReader payload(bytes);
  SlotReply reply;
  reply.guest_address = payload.take<std::uint64_t>();
  reply.size_bytes = payload.take<std::uint64_t>();
  reply.host_address = payload.take<std::uint64_t>();
  reply.backing_page_bytes = payload.take<std::uint64_t>();
  reply.memory_offset_bytes = payload.take<std::uint64_t>();
  const auto has_memory = payload.take<std::uint32_t>();
  reply.name = payload.take_text();
  PF_TRY(payload.end("a memory slot"));
  if (has_memory > 1) {
    return fail(Errc::invalid,
                fmt::format("slot '{}' has {} descriptors", one_line(reply.name), has_memory));
  }
  reply.has_memory = has_memory == 1;
  PF_TRY(check_text("name of a memory slot", reply.name, 1, kBlockNameBytesMax));
  return reply;
}

Result<CollectReply> decode_collect(std::span<const std::byte> bytes) {
  FieldReader payload(bytes);
  CollectReply reply;
  reply.collection = payload.take<std::uint64_t>();
  reply.pages = payload.take<std::uint64_t>();
  PF_TRY(payload.end("a collection"));
  return reply;
}

Result<std::vector<std::string>> decode_command(std::span<const std::byte> bytes) {
  FieldReader payload(bytes);
  const auto count = payload.take<std::uint32_t>();
  std::vector<std::string> words;
  for (std::uint32_t i = 0; i < count && payload.left() > 0; ++i) {
    words.push_back(payload.take_text());
  }
  PF_TRY(payload.end("a command"));
  if (words.size() != count) {
    return fail(Errc::invalid, fmt::format("a command of {} words has {}", count, words.size()));
  }
  PF_TRY(check_command("command", words));
  return words;
}

Result<std::uint64_t> decode_state_bytes(std::span<const std::byte> bytes) {
  FieldReader payload(bytes);
  const auto length = payload.take<std::uint64_t>();
  PF_TRY(payload.end("a device state"));
  if (length <= kStateBytesMax) return length;
  return fail(Errc::invalid,
              fmt::format("a device state of {} bytes, limit {}", length, kStateBytesMax));
}

Result<void> decode_nothing(std::span<const std::byte> bytes) {
  return FieldReader(bytes).end("an empty answer");
}

}  // namespace pageferry::hook_protocol

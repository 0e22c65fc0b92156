// Packets, and what a pager asks. A packet socket keeps the borders of packets, so that a header's length is only a check: it says that
// both sides mean the same.
#include "vmstate/hook_protocol.h"

#include <fmt/format.h>

#include "vmstate/hook_protocol_fields.h"

namespace pageferry::hook_protocol {

std::vector<std::byte> make_packet(PacketHeader header, std::span<const std::byte> payload) {
  FieldWriter packet;
  packet.put(kMagic);
  packet.put(header.type);
  packet.put(std::uint16_t{0});
  packet.put(static_cast<std::uint32_t>(payload.size()));
  packet.put(header.serial);
  std::vector<std::byte> bytes = packet.take();
  bytes.insert(bytes.end(), payload.begin(), payload.end());
  PF_CHECK(bytes.size() <= kPacketBytesMax);
  return bytes;
}

Result<Packet> open_packet(std::span<const std::byte> packet) {
  if (packet.size() < kHeaderBytes || packet.size() > kPacketBytesMax) {
    return fail(Errc::invalid, fmt::format("a packet of {} bytes, limit {}..{}", packet.size(),
                                           kHeaderBytes, kPacketBytesMax));
  }
  FieldReader reader(packet.first(kHeaderBytes));
  const auto magic = reader.take<std::uint32_t>();
  const auto type = reader.take<std::uint16_t>();
  const auto zero = reader.take<std::uint16_t>();
  const auto payload_bytes = reader.take<std::uint32_t>();
  const auto serial = reader.take<std::uint32_t>();
  if (magic != kMagic || zero != 0) {
    return fail(Errc::invalid, fmt::format("a packet begins with {:#010x} and {:#06x}, must be "
                                           "{:#010x} and 0",
                                           magic, zero, kMagic));
  }
  if (payload_bytes != packet.size() - kHeaderBytes) {
    return fail(Errc::invalid, fmt::format("a packet of {} bytes says that its payload has {}",
                                           packet.size(), payload_bytes));
  }
  return Packet{.header = {.type = type, .serial = serial},
                .payload = packet.subspan(kHeaderBytes)};
}

std::size_t descriptors_with(Type request) {
  return request == Type::share_progress || request == Type::load_state ? 1 : 0;
}

std::vector<std::byte> encode(const Request& request) {
  FieldWriter payload;
  switch (request.type) {
    case Type::hello:
      payload.put(request.version_min);
      payload.put(request.version_max);
      payload.put(static_cast<std::uint32_t>(request.role));
      break;
    case Type::get_slot:
      payload.put(request.slot);
      break;
    case Type::track:
      payload.put_text(request.attempt_id);
      break;
    case Type::pause:
      payload.put(request.limit_ms);
      break;
    case Type::commit:
    case Type::resume:
      payload.put(request.epoch);
      break;
    case Type::load_state:
      payload.put(request.state_bytes);
      payload.put_text(request.attempt_id);
      break;
    default:
      break;
  }
  return make_packet({.type = static_cast<std::uint16_t>(request.type), .serial = request.serial},
                     payload.bytes());
}

namespace {

Result<Type> type_of(std::uint16_t number) {
  switch (static_cast<Type>(number)) {
    case Type::hello:
    case Type::get_state:
    case Type::get_slot:
    case Type::get_command:
    case Type::share_progress:
    case Type::get_progress:
    case Type::track:
    case Type::collect:
    case Type::untrack:
    case Type::pause:
    case Type::save_state:
    case Type::commit:
    case Type::resume:
    case Type::end:
    case Type::take_userfault:
    case Type::load_state:
    case Type::resident:
      return static_cast<Type>(number);
  }
  return fail(Errc::invalid, fmt::format("request type {} is unknown", number));
}

Result<void> take_hello(FieldReader& payload, Request& request) {
  request.version_min = payload.take<std::uint16_t>();
  request.version_max = payload.take<std::uint16_t>();
  const auto role = payload.take<std::uint32_t>();
  if (request.version_min > request.version_max) {
    return fail(Errc::invalid, fmt::format("versions {} to {} are none", request.version_min,
                                           request.version_max));
  }
  if (role > static_cast<std::uint32_t>(HookRole::observer)) {
    return fail(Errc::invalid, fmt::format("role {} is unknown", role));
  }
  request.role = static_cast<HookRole>(role);
  return {};
}

Result<void> take_limit(FieldReader& payload, Request& request) {
  request.limit_ms = payload.take<std::uint64_t>();
  if (request.limit_ms <= kPauseLimitMsMax) return {};
  return fail(Errc::invalid,
              fmt::format("a pause of {} ms, limit {}", request.limit_ms, kPauseLimitMsMax));
}

Result<void> take_state(FieldReader& payload, Request& request) {
  request.state_bytes = payload.take<std::uint64_t>();
  request.attempt_id = payload.take_text();
  if (request.state_bytes > kStateBytesMax) {
    return fail(Errc::invalid, fmt::format("a device state of {} bytes, limit {}",
                                           request.state_bytes, kStateBytesMax));
  }
  return check_text("attempt id", request.attempt_id, 1, kAttemptIdBytesMax);
}

Result<void> take_payload(FieldReader& payload, Request& request) {
  switch (request.type) {
    case Type::hello:
      return take_hello(payload, request);
    case Type::get_slot:
      request.slot = payload.take<std::uint32_t>();
      if (request.slot < kBlocksMax) return {};
      return fail(Errc::invalid, fmt::format("slot {}, limit {}", request.slot, kBlocksMax - 1));
    case Type::track:
      request.attempt_id = payload.take_text();
      return check_text("attempt id", request.attempt_id, 0, kAttemptIdBytesMax);
    case Type::pause:
      return take_limit(payload, request);
    case Type::commit:
    case Type::resume:
      request.epoch = payload.take<std::uint64_t>();
      return {};
    case Type::load_state:
      return take_state(payload, request);
    default:
      return {};
  }
}

}  // namespace

Result<Request> decode_request(std::span<const std::byte> packet) {
  PF_ASSIGN(const Packet opened, open_packet(packet));
  Request request;
  PF_ASSIGN(request.type, type_of(opened.header.type));
  request.serial = opened.header.serial;
  FieldReader payload(opened.payload);
  PF_TRY(take_payload(payload, request));
  PF_TRY(payload.end(fmt::format("request {}", opened.header.type)));
  return request;
}

}  // namespace pageferry::hook_protocol

// Finding the end of the opaque device state, and proving it.
//
// JSON holds no NUL byte, and the description is far shorter than 4 GiB. So whenever what we have
// ends with '}', the last NUL before it can only be one of a few bytes: of the length field, or the
// EOF byte. Each possible place is checked in full (EOF byte, record type, length equal to what
// follows, '{'), which costs one memrchr instead of a scan of the whole state. Text that looks like
// an end but is none would have to carry its own length; it would also have to survive the walk.
//
// The walk looks for "footer of this section, followed by the header of the next device, or by the
// end". A footer alone would be ambiguous, since 7e and an id may occur in a payload.
#include "vmstate/qemu_device_tail.h"

#include <fmt/core.h>
#include <string.h>

#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>

#include "vmstate/big_endian.h"
#include "vmstate/device_state.h"
#include "vmstate/qemu_stream_format.h"

namespace pageferry::qemu_stream {
namespace {

constexpr std::size_t kEndMarkBytes = 6;  // EOF byte, VMDESC byte, u32 length
constexpr std::size_t kTailBytesMax = kDeviceStateBytesMax + kEndMarkBytes + kVmdescBytesMax;

constexpr std::byte byte_of(RecordType type) {
  return static_cast<std::byte>(type);
}

// Where the JSON begins, if `tail` ends with a complete description.
std::optional<std::size_t> find_vmdesc(std::span<const std::byte> tail) {
  if (tail.size() < kEndMarkBytes + 2 || tail.back() != std::byte{'}'}) return std::nullopt;
  const void* last_nul = ::memrchr(tail.data(), 0, tail.size());
  if (last_nul == nullptr) return std::nullopt;
  const auto nul = static_cast<std::size_t>(static_cast<const std::byte*>(last_nul) - tail.data());
  for (std::size_t json = nul + 1; json <= nul + kEndMarkBytes && json < tail.size(); ++json) {
    if (json < kEndMarkBytes) continue;
    const auto mark = tail.subspan(json - kEndMarkBytes, kEndMarkBytes);
    if (mark[0] == byte_of(RecordType::eof) && mark[1] == byte_of(RecordType::vm_description) &&
        get_be<std::uint32_t>(mark.subspan(2)) == tail.size() - json &&
        tail[json] == std::byte{'{'}) {
      return json;
    }
  }
  return std::nullopt;
}

struct SectionHeader {
  std::uint32_t id = 0;
  std::size_t bytes = 0;
};

// The header of a FULL section of exactly this device at the front of `bytes`.
std::optional<SectionHeader> header_of_device(std::span<const std::byte> bytes,
                                              std::string_view name, std::uint32_t instance) {
  const std::size_t size = 1 + 4 + 1 + name.size() + 4 + 4;
  if (bytes.size() < size || bytes[0] != byte_of(RecordType::section_full)) return std::nullopt;
  if (std::to_integer<std::size_t>(bytes[5]) != name.size()) return std::nullopt;
  if (::memcmp(&bytes[6], name.data(), name.size()) != 0) return std::nullopt;
  if (get_be<std::uint32_t>(bytes.subspan(6 + name.size())) != instance) return std::nullopt;
  return SectionHeader{.id = get_be<std::uint32_t>(bytes.subspan(1)), .bytes = size};
}

struct Device {
  std::string name;
  std::uint32_t instance = 0;
};

Result<std::vector<Device>> devices_of(const std::string& vmdesc_json) {
  const auto json = nlohmann::json::parse(vmdesc_json, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded() || !json.is_object()) {
    return fail(Errc::invalid, fmt::format("device description of {} bytes is not a JSON object",
                                           vmdesc_json.size()));
  }
  const auto list = json.find("devices");
  if (list == json.end() || !list->is_array()) {
    return fail(Errc::invalid, "device description has no array \"devices\"");
  }
  std::vector<Device> devices;
  devices.reserve(list->size());
  for (const auto& entry : *list) {
    const auto name = entry.is_object() ? entry.find("name") : entry.end();
    const auto instance = entry.is_object() ? entry.find("instance_id") : entry.end();
    if (!entry.is_object() || name == entry.end() || !name->is_string() ||
        instance == entry.end() || !instance->is_number_integer()) {
      return fail(
          Errc::invalid,
          fmt::format("device description: entry {} has no name and instance_id", devices.size()));
    }
    devices.push_back({.name = name->get<std::string>(),
                       .instance = static_cast<std::uint32_t>(instance->get<std::int64_t>())});
    if (devices.back().name.size() > kBlockNameBytesMax) {
      return fail(Errc::invalid,
                  fmt::format("device description: name of entry {} has {} bytes, limit {}",
                              devices.size() - 1, devices.back().name.size(), kBlockNameBytesMax));
    }
  }
  return devices;
}

// Bytes from `payload`'s front to behind the footer of section `id`, such that the header of `next`
// (or the end) follows.
std::optional<std::size_t> end_of_section(std::span<const std::byte> payload, std::uint32_t id,
                                          const Device* next) {
  ByteBuffer footer;
  footer.push_back(byte_of(RecordType::section_footer));
  put_be(footer, id);
  std::size_t from = 0;
  while (payload.size() - from >= kFooterBytes) {
    const void* found =
        ::memmem(payload.data() + from, payload.size() - from, footer.data(), footer.size());
    if (found == nullptr) return std::nullopt;
    const auto end =
        static_cast<std::size_t>(static_cast<const std::byte*>(found) - payload.data()) +
        kFooterBytes;
    const auto rest = payload.subspan(end);
    const bool fits = next == nullptr
                          ? rest.empty()
                          : header_of_device(rest, next->name, next->instance).has_value();
    if (fits) return end;
    from = end - kFooterBytes + 1;
  }
  return std::nullopt;
}

}  // namespace

Result<bool> DeviceStateTail::append(std::span<const std::byte> bytes) {
  if (bytes.size() > kTailBytesMax - sections_.size()) {
    return fail(Errc::invalid,
                fmt::format("device state: more than {} bytes without an end", kTailBytesMax));
  }
  sections_.insert(sections_.end(), bytes.begin(), bytes.end());
  const auto json = find_vmdesc(sections_);
  if (!json) return false;
  const std::size_t state_bytes = *json - kEndMarkBytes;
  if (state_bytes > kDeviceStateBytesMax || sections_.size() - *json > kVmdescBytesMax) {
    return fail(
        Errc::invalid,
        fmt::format("device state of {} bytes and description of {}: limits are {} and {}",
                    state_bytes, sections_.size() - *json, kDeviceStateBytesMax, kVmdescBytesMax));
  }
  std::string vmdesc(sections_.size() - *json, '\0');
  ::memcpy(vmdesc.data(), &sections_[*json], vmdesc.size());
  PF_TRY(check_device_sections(std::span(sections_).first(state_bytes), vmdesc));
  vmdesc_ = std::move(vmdesc);
  sections_.resize(state_bytes);
  return true;
}

Result<void> check_device_sections(std::span<const std::byte> sections,
                                   const std::string& vmdesc_json) {
  PF_ASSIGN(const std::vector<Device> devices, devices_of(vmdesc_json));
  std::size_t at = 0;
  for (std::size_t i = 0; i < devices.size(); ++i) {
    const Device& device = devices[i];
    const auto header = header_of_device(sections.subspan(at), device.name, device.instance);
    if (!header) {
      return fail(Errc::invalid,
                  fmt::format("device state: no section of \"{}\" instance {} at byte {}",
                              device.name, device.instance, at));
    }
    const Device* next = i + 1 < devices.size() ? &devices[i + 1] : nullptr;
    const auto end = end_of_section(sections.subspan(at + header->bytes), header->id, next);
    if (!end) {
      return fail(
          Errc::invalid,
          fmt::format("device state: section of \"{}\" instance {} at byte {} has no end that fits",
                      device.name, device.instance, at));
    }
    at += header->bytes + *end;
  }
  if (at != sections.size()) {
    return fail(Errc::invalid,
                fmt::format("device state: {} bytes behind the last device of the description",
                            sections.size() - at));
  }
  return {};
}

std::string captured_run_state(std::span<const std::byte> sections) {
  // u8 length and name, u32 instance, u32 version, then u32 size and the text with its NUL.
  constexpr std::string_view kHeader("\x0bglobalstate\0\0\0\0\0\0\0\x01", 20);
  constexpr std::size_t kTextBytesMax = 100;
  const void* found = ::memmem(sections.data(), sections.size(), kHeader.data(), kHeader.size());
  if (found == nullptr) return {};
  const auto at = static_cast<std::size_t>(static_cast<const std::byte*>(found) - sections.data());
  auto payload = sections.subspan(at + kHeader.size());
  if (payload.size() < sizeof(std::uint32_t)) return {};
  const auto size = get_be<std::uint32_t>(payload);
  payload = payload.subspan(sizeof size);
  if (size == 0 || size > kTextBytesMax || size > payload.size()) return {};
  std::string state(size - 1, '\0');
  ::memcpy(state.data(), payload.data(), state.size());
  return state;
}

}  // namespace pageferry::qemu_stream

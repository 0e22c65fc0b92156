// The framing of the stream, as a state machine over the front of the caller's buffer. Each parse_*
// function either has the whole record in front of it and says how long it is, or returns 0 and is
// called again with more: no partial record is ever kept here, so a split at any byte gives the
// same result by construction.
//
// The only two places without that property are the pages (parse_ram_records runs through as many
// as the buffer holds) and the device state, which DeviceStateTail collects.
//
// Refusals are early: all sections are started in setup, before the first page, so a foreign
// iterable section is seen while nothing has been stored and the guest has noticed nothing.
#include "vmstate/qemu_stream_parser.h"

#include <fmt/core.h>

#include <algorithm>

#include "vmstate/big_endian.h"

namespace pageferry::qemu_stream {
namespace {

constexpr std::size_t kFileHeaderBytes = 8;
constexpr std::size_t kCommandHeadBytes = 5;    // type, u16 command, u16 length
constexpr std::size_t kCommandBytesMax = 4096;  // those we accept carry at most 4
constexpr std::size_t kUuidBytes = 16;

std::string text_of(std::span<const std::byte> bytes) {
  std::string text(bytes.size(), '\0');
  std::transform(bytes.begin(), bytes.end(), text.begin(), [](std::byte b) {
    const auto c = std::to_integer<unsigned char>(b);
    return c >= 0x20 && c < 0x7f ? static_cast<char>(c) : '?';
  });
  return text;
}

// What a section that is not RAM means to a user.
std::string_view origin_of_section(std::string_view name) {
  if (name == "dirty-bitmap") return "capability dirty-bitmaps";
  if (name == "block") return "block migration";
  if (name.ends_with("/vfio")) return "a vfio device";
  if (name.starts_with("spapr/") || name.starts_with("s390-")) return "not an x86 machine";
  return "unknown";
}

std::string_view name_of_command(Command command) {
  switch (command) {
    case Command::postcopy_advise:
      return "POSTCOPY_ADVISE (capability postcopy-ram or dirty-bitmaps)";
    case Command::postcopy_listen:
    case Command::postcopy_run:
    case Command::postcopy_ram_discard:
    case Command::packaged:
    case Command::postcopy_resume:
    case Command::recv_bitmap:
      return "of a postcopy migration";
    case Command::enable_colo:
      return "ENABLE_COLO (capability x-colo)";
    case Command::open_return_path:
    case Command::ping:
    case Command::switchover_start:
      break;
  }
  return "unknown";
}

}  // namespace

std::string_view StreamParser::position() const {
  switch (state_) {
    case State::file_header:
      return "before its header";
    case State::configuration:
    case State::after_configuration:
      return "in the configuration";
    case State::block_list:
      return "in the RAM block list";
    case State::record:
    case State::section_payload:
    case State::section_footer:
      return setup_complete_ ? "in guest memory" : "in its setup";
    case State::device_state:
      return "in the device state";
    case State::complete:
      return "after its end";
  }
  return "";
}

Result<std::size_t> StreamParser::parse(std::span<const std::byte> bytes) {
  std::size_t used = 0;
  while (used < bytes.size()) {
    PF_ASSIGN(const std::size_t taken, step(bytes.subspan(used)));
    if (taken == 0) break;
    used += taken;
  }
  return used;
}

StreamParser::Step StreamParser::step(std::span<const std::byte> bytes) {
  switch (state_) {
    case State::file_header:
      return parse_file_header(bytes);
    case State::configuration:
      return parse_configuration(bytes);
    case State::after_configuration:
      if (bytes[0] == static_cast<std::byte>(RecordType::subsection))
        return parse_subsection(bytes);
      state_ = State::record;
      return parse_record(bytes);
    case State::record:
      return parse_record(bytes);
    case State::section_payload:
      return parse_ram_records(bytes);
    case State::block_list:
      return parse_block(bytes);
    case State::section_footer:
      return parse_section_footer(bytes);
    case State::device_state:
      return parse_device_state(bytes);
    case State::complete:
      break;
  }
  return fail(Errc::invalid,
              fmt::format("migration stream: {} bytes behind its end", bytes.size()));
}

StreamParser::Step StreamParser::parse_file_header(std::span<const std::byte> bytes) {
  if (bytes.size() < kFileHeaderBytes) return 0;
  const auto magic = get_be<std::uint32_t>(bytes);
  const auto version = get_be<std::uint32_t>(bytes.subspan(4));
  if (magic != kFileMagic) {
    return fail(
        Errc::invalid,
        fmt::format("migration stream: begins with {:#010x}, must be {:#010x}", magic, kFileMagic));
  }
  if (version != kFileVersion) {
    return fail(Errc::version,
                fmt::format("migration stream: version {}, must be {}", version, kFileVersion));
  }
  state_ = State::configuration;
  return kFileHeaderBytes;
}

Result<void> StreamParser::keep_configuration(std::span<const std::byte> bytes) {
  if (bytes.size() > kConfigurationBytesMax - result_.configuration.size()) {
    return fail(Errc::invalid,
                fmt::format("migration stream: configuration is longer than {} bytes",
                            kConfigurationBytesMax));
  }
  put_bytes(result_.configuration, bytes);
  return {};
}

StreamParser::Step StreamParser::parse_configuration(std::span<const std::byte> bytes) {
  if (bytes[0] != static_cast<std::byte>(RecordType::configuration)) {
    return fail(Errc::unsupported,
                "migration stream: no configuration section (the source was started with "
                "migration.send-configuration=off, or its machine type is too old)");
  }
  constexpr std::size_t kHead = 1 + sizeof(std::uint32_t);
  if (bytes.size() < kHead) return 0;
  const auto length = get_be<std::uint32_t>(bytes.subspan(1));
  if (length == 0 || length > kMachineTypeBytesMax) {
    return fail(Errc::invalid,
                fmt::format("migration stream: machine type of {} bytes, must be 1 to {}", length,
                            kMachineTypeBytesMax));
  }
  if (bytes.size() < kHead + length) return 0;
  result_.machine_type = text_of(bytes.subspan(kHead, length));
  PF_TRY(keep_configuration(bytes.first(kHead + length)));
  state_ = State::after_configuration;
  return kHead + length;
}

// `05`, u8 length, name, u32 version, payload: its length is known only for the names we know.
StreamParser::Step StreamParser::parse_subsection(std::span<const std::byte> bytes) {
  if (bytes.size() < 2) return 0;
  const auto name_bytes = std::to_integer<std::size_t>(bytes[1]);
  const std::size_t head = 2 + name_bytes + sizeof(std::uint32_t);
  if (bytes.size() < head + sizeof(std::uint32_t)) return 0;
  const std::string name = text_of(bytes.subspan(2, name_bytes));
  std::size_t size = head;
  if (name == "configuration/uuid") {
    size += kUuidBytes;
    if (bytes.size() < size) return 0;
  } else if (name == "configuration/target-page-bits") {
    const auto bits = get_be<std::uint32_t>(bytes.subspan(head));
    if (bits != kPageShift) {
      return fail(
          Errc::unsupported,
          fmt::format("migration stream: guest pages of 2^{} bytes, only 2^{} are supported", bits,
                      kPageShift));
    }
    size += sizeof bits;
  } else if (name == "configuration/capabilities") {
    return fail(Errc::unsupported,
                "migration stream: capability x-ignore-shared or mapped-ram is on at the source");
  } else {
    return fail(Errc::unsupported,
                fmt::format("migration stream: unknown configuration \"{}\"", name));
  }
  PF_TRY(keep_configuration(bytes.first(size)));
  return size;
}

StreamParser::Step StreamParser::parse_record(std::span<const std::byte> bytes) {
  switch (static_cast<RecordType>(bytes[0])) {
    case RecordType::section_start:
    case RecordType::section_full:
      return parse_section_start(bytes);
    case RecordType::section_part:
    case RecordType::section_end:
      return parse_section_continuation(bytes);
    case RecordType::command:
      return parse_command(bytes);
    case RecordType::section_footer:
    case RecordType::subsection:
    case RecordType::vm_description:
    case RecordType::configuration:
    case RecordType::eof:
      break;
  }
  return fail(Errc::invalid,
              fmt::format("migration stream: record type {:#04x} before the end of RAM",
                          std::to_integer<unsigned>(bytes[0])));
}

StreamParser::Step StreamParser::parse_section_start(std::span<const std::byte> bytes) {
  constexpr std::size_t kBeforeName = 1 + sizeof(std::uint32_t) + kNameLengthBytes;
  if (bytes.size() < kBeforeName) return 0;
  const auto name_bytes = std::to_integer<std::size_t>(bytes[kBeforeName - 1]);
  const std::size_t size = kBeforeName + name_bytes + 2 * sizeof(std::uint32_t);
  if (bytes.size() < size) return 0;
  const std::string name = text_of(bytes.subspan(kBeforeName, name_bytes));
  if (bytes[0] == static_cast<std::byte>(RecordType::section_full)) {
    return fail(
        Errc::unsupported,
        fmt::format(
            "migration stream: device \"{}\" sends its state before guest memory (virtio-mem does)",
            name));
  }
  if (name != kRamIdstr) {
    return fail(Errc::unsupported,
                fmt::format("migration stream: section \"{}\" ({}) cannot be moved; only RAM can",
                            name, origin_of_section(name)));
  }
  const auto instance = get_be<std::uint32_t>(bytes.subspan(kBeforeName + name_bytes));
  const auto version = get_be<std::uint32_t>(bytes.subspan(kBeforeName + name_bytes + 4));
  if (instance != kRamInstance || version != kRamVersion) {
    return fail(
        Errc::version,
        fmt::format("migration stream: RAM section instance {} version {}, must be {} and {}",
                    instance, version, kRamInstance, kRamVersion));
  }
  if (ram_section_id_) return fail(Errc::invalid, "migration stream: RAM section started twice");
  ram_section_id_ = get_be<std::uint32_t>(bytes.subspan(1));
  section_ = Section::start;
  state_ = State::section_payload;
  return size;
}

StreamParser::Step StreamParser::parse_section_continuation(std::span<const std::byte> bytes) {
  constexpr std::size_t kSize = 1 + sizeof(std::uint32_t);
  if (bytes.size() < kSize) return 0;
  const auto id = get_be<std::uint32_t>(bytes.subspan(1));
  if (!ram_section_id_ || id != *ram_section_id_) {
    return fail(Errc::invalid,
                fmt::format("migration stream: section {} continues, but was never started", id));
  }
  if (!setup_complete_) PF_TRY(finish_setup());
  section_ =
      bytes[0] == static_cast<std::byte>(RecordType::section_end) ? Section::end : Section::part;
  state_ = State::section_payload;
  return kSize;
}

Result<void> StreamParser::finish_setup() {
  if (result_.layout.pages() == 0) {
    return fail(Errc::invalid, "migration stream: guest memory begins without a block list");
  }
  setup_complete_ = true;
  return events_->on_setup_complete(result_);
}

StreamParser::Step StreamParser::parse_command(std::span<const std::byte> bytes) {
  if (bytes.size() < kCommandHeadBytes) return 0;
  const auto command = get_be<std::uint16_t>(bytes.subspan(1));
  const auto length = get_be<std::uint16_t>(bytes.subspan(3));
  if (length > kCommandBytesMax) {
    return fail(Errc::invalid, fmt::format("migration stream: command {} of {} bytes, limit {}",
                                           command, length, kCommandBytesMax));
  }
  if (bytes.size() < kCommandHeadBytes + length) return 0;
  PF_TRY(check_command(command, bytes.subspan(kCommandHeadBytes, length)));
  return kCommandHeadBytes + length;
}

Result<void> StreamParser::check_command(std::uint16_t command,
                                         std::span<const std::byte> payload) {
  const auto known = static_cast<Command>(command);
  const std::size_t expected = known == Command::ping ? sizeof(std::uint32_t) : 0;
  switch (known) {
    case Command::open_return_path:
    case Command::switchover_start:
    case Command::ping:
      if (payload.size() != expected) {
        return fail(Errc::invalid,
                    fmt::format("migration stream: command {} has {} bytes, must have {}", command,
                                payload.size(), expected));
      }
      break;
    default:
      return fail(Errc::unsupported, fmt::format("migration stream: command {} {} is refused",
                                                 command, name_of_command(known)));
  }
  if (known == Command::ping) return events_->on_ping(get_be<std::uint32_t>(payload));
  return {};
}

StreamParser::Step StreamParser::parse_section_footer(std::span<const std::byte> bytes) {
  if (bytes[0] != static_cast<std::byte>(RecordType::section_footer)) {
    return fail(Errc::unsupported,
                "migration stream: section without footer (migration.send-section-footer=off)");
  }
  if (bytes.size() < kFooterBytes) return 0;
  const auto id = get_be<std::uint32_t>(bytes.subspan(1));
  if (id != *ram_section_id_) {
    return fail(Errc::invalid, fmt::format("migration stream: footer of section {} ends section {}",
                                           id, *ram_section_id_));
  }
  state_ = section_ == Section::end ? State::device_state : State::record;
  if (section_ == Section::end) events_->on_ram_end();
  return kFooterBytes;
}

StreamParser::Step StreamParser::parse_device_state(std::span<const std::byte> bytes) {
  auto done = tail_.append(bytes);
  if (!done) return with_context(done.error(), "migration stream");
  if (*done) {
    result_.device_sections = tail_.take_device_sections();
    result_.vmdesc_json = tail_.take_vmdesc();
    state_ = State::complete;
  }
  return bytes.size();
}

}  // namespace pageferry::qemu_stream

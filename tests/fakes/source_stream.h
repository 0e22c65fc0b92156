// SourceStream: builds what a QEMU sends to a migration destination, record by record, right or
// wrong as a test wants it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pager/page.h"
#include "vmstate/big_endian.h"
#include "vmstate/qemu_stream_format.h"

namespace pageferry::fakes {

// The bytes of a message as a test writes them out.
inline ByteBuffer message_bytes_of(std::initializer_list<unsigned> values) {
  ByteBuffer out;
  for (const unsigned value : values) out.push_back(static_cast<std::byte>(value));
  return out;
}

class SourceStream {
 public:
  using RecordType = qemu_stream::RecordType;
  static constexpr std::uint32_t kRamId = 2;

  const ByteBuffer& bytes() const { return bytes_; }
  ByteBuffer take() { return std::exchange(bytes_, {}); }

  SourceStream& header() {
    put_be(bytes_, qemu_stream::kFileMagic);
    put_be(bytes_, qemu_stream::kFileVersion);
    return *this;
  }
  SourceStream& configuration(std::string_view machine = "pc-q35-7.2") {
    type(RecordType::configuration);
    put_be(bytes_, static_cast<std::uint32_t>(machine.size()));
    return text(machine);
  }
  SourceStream& subsection(std::string_view name, std::size_t payload_bytes) {
    type(RecordType::subsection);
    put_counted_string(bytes_, name);
    put_be(bytes_, std::uint32_t{1});
    bytes_.resize(bytes_.size() + payload_bytes);
    return *this;
  }
  SourceStream& command(qemu_stream::Command command, std::span<const std::byte> payload = {}) {
    type(RecordType::command);
    put_be(bytes_, static_cast<std::uint16_t>(command));
    put_be(bytes_, static_cast<std::uint16_t>(payload.size()));
    put_bytes(bytes_, payload);
    return *this;
  }
  SourceStream& ping(std::uint32_t value) {
    ByteBuffer payload;
    put_be(payload, value);
    return command(qemu_stream::Command::ping, payload);
  }
  SourceStream& start(std::string_view name = "ram", std::uint32_t version = 4,
                      std::uint32_t id = kRamId) {
    type(RecordType::section_start);
    put_be(bytes_, id);
    put_counted_string(bytes_, name);
    put_be(bytes_, std::uint32_t{0});
    put_be(bytes_, version);
    return *this;
  }
  using Blocks = std::vector<std::pair<std::string, std::uint64_t>>;  // name, bytes
  SourceStream& block_list(const Blocks& blocks) {
    std::uint64_t total = 0;
    for (const auto& block : blocks) total += block.second;
    word(total | qemu_stream::kRamFlagMemSize);
    for (const auto& [name, length] : blocks) {
      put_counted_string(bytes_, name);
      put_be(bytes_, length);
    }
    return *this;
  }
  SourceStream& part() { return continuation(RecordType::section_part); }
  SourceStream& end() { return continuation(RecordType::section_end); }
  // Page records: with a block name, or continuing.
  SourceStream& page(std::string_view block, std::uint64_t offset, std::uint8_t fill) {
    record(block, offset | qemu_stream::kRamFlagPage);
    bytes_.insert(bytes_.end(), kPageSizeBytes, std::byte{fill});
    return *this;
  }
  SourceStream& zero(std::string_view block, std::uint64_t offset, std::uint8_t fill = 0) {
    record(block, offset | qemu_stream::kRamFlagZero);
    bytes_.push_back(std::byte{fill});
    return *this;
  }
  SourceStream& word(std::uint64_t value) {
    put_be(bytes_, value);
    return *this;
  }
  SourceStream& eos() { return word(qemu_stream::kRamFlagEos); }
  SourceStream& footer(std::uint32_t id = kRamId) {
    type(RecordType::section_footer);
    put_be(bytes_, id);
    return *this;
  }
  SourceStream& device(std::string_view name, std::uint32_t id, std::string_view payload) {
    type(RecordType::section_full);
    put_be(bytes_, id);
    put_counted_string(bytes_, name);
    put_be(bytes_, std::uint32_t{0});
    put_be(bytes_, std::uint32_t{1});
    text(payload);
    return footer(id);
  }
  SourceStream& eof() {
    type(RecordType::eof);
    return *this;
  }
  SourceStream& description(std::string_view json) {
    type(RecordType::vm_description);
    put_be(bytes_, static_cast<std::uint32_t>(json.size()));
    return text(json);
  }
  SourceStream& text(std::string_view characters) {
    put_bytes(bytes_, std::as_bytes(std::span(characters.data(), characters.size())));
    return *this;
  }

  // What comes before the first page of an ordinary stream.
  SourceStream& setup(const Blocks& blocks) {
    return header()
        .configuration()
        .command(qemu_stream::Command::open_return_path)
        .ping(1)
        .start()
        .block_list(blocks)
        .eos()
        .footer();
  }
  // What comes after the last page of an ordinary stream.
  SourceStream& devices(std::string_view run_state = "running") {
    return device("timer", 1, "tick")
        .device("globalstate", 9, global_state(run_state))
        .eof()
        .description(kVmdesc);
  }
  // u32 size, then the name of the run state in a buffer of 100 bytes.
  static std::string global_state(std::string_view run_state) {
    std::string payload(3, '\0');
    payload += static_cast<char>(run_state.size() + 1);
    payload += run_state;
    payload.resize(4 + 100, '\0');
    return payload;
  }
  static constexpr std::string_view kVmdesc =
      R"({"page_size":4096,"devices":[{"name":"timer","instance_id":0,"version":1},{"name":"globalstate","instance_id":0,"version":1}]})";

 private:
  SourceStream& type(RecordType type) {
    bytes_.push_back(static_cast<std::byte>(type));
    return *this;
  }
  SourceStream& continuation(RecordType kind) {
    type(kind);
    put_be(bytes_, kRamId);
    return *this;
  }
  void record(std::string_view block, std::uint64_t value) {
    word(block.empty() ? value | qemu_stream::kRamFlagContinue : value);
    if (!block.empty()) put_counted_string(bytes_, block);
  }

  ByteBuffer bytes_;
};

}  // namespace pageferry::fakes

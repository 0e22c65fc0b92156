// StreamParser: reads the migration stream of a QEMU, as its destination would, and takes it apart:
// configuration, RAM block list, pages (to a PageSink), opaque device sections. Knows no socket, no
// QMP, no threads.
//
// Bytes are pushed in: parse() looks at what the caller's receive buffer holds and says how many
// bytes it is done with. The caller keeps the rest in front of the next bytes. So a page is handed
// to the sink where it lies in the receive buffer, never copied.
//
// What is accepted: one iterable section, `ram`, instance 0, version 4, plain and zero pages.
// Everything else that can appear (dirty bitmaps, block, vfio, multifd, xbzrle, compression, RDMA,
// COLO, postcopy, mapped-ram, x-ignore-shared) is refused with a line that names it, before a page
// was taken where the stream allows.
//
// Thread rule: one thread. Lifetime: events and sink outlive the parser.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "pager/page_sink.h"
#include "transport/os/error.h"
#include "vmstate/device_state.h"
#include "vmstate/qemu_device_tail.h"
#include "vmstate/qemu_stream_format.h"

namespace pageferry::qemu_stream {

// The least a receive buffer must be able to hold for parse() to make progress.
inline constexpr std::size_t kParserWindowBytes = std::size_t{64} << 10;

// What the parser tells besides pages. An error stops parse(), which returns it.
class StreamEvents {
 public:
  virtual ~StreamEvents() = default;
  // The source wants PONG(value) on the return path.
  virtual Result<void> on_ping(std::uint32_t value) = 0;
  // Configuration and block list are known and no foreign section was started; the first page comes
  // next. `state` has machine_type, configuration and layout (backing page sizes are not in the
  // stream: 4096).
  virtual Result<void> on_setup_complete(const QemuState& state) = 0;
  virtual void on_ram_end() = 0;
};

class StreamParser {
 public:
  StreamParser(StreamEvents& events, PageSink& sink) : events_(&events), sink_(&sink) {}
  StreamParser(const StreamParser&) = delete;
  StreamParser& operator=(const StreamParser&) = delete;

  // Returns the number of bytes used; fewer than given means that the rest is the beginning of a
  // record. Errors: invalid (not a stream, or a broken one), unsupported (a feature that is
  // refused), version (RAM section), or what sink and events returned. After an error, or when
  // complete(), the parser takes no more bytes.
  Result<std::size_t> parse(std::span<const std::byte> bytes);

  // The whole stream was seen, device state checked against QEMU's own description of it.
  bool complete() const { return state_ == State::complete; }
  // Valid after on_setup_complete; device_sections and vmdesc_json when complete().
  const QemuState& state() const { return result_; }
  // Short text of where in the stream the parser is, for the message when the stream ends early.
  std::string_view position() const;

  std::uint64_t pages() const { return pages_; }
  std::uint64_t zero_pages() const { return zero_pages_; }

 private:
  enum class State : std::uint8_t {
    file_header,
    configuration,
    after_configuration,
    record,
    section_payload,
    block_list,
    section_footer,
    device_state,
    complete,
  };
  enum class Section : std::uint8_t { start, part, end };

  // Each looks at the front of `bytes`, and returns the bytes used; 0 = more needed.
  using Step = Result<std::size_t>;
  Step step(std::span<const std::byte> bytes);
  Step parse_file_header(std::span<const std::byte> bytes);
  Step parse_configuration(std::span<const std::byte> bytes);
  Step parse_subsection(std::span<const std::byte> bytes);
  Step parse_record(std::span<const std::byte> bytes);
  Step parse_section_start(std::span<const std::byte> bytes);
  Step parse_section_continuation(std::span<const std::byte> bytes);
  Step parse_command(std::span<const std::byte> bytes);
  Step parse_ram_records(std::span<const std::byte> bytes);
  Step parse_slow_ram_record(std::span<const std::byte> bytes);
  Step parse_page_record(std::span<const std::byte> bytes, std::uint64_t word);
  Step parse_block(std::span<const std::byte> bytes);
  Step parse_section_footer(std::span<const std::byte> bytes);
  Step parse_device_state(std::span<const std::byte> bytes);

  Result<void> check_command(std::uint16_t command, std::span<const std::byte> payload);
  Result<void> begin_block_list(std::uint64_t total_bytes);
  Result<void> end_block_list();
  Result<void> finish_setup();
  Result<void> select_block(std::span<const std::byte> name);
  Result<void> keep_configuration(std::span<const std::byte> bytes);

  StreamEvents* events_;
  PageSink* sink_;
  State state_ = State::file_header;
  QemuState result_;

  std::optional<std::uint32_t> ram_section_id_;  // as the source numbered it
  bool setup_complete_ = false;  // the first PART or END came: no section may start any more
  Section section_ = Section::start;
  std::uint64_t block_list_missing_bytes_ = 0;
  std::vector<RamBlock> block_list_;

  // Block of the page record before: it survives from section to section.
  bool block_selected_ = false;
  PageIndex block_first_{};
  std::uint64_t block_length_bytes_ = 0;
  std::size_t block_index_ = 0;

  DeviceStateTail tail_;  // what came after the END of RAM
  std::uint64_t pages_ = 0;
  std::uint64_t zero_pages_ = 0;
};

}  // namespace pageferry::qemu_stream

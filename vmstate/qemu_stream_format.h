// Numbers of QEMU's migration stream (all integers on the wire are big-endian).
// docs/qemu-migration-stream.md says what each record means and in which order they come. Constants
// only; the parser and the writer share them.
//
// Thread rule: constants.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pager/page.h"

namespace pageferry::qemu_stream {

inline constexpr std::uint32_t kFileMagic = 0x5145564d;  // "QEVM"
inline constexpr std::uint32_t kFileVersion = 3;

// First byte of every record.
enum class RecordType : std::uint8_t {
  eof = 0x00,
  section_start = 0x01,
  section_part = 0x02,
  section_end = 0x03,
  section_full = 0x04,
  subsection = 0x05,
  vm_description = 0x06,
  configuration = 0x07,
  command = 0x08,
  section_footer = 0x7e,
};

enum class Command : std::uint16_t {
  open_return_path = 1,
  ping = 2,
  postcopy_advise = 3,
  postcopy_listen = 4,
  postcopy_run = 5,
  postcopy_ram_discard = 6,
  packaged = 7,
  enable_colo = 8,
  postcopy_resume = 9,
  recv_bitmap = 10,
  switchover_start = 11,
};

enum class ReturnPathType : std::uint16_t {
  shut = 1,
  pong = 2,
  request_pages_id = 3,
  request_pages = 4,
  received_bitmap = 5,
  resume_ack = 6,
  switchover_ack = 7,
};

inline constexpr std::size_t kFooterBytes = 5;  // of a section
// In front of the name of a section or of a RAM block.
inline constexpr std::size_t kNameLengthBytes = 1;

// The RAM section.
inline constexpr const char* kRamIdstr = "ram";
inline constexpr std::uint32_t kRamInstance = 0;
inline constexpr std::uint32_t kRamVersion = 4;

// Low bits of the u64 that begins each RAM record; the rest is a byte offset (or, for mem_size, a
// byte total).
inline constexpr std::uint64_t kRamFlagFull = 0x001;
inline constexpr std::uint64_t kRamFlagZero = 0x002;
inline constexpr std::uint64_t kRamFlagMemSize = 0x004;
inline constexpr std::uint64_t kRamFlagPage = 0x008;
inline constexpr std::uint64_t kRamFlagEos = 0x010;
inline constexpr std::uint64_t kRamFlagContinue = 0x020;
inline constexpr std::uint64_t kRamFlagXbzrle = 0x040;
inline constexpr std::uint64_t kRamFlagHook = 0x080;
inline constexpr std::uint64_t kRamFlagCompressPage = 0x100;
inline constexpr std::uint64_t kRamFlagMultifdFlush = 0x200;
inline constexpr std::uint64_t kRamFlagsMask = kPageSizeBytes - 1;

// A page record that continues the block of the record before it: this u64, then the page.
inline constexpr std::size_t kContinuedPageRecordBytes = sizeof(std::uint64_t) + kPageSizeBytes;
// The longest header of a page record: u64, u8, 255 characters of a name.
inline constexpr std::size_t kPageHeaderBytesMax = sizeof(std::uint64_t) + 1 + 255;

// After the bits of a RECV_BITMAP answer.
inline constexpr std::uint64_t kBitmapEndMark = 0x0123456789abcdef;

}  // namespace pageferry::qemu_stream

// The demo guest's memory, seen by both of its programs: the bare guest in KVM and the threads that play vCPUs. No host library is used
// here; the guest has none.
//
//   guest-physical        what                                            written by
//   0x1000                Parameters                                      the VMM, before the guest starts
//   0x10000 + v pages     VcpuPage of vCPU v: what it has found, requests vCPU v; `completed` by the disk (DMA)
//   0x20000 + v pages     what vCPU v gives to the disk                   vCPU v
//   0x30000 + v pages     what the disk gives to vCPU v                   the disk (DMA), nobody else
//   0x40000 + v 8 KiB     stack of vCPU v (KVM only)                      vCPU v
//   0x60000               code (KVM only)                                 the VMM, before
//   0x80000               page tables, one to one (KVM only)              the VMM, before
//   2 MiB                 one Entry a data page, then one a disk block    the vCPU that owns the page or block
//   Parameters.regions    data pages                                      their owners
//
// Doorbells. The guest has no timer, no interrupt and no clock. It asks the VMM for work (an `in` from a port of 32 bits: a Budget) and
// rings for the disk and the balloon (an `out`); the VMM's answer may take a while, which is how the rates are kept.
//
// Thread rule: plain data; each field has the one writer named here. Sizes in bytes unless the name says pages.
#pragma once

#include <cstdint>

namespace pageferry::demo {

inline constexpr std::uint64_t kGuestPageBytes = 4'096;
inline constexpr std::uint64_t kGuestPageWords = kGuestPageBytes / sizeof(std::uint64_t);
inline constexpr std::uint64_t kGuestHugeBytes = std::uint64_t{2} << 20;
inline constexpr std::uint64_t kGuestHugePages = kGuestHugeBytes / kGuestPageBytes;

inline constexpr std::uint32_t kVcpusMax = 16;
inline constexpr std::uint32_t kRegionsMax = 8;

inline constexpr std::uint64_t kParametersAddress = 0x1000;
inline constexpr std::uint64_t kVcpuPagesAddress = 0x10000;
inline constexpr std::uint64_t kWriteBuffersAddress = 0x20000;
inline constexpr std::uint64_t kReadBuffersAddress = 0x30000;
inline constexpr std::uint64_t kStacksAddress = 0x40000;
inline constexpr std::uint64_t kStackBytes = 0x2000;
inline constexpr std::uint64_t kCodeAddress = 0x60000;
inline constexpr std::uint64_t kCodeBytesMax = 0x20000;
inline constexpr std::uint64_t kPageTablesAddress = 0x80000;
inline constexpr std::uint64_t kEntriesAddress = kGuestHugeBytes;
// One page directory a GiB fits between the page tables and kEntriesAddress.
inline constexpr std::uint64_t kGuestAddressGibMax = 128;

inline constexpr std::uint64_t kParametersMagic = 0x746573'75476650;  // "PfGuest"
inline constexpr std::uint32_t kParametersFormat = 1;

enum class Distribution : std::uint32_t { uniform = 0, zipf = 1, sequential = 2 };

// Data pages that lie in a row. A multiple of 2 MiB, aligned to it.
struct Region {
  std::uint64_t address;
  std::uint64_t pages;
};

struct Parameters {
  std::uint64_t magic;
  std::uint32_t format;
  std::uint32_t vcpus;
  std::uint64_t seed;  // of the contents, and of every choice
  Distribution distribution;
  std::uint32_t regions_used;
  Region regions[kRegionsMax];
  std::uint64_t data_pages;  // of all regions
  std::uint64_t fill_pages;  // written once before the work begins; the others begin as zeros
  std::uint64_t working_set_pages;  // of all vCPUs together
  std::uint64_t give_back_pages;    // what the balloon takes at once: 1, or 512 on huge pages
  std::uint64_t disk_blocks;        // of 4 KiB; 0: no disk
};

// What a page or disk block must hold. Version 0: zeros. `check` binds the version to the place, so that an entry that was overwritten
// or moved is noticed. The top bit of `version`: it was found bad and reported; what is written there next clears it.
struct Entry {
  std::uint32_t version;
  std::uint32_t check;
};
inline constexpr std::uint32_t kKnownBad = 0x80000000;

enum class BadKind : std::uint64_t {
  none = 0,
  content = 1,   // neither this version nor an older one: torn, flipped, or of another page
  stale = 2,     // whole, but of another version
  not_zero = 3,  // was given back or never written, and is not zero
  entry = 4,     // the entry does not belong there
  version_sum =
      5,          // the entries do not add up to what the vCPU's registers say: old ones among them
  registers = 6,  // the heartbeat in memory is not the one in the registers: two different moments
  block = 7,      // a disk block, read back
  disk = 8,       // the disk said that it failed
  answer = 9,     // an answer of the VMM was lost, or came twice
};

// Each vCPU's own. Only ever counted up, except first_bad_*, which are set once.
struct Report {
  std::uint64_t heartbeats;  // one each time it asks for work
  std::uint64_t pages_written;
  std::uint64_t pages_verified;
  std::uint64_t pages_given_back;
  std::uint64_t blocks_written;
  std::uint64_t blocks_verified;
  std::uint64_t checks;  // of all that it owns, done from beginning to end
  std::uint64_t filled;  // 1: its pages are filled, the work has begun
  std::uint64_t bad;
  BadKind first_bad_kind;
  std::uint64_t
      first_bad_address;  // guest-physical; of a block: kBlockAddress + offset on the disk
};
inline constexpr std::uint64_t kBlockAddress = std::uint64_t{1} << 62;

enum class DiskOperation : std::uint32_t { read = 1, write = 2 };
enum class DiskOutcome : std::uint32_t { none = 0, done = 1, failed = 2 };

// Block `block` from or into the vCPU's disk buffer. `number` counts from 1.
struct DiskRequest {
  std::uint64_t number;
  std::uint64_t block;
  DiskOperation operation;
  std::uint32_t reserved;
};

struct GiveBack {
  std::uint64_t address;
  std::uint64_t bytes;
};

struct VcpuPage {
  alignas(kGuestPageBytes) Report report;
  DiskRequest request;
  GiveBack give_back;
  alignas(64) std::uint64_t completed;  // the disk: number of the request that is done
  DiskOutcome outcome;                  // the disk: written before `completed`
};
static_assert(sizeof(VcpuPage) == kGuestPageBytes);

// Ports of 32 bits.
inline constexpr std::uint16_t kPortBudget = 0x500;  // in: a Budget; the VMM may let it wait
inline constexpr std::uint16_t kPortBudgetNow =
    0x504;  // in: the same at once: the guest has work of its own
inline constexpr std::uint16_t kPortDisk = 0x508;  // out: VcpuPage.request
inline constexpr std::uint16_t kPortGiveBack =
    0x50c;  // out: VcpuPage.give_back; done when the guest goes on
inline constexpr std::uint16_t kPortImpossible =
    0x510;  // out: the guest cannot go on; the value is its line

// What one vCPU may do until it asks again. As 32 bits: 10 writes, 10 reads, 4 disk requests, 6 give-backs, 1 check, 1 turn.
struct Budget {
  std::uint32_t writes = 0;
  std::uint32_t reads = 0;
  std::uint32_t disk = 0;
  std::uint32_t give_back = 0;
  std::uint32_t check = 0;  // 1: begin to check all
  std::uint32_t turn = 0;   // 1, 0, 1, ...: the answer that follows the last one

  static constexpr std::uint32_t kPagesMax = 1'023;
  static constexpr std::uint32_t kDiskMax = 15;
  static constexpr std::uint32_t kGiveBackMax = 63;

  constexpr std::uint32_t packed() const {
    return writes | reads << 10 | disk << 20 | give_back << 24 | check << 30 | turn << 31;
  }
  static constexpr Budget of(std::uint32_t word) {
    return {word & 1'023,    word >> 10 & 1'023, word >> 20 & 15,
            word >> 24 & 63, word >> 30 & 1,     word >> 31};
  }
};

}  // namespace pageferry::demo

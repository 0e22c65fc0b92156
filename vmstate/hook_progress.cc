// The page, in words of 64 bits: 0 magic, 1 version, 2 changes (odd: a change is under way), then the figures, in the order of the
// structure. A reader takes the changes, the figures and the changes again; were they even and the same, nothing changed meanwhile.
#include "vmstate/hook_progress.h"

#include <fmt/format.h>

#include <array>

#include "vmstate/sealed_memory.h"

namespace pageferry {
namespace {

constexpr std::uint64_t kProgressMagic = 0x53474f5250464750;  // "PGFPROGS"
constexpr std::uint64_t kProgressVersion = 1;
constexpr std::size_t kProgressMagicWord = 0;
constexpr std::size_t kProgressVersionWord = 1;
constexpr std::size_t kChangesWord = 2;
constexpr std::size_t kFirstFigure = 4;
constexpr int kReadsMax = 64;

constexpr std::array kFigures = {&HookProgress::epoch,
                                 &HookProgress::pager_pid,
                                 &HookProgress::started_ns,
                                 &HookProgress::updated_ns,
                                 &HookProgress::pages_total,
                                 &HookProgress::pages_done,
                                 &HookProgress::pages_left,
                                 &HookProgress::pass,
                                 &HookProgress::bytes_moved,
                                 &HookProgress::bytes_per_s,
                                 &HookProgress::dirty_pages_per_s,
                                 &HookProgress::faults,
                                 &HookProgress::fault_p50_us,
                                 &HookProgress::fault_p99_us,
                                 &HookProgress::fault_max_us,
                                 &HookProgress::prefetched_pages,
                                 &HookProgress::removed_pages};

}  // namespace

Result<HookProgressWriter> HookProgressWriter::make() {
  PF_ASSIGN(UniqueFd memory, make_sealed_memory("pageferry-progress", kHookProgressBytes));
  PF_ASSIGN(SharedMapping mapping,
            SharedMapping::map(memory, kHookProgressBytes, SharedMapping::Access::read_write));
  mapping.store(kProgressVersionWord, kProgressVersion);
  mapping.store(kProgressMagicWord, kProgressMagic);
  PF_TRY(seal_for_other_writers(memory));
  return HookProgressWriter(std::move(memory), std::move(mapping));
}

void HookProgressWriter::write(const HookProgress& progress) {
  const std::uint64_t changes = mapping_.load(kChangesWord);
  mapping_.store(kChangesWord, changes + 1);
  mapping_.store(kFirstFigure, static_cast<std::uint64_t>(progress.phase));
  for (std::size_t i = 0; i < kFigures.size(); ++i) {
    mapping_.store(kFirstFigure + 1 + i, progress.*kFigures[i]);
  }
  mapping_.store(kChangesWord, changes + 2);
}

Result<HookProgressReader> HookProgressReader::open(const UniqueFd& memory) {
  PF_TRY(check_sealed_memory("the pager's progress", memory, kHookProgressBytes, Sealed::size));
  PF_ASSIGN(SharedMapping mapping,
            SharedMapping::map(memory, kHookProgressBytes, SharedMapping::Access::read_only));
  const std::uint64_t magic = mapping.load(kProgressMagicWord);
  const std::uint64_t version = mapping.load(kProgressVersionWord);
  if (magic != kProgressMagic) {
    return fail(Errc::invalid, fmt::format("the pager's progress begins with {:#x}", magic));
  }
  if (version != kProgressVersion) {
    return fail(Errc::version, fmt::format("the pager's progress has version {}, we read {}",
                                           version, kProgressVersion));
  }
  return HookProgressReader(std::move(mapping));
}

Result<HookProgress> HookProgressReader::read() const {
  for (int i = 0; i < kReadsMax; ++i) {
    const std::uint64_t changes = mapping_.load(kChangesWord);
    HookProgress progress;
    const std::uint64_t phase = mapping_.load(kFirstFigure);
    for (std::size_t k = 0; k < kFigures.size(); ++k) {
      progress.*kFigures[k] = mapping_.load(kFirstFigure + 1 + k);
    }
    if (changes % 2 != 0 || mapping_.load(kChangesWord) != changes) continue;
    if (phase > static_cast<std::uint64_t>(HookPhase::resident)) {
      return fail(Errc::invalid, fmt::format("the pager's phase {} is unknown", phase));
    }
    progress.phase = static_cast<HookPhase>(phase);
    return progress;
  }
  return fail(Errc::busy, "the pager's progress is being changed");
}

}  // namespace pageferry

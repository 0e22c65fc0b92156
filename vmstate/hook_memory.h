// HookMemory: the memory of a VMM with a hook, read from outside while its guest runs.
//
//   a block with a memory file (memfd, hugetlbfs, tmpfs)   mapped here, for reading only, and lent to the sink; a hole in the file is
//                                                          a zero page that nobody has touched: it is put as zero, and stays a hole
//   a block without one (anonymous memory)                 copied with process_vm_readv(2)
//
// Holes are looked up in begin_pass(Holes::looked_up) passes only, after tracking was armed: what is written after the look is dirty
// again. A page that is missing because the guest is itself being restored would be read as zeros, and a hole be taken for an untouched
// page: put() is only asked for pages that the hook named, and it names none that is missing.
//
// Thread rule: one thread at a time. Lifetime: the mappings stay until it is destroyed; `vm` outlives it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "pager/guest_memory.h"
#include "transport/io_buffer.h"
#include "transport/os/error.h"
#include "vmstate/hook_client.h"

namespace pageferry {

class HookMemory final : public GuestPages {
 public:
  // Errors: invalid (a descriptor is too short for its slot), io (it cannot be mapped).
  static Result<std::unique_ptr<HookMemory>> make(const HookVm& vm);
  ~HookMemory() override;
  HookMemory(const HookMemory&) = delete;
  HookMemory& operator=(const HookMemory&) = delete;

  // What was looked up is forgotten. `taken_as_data`: for pages that were written a moment ago, where a look costs more than it saves.
  enum class Holes : std::uint8_t { looked_up, taken_as_data };
  void begin_pass(Holes holes);

  const MemoryLayout& layout() const override { return vm_.layout; }
  // Errors: gone (the VMM ended), vmm (its memory cannot be read), the sink's.
  Result<std::uint64_t> put(PageRun run, PageSink& sink) override;
  void expect(PageIndex page) const override;

 private:
  // Bytes of one block's memory file from `begin` on that are all data or all hole.
  struct Extent {
    std::uint64_t begin = 0;
    std::uint64_t end = 0;
    bool hole = false;
  };
  struct Block {
    const std::byte* mapping = nullptr;  // null: anonymous
    Extent known{};
  };

  explicit HookMemory(const HookVm& vm) : vm_(vm) {}
  Extent look_up(std::size_t block, std::uint64_t offset) const;
  Result<std::uint64_t> put_mapped(std::size_t block, PageRun run, PageSink& sink);
  Result<std::uint64_t> put_copied(std::size_t block, PageRun run, PageSink& sink);

  const HookVm& vm_;
  std::vector<Block> blocks_;
  std::vector<std::byte> buffer_;
  Holes holes_ = Holes::looked_up;
};

}  // namespace pageferry

// One mapping for each block with a file. SEEK_DATA and SEEK_HOLE walk the file, so an extent is asked for once in a pass and then used
// up; hugetlbfs knows neither, and its files are taken as data.
#include "vmstate/hook_memory.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "pager/page_copy.h"

namespace pageferry {
namespace {

constexpr std::uint64_t kCopyPagesMax = 256;

Result<const std::byte*> map_block(const RamBlock& block, const HookSlot& slot) {
  struct stat status {};
  if (::fstat(slot.memory.get(), &status) != 0) return syscall_error("fstat", block.name);
  const auto size = static_cast<std::uint64_t>(status.st_size);
  if (!S_ISREG(status.st_mode) || slot.memory_offset_bytes > size ||
      size - slot.memory_offset_bytes < block.length_bytes) {
    return fail(Errc::invalid,
                fmt::format("memory of slot '{}': {} bytes from offset {} do not lie in a file of "
                            "{} bytes",
                            block.name, block.length_bytes, slot.memory_offset_bytes, size));
  }
  void* const mapped = ::mmap(nullptr, block.length_bytes, PROT_READ, MAP_SHARED, slot.memory.get(),
                              static_cast<off_t>(slot.memory_offset_bytes));
  if (mapped == MAP_FAILED) return syscall_error("mmap", block.name);
  return static_cast<const std::byte*>(mapped);
}

}  // namespace

Result<std::unique_ptr<HookMemory>> HookMemory::make(const HookVm& vm) {
  std::unique_ptr<HookMemory> memory(new HookMemory(vm));
  for (std::size_t i = 0; i < vm.slots.size(); ++i) {
    Block block;
    if (vm.slots[i].memory.valid()) {
      PF_ASSIGN(block.mapping, map_block(vm.layout.blocks()[i], vm.slots[i]));
    }
    memory->blocks_.push_back(block);
  }
  memory->buffer_.resize(bytes_of_pages(kCopyPagesMax));
  return memory;
}

HookMemory::~HookMemory() {
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    if (blocks_[i].mapping == nullptr) continue;
    ::munmap(const_cast<std::byte*>(blocks_[i].mapping), vm_.layout.blocks()[i].length_bytes);
  }
}

void HookMemory::begin_pass(Holes holes) {
  holes_ = holes;
  for (Block& block : blocks_) block.known = Extent{};
}

HookMemory::Extent HookMemory::look_up(std::size_t block, std::uint64_t offset) const {
  const HookSlot& slot = vm_.slots[block];
  const std::uint64_t length = vm_.layout.blocks()[block].length_bytes;
  const auto at = [&](int whence, std::uint64_t from) -> std::optional<std::uint64_t> {
    const off_t found =
        ::lseek(slot.memory.get(), static_cast<off_t>(slot.memory_offset_bytes + from), whence);
    if (found < 0) return errno == ENXIO ? std::optional<std::uint64_t>(length) : std::nullopt;
    const auto inside = static_cast<std::uint64_t>(found) - slot.memory_offset_bytes;
    return std::min(inside, length);
  };
  const Extent all_data{.begin = offset, .end = length, .hole = false};
  const auto data = at(SEEK_DATA, offset);
  if (!data) return all_data;
  // Whole pages: a hole ends before the page that holds data.
  const std::uint64_t data_begin = *data & ~std::uint64_t{kPageSizeBytes - 1};
  if (data_begin > offset) return {.begin = offset, .end = data_begin, .hole = true};
  const auto hole = at(SEEK_HOLE, offset);
  if (!hole) return all_data;
  const std::uint64_t hole_begin =
      (*hole + kPageSizeBytes - 1) & ~std::uint64_t{kPageSizeBytes - 1};
  return {.begin = offset,
          .end = std::clamp(hole_begin, offset + kPageSizeBytes, length),
          .hole = false};
}

Result<std::uint64_t> HookMemory::put(PageRun run, PageSink& sink) {
  PF_CHECK(run.pages > 0 && raw(run.first) < vm_.layout.pages());
  const std::size_t number = vm_.layout.block_of(run.first);
  const RamBlock& block = vm_.layout.blocks()[number];
  const std::uint64_t pages_left = (block.first_page + block.pages()) - run.first;
  const PageRun piece{run.first, std::min(run.pages, pages_left)};
  return blocks_[number].mapping != nullptr ? put_mapped(number, piece, sink)
                                            : put_copied(number, piece, sink);
}

void HookMemory::expect(PageIndex page) const {
  const std::size_t number = vm_.layout.block_of(page);
  const std::byte* const mapping = blocks_[number].mapping;
  if (mapping == nullptr) return;
  fetch_ahead(mapping + bytes_of_pages(page - vm_.layout.blocks()[number].first_page));
}

Result<std::uint64_t> HookMemory::put_mapped(std::size_t number, PageRun run, PageSink& sink) {
  Block& block = blocks_[number];
  const std::uint64_t offset = bytes_of_pages(run.first - vm_.layout.blocks()[number].first_page);
  if (holes_ == Holes::looked_up) {
    if (offset < block.known.begin || offset >= block.known.end) {
      block.known = look_up(number, offset);
    }
    run.pages = std::min(run.pages, pages_of_bytes(block.known.end - offset));
    if (block.known.hole) {
      for (std::uint64_t i = 0; i < run.pages; ++i) PF_TRY(sink.put_zero(run.first + i));
      return run.pages;
    }
  }
  PF_TRY(sink.put_lent_pages(run, {block.mapping + offset, bytes_of_pages(run.pages)}));
  return run.pages;
}

Result<std::uint64_t> HookMemory::put_copied(std::size_t number, PageRun run, PageSink& sink) {
  const RamBlock& block = vm_.layout.blocks()[number];
  run.pages = std::min(run.pages, kCopyPagesMax);
  const std::uint64_t address =
      vm_.slots[number].host_address + bytes_of_pages(run.first - block.first_page);
  const iovec ours{.iov_base = buffer_.data(), .iov_len = bytes_of_pages(run.pages)};
  const iovec theirs{.iov_base = reinterpret_cast<void*>(address), .iov_len = ours.iov_len};
  const ssize_t got = ::process_vm_readv(vm_.pid, &ours, 1, &theirs, 1, 0);
  const std::string what = fmt::format("memory of slot '{}' in process {}", block.name, vm_.pid);
  if (got < 0) return syscall_error("process_vm_readv", what);
  // What lies behind is tried, and reported, by the next call.
  const std::uint64_t pages = pages_of_bytes(static_cast<std::uint64_t>(got));
  if (pages == 0) return fail(Errc::vmm, fmt::format("{} cannot be read", what));
  for (std::uint64_t i = 0; i < pages; ++i) {
    PF_TRY(sink.put_page(run.first + i,
                         PageBytes(buffer_.data() + bytes_of_pages(i), kPageSizeBytes)));
  }
  return pages;
}

}  // namespace pageferry

// The test drives AsyncWriteProtectSource itself, as a migration would. The pages of the scratch memory, and what each is for:
//
//   0  never touched                        3  there beforehand, written by a system call
//   1  there beforehand, never written      4  not there; read
//   2  there beforehand, written            5  not there; written
#include "pager/write_protect_self_test.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include <cerrno>
#include <string_view>
#include <utility>

#include "pager/async_write_protect_source.h"
#include "pager/sync_write_protect_source.h"
#include "transport/os/fd.h"

namespace pageferry {
namespace {

constexpr std::uint64_t kScratchPages = 8;
enum class Scratch : std::uint8_t { anonymous, memfd };

std::string_view name_of(Scratch kind) {
  return kind == Scratch::anonymous ? "anonymous memory" : "a memfd";
}

class ScratchMemory {
 public:
  ScratchMemory() = default;
  ~ScratchMemory() {
    if (data_ != nullptr) ::munmap(data_, bytes_of_pages(kScratchPages));
  }
  ScratchMemory(const ScratchMemory&) = delete;
  ScratchMemory& operator=(const ScratchMemory&) = delete;

  Result<void> map(Scratch kind) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
    if (kind == Scratch::memfd) {
      flags = MAP_SHARED;
      file_.reset(::memfd_create("pageferry-self-test", MFD_CLOEXEC));
      if (!file_.valid()) return syscall_error("memfd_create", "self-test");
      if (::ftruncate(file_.get(), static_cast<off_t>(bytes_of_pages(kScratchPages))) != 0) {
        return syscall_error("ftruncate", "memfd of the self-test");
      }
    }
    void* const at = ::mmap(nullptr, bytes_of_pages(kScratchPages), PROT_READ | PROT_WRITE, flags,
                            file_.get(), 0);
    if (at == MAP_FAILED) return syscall_error("mmap", name_of(kind));
    data_ = static_cast<std::byte*>(at);
    return {};
  }
  std::uint64_t address() const { return reinterpret_cast<std::uintptr_t>(data_); }
  void write(std::uint64_t page) const { *at(page) = std::byte{1}; }
  std::byte read(std::uint64_t page) const { return *at(page); }
  // By the kernel, as reads of a disk are.
  Result<void> write_by_system_call(std::uint64_t page) const {
    if (::getrandom(data_ + bytes_of_pages(page), 1, 0) == 1) return {};
    return syscall_error("getrandom", "self-test");
  }

 private:
  volatile std::byte* at(std::uint64_t page) const { return data_ + bytes_of_pages(page); }

  UniqueFd file_;
  std::byte* data_ = nullptr;
};

Result<void> expect_dirty(DirtySource& source, const std::vector<std::uint64_t>& pages,
                          std::string_view when) {
  DirtyBitmap expected(kScratchPages);
  for (const std::uint64_t page : pages) expected.set({PageIndex{page}, 1});
  DirtyBitmap seen(kScratchPages);
  PF_TRY(source.collect_into(seen));
  for (std::uint64_t page = 0; page < kScratchPages; ++page) {
    if (seen.is_set(PageIndex{page}) == expected.is_set(PageIndex{page})) continue;
    return fail(
        Errc::unsupported,
        fmt::format("{}: page {} is reported as {}", when, page,
                    seen.is_set(PageIndex{page}) ? "written, and is not" : "not written, and is"));
  }
  return {};
}

Result<void> test_on(Scratch kind) {
  PF_ASSIGN(const MemoryLayout layout,
            MemoryLayout::make({RamBlock{.name = "self-test",
                                         .length_bytes = bytes_of_pages(kScratchPages),
                                         .backing_page_bytes = kPageSizeBytes,
                                         .first_page = {}}}));
  ScratchMemory memory;
  PF_TRY(memory.map(kind));
  for (const std::uint64_t page : {1U, 2U, 3U}) memory.write(page);
  AsyncWriteProtectSource source(layout, {memory.address()});
  PF_TRY(source.start());
  PF_TRY(expect_dirty(source, {0, 1, 2, 3, 4, 5, 6, 7}, "at first"));
  PF_TRY(expect_dirty(source, {}, "armed"));
  memory.write(2);
  PF_TRY(memory.write_by_system_call(3));
  if (memory.read(4) != std::byte{0}) return fail(Errc::unsupported, "fresh memory is not zero");
  memory.write(5);
  PF_TRY(expect_dirty(source, {2, 3, 5}, "after writes"));
  PF_TRY(expect_dirty(source, {}, "armed again"));
  memory.write(4);
  memory.write(5);
  PF_TRY(expect_dirty(source, {4, 5}, "after more writes"));
  return source.stop();
}

}  // namespace

Result<void> async_write_protect_self_test() {
  for (const Scratch kind : {Scratch::anonymous, Scratch::memfd}) {
    if (auto passed = test_on(kind); !passed) {
      Unexpected reason =
          with_context(std::move(passed).error(),
                       fmt::format("asynchronous write protection of {}", name_of(kind)));
      reason.value().code = Errc::unsupported;
      return reason;
    }
  }
  return {};
}

WriteProtectChoice choose_write_protect_source(const MemoryLayout& layout,
                                               std::vector<std::uint64_t> block_addresses) {
  if (auto passed = async_write_protect_self_test(); !passed) {
    return {.source = std::make_unique<SyncWriteProtectSource>(layout, std::move(block_addresses)),
            .why_not_async = std::move(passed).error().message};
  }
  return {.source = std::make_unique<AsyncWriteProtectSource>(layout, std::move(block_addresses)),
          .why_not_async = {}};
}

}  // namespace pageferry

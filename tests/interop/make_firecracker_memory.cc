// make_firecracker_memory MEMORY_FILE PAGE_FILE PAGES: the same memory twice, as a plain memory file with holes and as a page file of ours
// (two RAM blocks).
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <span>
#include <string>

#include "interop/memory_pattern.h"
#include "pager/page_file_writer.h"
#include "transport/aio_file.h"
#include "transport/os/clock.h"

namespace {

using namespace pageferry;

Result<void> write_plain(const std::string& path, std::uint64_t pages) {
  const UniqueFd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!file.valid()) return syscall_error("create", path);
  if (::ftruncate(file.get(), static_cast<off_t>(bytes_of_pages(pages))) != 0) {
    return syscall_error("ftruncate", path);
  }
  for (std::uint64_t page = 0; page < pages; ++page) {
    if (memory_pattern::kind_of(page) == memory_pattern::Kind::hole) continue;
    const memory_pattern::Page words = memory_pattern::page_of(page);
    if (::pwrite(file.get(), words.data(), sizeof words,
                 static_cast<off_t>(bytes_of_pages(page))) != static_cast<ssize_t>(sizeof words)) {
      return syscall_error("pwrite", path);
    }
  }
  if (::fsync(file.get()) != 0) return syscall_error("fsync", path);
  return {};
}

Result<void> write_page_file(const std::string& path, std::uint64_t pages) {
  const auto slash = path.rfind('/');
  const std::string where = path.substr(0, slash);
  const UniqueFd directory(::open(where.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory.valid()) return syscall_error("open", where);
  PF_ASSIGN(auto file,
            AioFile::create(directory.get(), path.substr(slash + 1), where, AioOptions{}));
  const MonotonicClock clock;
  PageFileIds ids;
  ids.file_id.fill(std::byte{1});
  ids.commit_id.fill(std::byte{2});
  PF_ASSIGN(auto writer,
            PageFileWriter::make(std::move(file), ids, PageFileWriterOptions{}, clock));
  PF_ASSIGN(
      const MemoryLayout layout,
      MemoryLayout::make({{.name = "low", .length_bytes = bytes_of_pages(pages / 3)},
                          {.name = "high", .length_bytes = bytes_of_pages(pages - pages / 3)}}));
  PF_TRY(writer->begin(layout));
  writer->begin_pass(1);
  for (std::uint64_t page = 0; page < pages; ++page) {
    const memory_pattern::Page words = memory_pattern::page_of(page);
    const std::span<const std::byte> bytes = std::as_bytes(std::span(words));
    PF_TRY(writer->put_page(PageIndex{page}, bytes.first<kPageSizeBytes>()));
  }
  PF_TRY(writer->finish_and_commit());
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const std::uint64_t pages = std::stoull(argv[3]);
  for (const auto& written : {write_plain(argv[1], pages), write_page_file(argv[2], pages)}) {
    if (written) continue;
    fmt::print(stderr, "{}\n", written.error().message);
    return 1;
  }
  return 0;
}

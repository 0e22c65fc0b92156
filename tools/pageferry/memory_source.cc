// The holes of a plain file are looked for before it is read; nobody may write to it meanwhile anyway.
#include "tools/pageferry/memory_source.h"

#include <fcntl.h>

#include <utility>

#include "pager/memory_file_reader.h"
#include "pager/page_file_reader.h"
#include "tools/pageferry/attempt_files.h"

namespace pageferry {
namespace {

struct Place {
  std::string directory;
  std::string name;
};

Place place_of(const std::string& path) {
  const auto slash = path.rfind('/');
  if (slash == std::string::npos) return {.directory = ".", .name = path};
  return {.directory = slash == 0 ? "/" : path.substr(0, slash), .name = path.substr(slash + 1)};
}

Result<UniqueFd> open_directory(const std::string& directory) {
  UniqueFd fd(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid()) return syscall_error("open", directory);
  return fd;
}

Result<std::vector<PageRun>> holes_of(const std::string& path, std::uint64_t bytes) {
  const UniqueFd file(::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  if (!file.valid()) return syscall_error("open", path);
  return find_holes(file, pages_of_bytes(bytes), path);
}

}  // namespace

Result<std::unique_ptr<AioFile>> open_storage_file(const std::string& path, AioOptions options) {
  const Place place = place_of(path);
  PF_ASSIGN(const UniqueFd directory, open_directory(place.directory));
  return AioFile::open(directory.get(), place.name, place.directory, options);
}

BaseFileOpener bases_beside(const std::string& path) {
  return [directory = place_of(path).directory](
             const std::string& file_name) -> Result<std::unique_ptr<StorageFile>> {
    PF_ASSIGN(std::unique_ptr<AioFile> file,
              open_storage_file(directory + "/" + file_name, AioOptions{}));
    return std::unique_ptr<StorageFile>(std::move(file));
  };
}

Result<std::unique_ptr<PageSupply>> open_memory_source(const std::string& path, MemoryFileKind kind,
                                                       const std::vector<StorageFault>& faults,
                                                       const Clock& clock,
                                                       const WaitBounds& bounds) {
  PF_ASSIGN(std::unique_ptr<StorageFile> file, open_storage_file(path, AioOptions{}));
  PF_ASSIGN(const std::uint64_t bytes, file->size());
  PF_ASSIGN(file, with_faults(std::move(file), faults, clock));
  if (kind == MemoryFileKind::page_file) {
    PF_ASSIGN(auto reader, PageFileReader::open(std::move(file), PageFileReaderOptions{}, clock,
                                                bounds, {}, bases_beside(path)));
    return std::unique_ptr<PageSupply>(std::move(reader));
  }
  PF_ASSIGN(const std::vector<PageRun> holes, holes_of(path, bytes));
  PF_ASSIGN(auto reader,
            MemoryFileReader::open(std::move(file), holes, MemoryFileReaderOptions{}, clock));
  return std::unique_ptr<PageSupply>(std::move(reader));
}

}  // namespace pageferry

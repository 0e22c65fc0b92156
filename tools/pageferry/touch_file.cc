// The ownership records' way to files does all but one step: it makes names that nobody had (link), here the name changes hands (rename).
#include "tools/pageferry/touch_file.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <cstdio>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "transport/record_files.h"

namespace pageferry {
namespace {

Result<std::unique_ptr<RecordFiles>> files_in(const VmDirectory& directory) {
  UniqueFd again(::openat(directory.fd(), ".", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!again.valid()) return syscall_error("open", directory.path());
  return make_posix_record_files(std::move(again), directory.path());
}

Result<void> write_and_rename(RecordFiles& files, const VmDirectory& directory,
                              std::string_view bytes) {
  PF_TRY(files.write_new(kUnfinishedTouchFileName, bytes));
  if (::renameat(directory.fd(), kUnfinishedTouchFileName, directory.fd(), kTouchFileName) != 0) {
    return syscall_error("rename", fmt::format("{}/{}", directory.path(), kTouchFileName));
  }
  return files.sync_directory();
}

}  // namespace

Result<std::optional<TouchRecord>> read_touch_file(const VmDirectory& directory,
                                                   const MemoryLayout& layout) {
  PF_ASSIGN(const std::unique_ptr<RecordFiles> files, files_in(directory));
  PF_ASSIGN(const std::optional<std::string> bytes,
            files->read_fresh(kTouchFileName, kTouchRecordBytesMax));
  if (!bytes) return std::optional<TouchRecord>();
  auto record = TouchRecord::decode(std::as_bytes(std::span(*bytes)), layout);
  if (!record) {
    return with_context(std::move(record).error(),
                        fmt::format("{}/{}", directory.path(), kTouchFileName));
  }
  return std::optional<TouchRecord>(std::move(*record));
}

Result<void> write_touch_file(const VmDirectory& directory, const TouchRecord& record,
                              const MemoryLayout& layout) {
  if (record.empty()) return {};
  PF_ASSIGN(const std::unique_ptr<RecordFiles> files, files_in(directory));
  const std::vector<std::byte> bytes = record.encode(layout);
  // What a writer left that was killed.
  if (auto gone = files->unlink(kUnfinishedTouchFileName);
      !gone && gone.error().code != Errc::not_found) {
    return gone;
  }
  auto written =
      write_and_rename(*files, directory,
                       std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
  if (!written) static_cast<void>(files->unlink(kUnfinishedTouchFileName));
  return written;
}

}  // namespace pageferry

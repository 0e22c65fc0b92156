// RecordFiles: the file operations that ownership records need, in one directory. An interface so
// that tests can lose replies, let a link land late, fail any step and crash between any two;
// PosixRecordFiles is the real thing.
//
// Names are plain file names, never paths. Thread rule: one thread at a time. Every call may block
// for as long as the store does not answer.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "transport/cancel_signal.h"
#include "transport/os/clock.h"
#include "transport/os/error.h"
#include "transport/os/fd.h"

namespace pageferry {

class RecordFiles {
 public:
  virtual ~RecordFiles() = default;

  // Creates `name` (0600) exclusively, writes all bytes, fsync, close. On an error a part of it may
  // be there.
  virtual Result<void> write_new(const std::string& name, std::string_view bytes) = 0;
  // link(2). Any error but Errc::exists leaves open whether the name was made, or will be made
  // later.
  virtual Result<void> link(const std::string& from, const std::string& to) = 0;
  virtual Result<void> unlink(const std::string& name) = 0;
  // fsync of the directory: what was visible before the call is durable after it.
  virtual Result<void> sync_directory() = 0;
  // Makes the next look-ups ask the store, not a client's cache of the directory.
  virtual Result<void> refresh_directory() = 0;
  // The whole content by a fresh open, past the caches of this host; nullopt: there is no such
  // name. Errc::corrupt when it is longer than `bytes_max`, a symlink, or not a regular file.
  virtual Result<std::optional<std::string>> read_fresh(const std::string& name,
                                                        std::size_t bytes_max) = 0;
  virtual Result<std::vector<std::string>> list() = 0;
  // Waits for the duration or until the signal, whichever is first.
  virtual void pause(Milliseconds duration, const CancelSignal& stop) = 0;
};

// Takes the directory's descriptor (opened O_DIRECTORY); `path` is for messages.
std::unique_ptr<RecordFiles> make_posix_record_files(UniqueFd directory, std::string path);

// fsync of a file or directory that errors call `subject`.
Result<void> sync_descriptor(int fd, const std::string& subject);

}  // namespace pageferry

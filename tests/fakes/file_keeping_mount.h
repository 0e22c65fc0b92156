// FileKeepingMount: an empty directory on a real file system that keeps a file which is removed while somebody has it open, under
// another name, as an NFS client does: bindfs (FUSE), which calls it .fuse_hidden..., with the file's own directory below.
// Unmounted when the test ends; files must be closed by then. Thread rule: one thread.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "fakes/scratch_directory.h"

namespace pageferry::testing_support {

class FileKeepingMount {
 public:
  FileKeepingMount() {
    std::filesystem::create_directory(scratch_.file("below"));
    std::filesystem::create_directory(path());
    const std::string command = fmt::format("bindfs '{}' '{}'", scratch_.file("below"), path());
    if (std::system(command.c_str()) != 0) ADD_FAILURE() << "cannot mount: " << command;
  }
  ~FileKeepingMount() {
    const std::string command = fmt::format("fusermount3 -u '{}'", path());
    if (std::system(command.c_str()) != 0) ADD_FAILURE() << "cannot unmount: " << command;
  }
  FileKeepingMount(const FileKeepingMount&) = delete;
  FileKeepingMount& operator=(const FileKeepingMount&) = delete;

  std::string path() const { return scratch_.file("mount"); }

 private:
  ScratchDirectory scratch_;
};

}  // namespace pageferry::testing_support

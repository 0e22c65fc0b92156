// Removing an attempt whose file somebody still has open, on a file system that keeps such a file.
#include <fcntl.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <thread>

#include "fakes/file_keeping_mount.h"
#include "transport/os/fd.h"
#include "transport/vm_directory.h"

namespace pageferry {
namespace {

namespace fs = std::filesystem;
using testing_support::FileKeepingMount;

class KeptOpenFileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto attempt = vm_.create_attempt(Epoch{1});
    ASSERT_TRUE(attempt) << attempt.error().message;
    name_ = attempt->name;
    pages_ = UniqueFd(::open((directory() + "/pages").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    ASSERT_TRUE(pages_.valid());
  }
  std::string directory() const { return vm_.path() + "/" + name_; }
  // Somebody has begun to remove it.
  bool is_kept() const {
    const fs::directory_iterator files(directory());
    return std::any_of(begin(files), end(files), [](const fs::directory_entry& file) {
      return file.path().filename().string().starts_with(".fuse_hidden");
    });
  }

  FileKeepingMount store_;
  VmDirectory vm_ = *VmDirectory::open(store_.path(), "vm", VmDirectory::IfMissing::create);
  std::string name_;
  UniqueFd pages_;
};

TEST_F(KeptOpenFileTest, TheAttemptGoesOnceTheFileIsClosed) {
  std::thread closes_it([this] {
    while (!is_kept()) std::this_thread::yield();
    pages_.reset();
  });
  const auto removed = vm_.remove_attempt(name_);
  closes_it.join();
  EXPECT_TRUE(removed) << removed.error().message;
  EXPECT_FALSE(fs::exists(directory()));
}

TEST_F(KeptOpenFileTest, AFileThatStaysOpenIsNamed) {
  const auto removed = vm_.remove_attempt(name_);
  ASSERT_FALSE(removed);
  EXPECT_EQ(removed.error().code, Errc::busy);
  EXPECT_NE(removed.error().message.find(name_ + "/.fuse_hidden"), std::string::npos)
      << removed.error().message;
}

TEST_F(KeptOpenFileTest, TheAttemptThatStayedGoesTheNextTime) {
  ASSERT_FALSE(vm_.remove_attempt(name_));
  pages_.reset();
  const auto removed = vm_.remove_attempt(name_);
  EXPECT_TRUE(removed) << removed.error().message;
  EXPECT_FALSE(fs::exists(directory()));
}

}  // namespace
}  // namespace pageferry

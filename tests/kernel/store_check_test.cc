// The pre-flight on real directories: a good one passes and stays clean, wrong ones are refused
// with their reason.
#include "transport/store_check.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>

#include "fakes/scratch_directory.h"

namespace pageferry {
namespace {

namespace fs = std::filesystem;
using testing_support::ScratchDirectory;

TEST(StoreCheckTest, AWritableDirectoryIsUsable) {
  const ScratchDirectory scratch;
  const StoreReport report = check_store(scratch.path());
  EXPECT_TRUE(report.usable()) << report.refusal();
  EXPECT_FALSE(report.mount.fs_type.empty());
  EXPECT_GT(report.free_bytes, 0U);
  EXPECT_GT(report.sync_ns, 0U);
}

TEST(StoreCheckTest, NothingIsLeftBehind) {
  const ScratchDirectory scratch;
  check_store(scratch.path());
  EXPECT_TRUE(fs::is_empty(scratch.path()));
}

TEST(StoreCheckTest, ASymlinkIsRefused) {
  const ScratchDirectory scratch;
  fs::create_directory(scratch.file("real"));
  fs::create_directory_symlink(scratch.file("real"), scratch.file("link"));
  for (const std::string& path : {scratch.file("link"), scratch.file("link/")}) {
    const StoreReport report = check_store(path);
    EXPECT_NE(report.refusal().find("is a symlink"), std::string::npos) << report.refusal();
  }
}

TEST(StoreCheckTest, AFileIsRefused) {
  const ScratchDirectory scratch;
  std::ofstream(scratch.file("file")) << "x";
  EXPECT_NE(check_store(scratch.file("file")).refusal().find("is not a directory"),
            std::string::npos);
}

TEST(StoreCheckTest, AMissingDirectoryIsRefused) {
  const ScratchDirectory scratch;
  EXPECT_NE(check_store(scratch.file("none")).refusal().find(scratch.file("none")),
            std::string::npos);
}

TEST(StoreCheckTest, ADirectoryWhereNothingCanBeCreatedIsRefused) {
  // /proc has no room for files, not even for root.
  EXPECT_NE(check_store("/proc").refusal().find("cannot be used"), std::string::npos);
}

TEST(StoreCheckTest, AWorldWritableDirectoryIsFlagged) {
  const ScratchDirectory scratch;
  ASSERT_EQ(::chmod(scratch.path().c_str(), 0777), 0);
  const StoreReport report = check_store(scratch.path());
  EXPECT_TRUE(report.usable());
  bool flagged = false;
  for (const StoreFinding& finding : report.findings) {
    flagged = flagged || finding.message.find("0777") != std::string::npos;
  }
  EXPECT_TRUE(flagged);
}

}  // namespace
}  // namespace pageferry

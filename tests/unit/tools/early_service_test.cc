// Which memory map a recovery finds among the run directories of a VM.
#include "tools/pageferry/early_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "fakes/scratch_directory.h"

namespace pageferry {
namespace {

using testing::HasSubstr;

constexpr ProcessIdentity kOurs{.pid = 4711, .start_ticks = 1};
constexpr ProcessIdentity kLater{.pid = 4711, .start_ticks = 2};

class FindMemoryMap : public testing::Test {
 protected:
  std::string directory(const std::string& run_id) const {
    const std::string path = scratch_.file("web/" + run_id);
    std::filesystem::create_directories(path);
    return path;
  }
  void write(const std::string& run_id, const ProcessIdentity& process) const {
    const auto written = write_memory_map(
        directory(run_id),
        {.process = process,
         .qemu_version = 70222,
         .layout = *MemoryLayout::make({{.name = "pc.ram", .length_bytes = 4096}})});
    ASSERT_TRUE(written) << written.error().message;
  }
  Result<std::optional<KeptMemoryMap>> find() const {
    return find_memory_map(scratch_.path(), "web", kOurs);
  }

  testing_support::ScratchDirectory scratch_;
};

TEST_F(FindMemoryMap, IsNoneWhereNothingWasStarted) {
  EXPECT_FALSE(find().value());
}

TEST_F(FindMemoryMap, IsTheOneOfTheProcess) {
  directory("empty");
  write("a1", {.pid = 1, .start_ticks = 1});
  write("b2", kOurs);
  write("c3", kLater);
  const auto found = find();
  ASSERT_TRUE(found) << found.error().message;
  ASSERT_TRUE(*found);
  EXPECT_EQ((*found)->map.process, kOurs);
  EXPECT_EQ((*found)->run_directory, scratch_.file("web/b2"));
}

TEST_F(FindMemoryMap, IsNotThatOfALaterProcessWithTheSamePid) {
  write("c3", kLater);
  EXPECT_FALSE(find().value());
}

TEST_F(FindMemoryMap, IsFoundBesideADamagedOne) {
  std::ofstream(directory("a1") + "/" + kMemoryMapFileName) << "torn";
  write("b2", kOurs);
  EXPECT_TRUE(find().value());
}

TEST_F(FindMemoryMap, ADamagedOneIsNamedWhenThereIsNoOther) {
  std::ofstream(directory("a1") + "/" + kMemoryMapFileName) << "torn";
  std::ofstream(scratch_.file("web/lock")) << "no directory";
  const auto found = find();
  ASSERT_FALSE(found);
  EXPECT_THAT(found.error().message, HasSubstr("a1/memory-map.json"));
}

}  // namespace
}  // namespace pageferry

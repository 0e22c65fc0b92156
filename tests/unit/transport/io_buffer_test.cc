// The pool is bounded, its buffers are aligned, and a buffer comes back when its owner is done.
#include "transport/io_buffer.h"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>
#include <string>

namespace pageferry {
namespace {

// The VmFlags line of the mapping that begins at `start` (proc(5), smaps).
std::string vm_flags_of(const std::byte* start) {
  std::ostringstream beginning;
  beginning << std::hex << reinterpret_cast<std::uintptr_t>(start) << '-';
  std::ifstream smaps("/proc/self/smaps");
  bool found = false;
  for (std::string line; std::getline(smaps, line);) {
    found = found || line.rfind(beginning.str(), 0) == 0;
    if (found && line.rfind("VmFlags:", 0) == 0) return line;
  }
  return {};
}

TEST(AlignedMemoryTest, LessThanAHugePageNeverWaitsForOne) {
  const auto memory = AlignedMemory::map(2 * kIoAlignmentBytes);
  ASSERT_TRUE(memory.has_value());
  EXPECT_NE(vm_flags_of(memory->data()).find(" nh"), std::string::npos);
}

TEST(AlignedMemoryTest, AHugePageOrMoreAsksForThem) {
  const auto memory = AlignedMemory::map(kHugePageBytes);
  ASSERT_TRUE(memory.has_value());
  EXPECT_NE(vm_flags_of(memory->data()).find(" hg"), std::string::npos);
}

TEST(IoBufferPoolTest, BuffersAreAlignedAndDistinct) {
  const auto pool = IoBufferPool::make(3 * kIoAlignmentBytes, 4);
  ASSERT_TRUE(pool.has_value());
  const IoBuffer first = (*pool)->take();
  const IoBuffer second = (*pool)->take();
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(first.bytes().data()) % kIoAlignmentBytes, 0U);
  EXPECT_EQ(first.bytes().size(), 3 * kIoAlignmentBytes);
  EXPECT_EQ(first.bytes().data() + first.bytes().size(), second.bytes().data());
}

TEST(IoBufferPoolTest, AnArenaOfAHugePageBeginsOnOne) {
  const auto pool = IoBufferPool::make(kHugePageBytes, 1);
  ASSERT_TRUE(pool.has_value());
  const IoBuffer buffer = (*pool)->take();
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer.bytes().data()) % kHugePageBytes, 0U);
}

TEST(IoBufferPoolTest, AnExhaustedPoolGivesAnEmptyBuffer) {
  const auto pool = IoBufferPool::make(kIoAlignmentBytes, 2);
  ASSERT_TRUE(pool.has_value());
  const IoBuffer first = (*pool)->take();
  IoBuffer second = (*pool)->take();
  EXPECT_FALSE(static_cast<bool>((*pool)->take()));
  second.reset();
  EXPECT_TRUE(static_cast<bool>((*pool)->take()));
}

TEST(IoBufferPoolTest, AMovedBufferComesBackOnce) {
  const auto pool = IoBufferPool::make(kIoAlignmentBytes, 1);
  ASSERT_TRUE(pool.has_value());
  {
    IoBuffer first = (*pool)->take();
    const IoBuffer second = std::move(first);
    EXPECT_EQ((*pool)->available(), 0U);
  }
  EXPECT_EQ((*pool)->available(), 1U);
}

TEST(IoBufferPoolTest, SizesOutsideTheBoundsAreRefused) {
  EXPECT_EQ(IoBufferPool::make(100, 1).error().code, Errc::invalid);
  EXPECT_EQ(IoBufferPool::make(0, 1).error().code, Errc::invalid);
  EXPECT_EQ(IoBufferPool::make(kIoAlignmentBytes, 0).error().code, Errc::invalid);
  EXPECT_EQ(IoBufferPool::make(kIoPoolBytesMax, 2).error().code, Errc::invalid);
  EXPECT_EQ(IoBufferPool::make(2 * kIoPoolBytesMax, 1).error().code, Errc::invalid);
}

}  // namespace
}  // namespace pageferry

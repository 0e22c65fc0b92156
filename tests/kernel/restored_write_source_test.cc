// RestoredWriteSource beside a real page-in, on one userfaultfd: pages come on demand and by prefetch while threads write to them. The test knows
// what the image holds and what the threads wrote; the source must name each page that differs, and no other where pages come protected.
#include "pager/restored_write_source.h"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <set>
#include <thread>

#include "fakes/memory_page_supply.h"
#include "fakes/page_content.h"
#include "fakes/userfault_memory.h"
#include "pager/hole_service.h"
#include "pager/userfault_page_in.h"

namespace pageferry {
namespace {

using namespace testing_support;
using Kind = RestoredWriteSource::Kind;

constexpr std::uint64_t kRestoredPages = 1024;

struct RestoredCase {
  Backing backing;
  Kind kind;
};

class RestoredWriteSourceTest : public testing::TestWithParam<RestoredCase> {
 protected:
  RestoredWriteSourceTest()
      : layout_(layout_of({{"ram", kRestoredPages}})),
        supply_(layout_),
        memory_(bytes_of_pages(kRestoredPages), GetParam().backing),
        userfault_(open_userfault(Greeting::done, RestoredWriteSource::features(GetParam().kind))) {
    for (std::uint64_t page = 0; page < kRestoredPages; ++page) {
      supply_.set_page(PageIndex{page}, content_of(page, 1));
    }
    uffdio_register request{.range = {.start = memory_.address(), .len = memory_.bytes()},
                            .mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP,
                            .ioctls = 0};
    EXPECT_EQ(::ioctl(userfault_.get(), UFFDIO_REGISTER, &request), 0) << std::strerror(errno);
    const bool file = GetParam().backing == Backing::memfd;
    source_.emplace(layout_,
                    std::vector<RestoredWriteSource::Place>{
                        {.address = memory_.address(),
                         .memory = file ? RestoredWriteSource::Memory::file
                                        : RestoredWriteSource::Memory::anonymous}},
                    userfault_.get(), GetParam().kind);
    EXPECT_TRUE(source_->start(PagesAtStart::not_written));
  }

  // Until every page is there, and somebody has said stop().
  std::jthread begin_page_in(PrefetchOrder order) {
    UserfaultVmm vmm;
    vmm.userfault = duplicate(userfault_);
    vmm.block_addresses = {memory_.address()};
    vmm.placing = {GetParam().backing == Backing::memfd ? Placing::write_protected_with_zeros
                                                        : Placing::write_protected};
    UserfaultPageInOptions options;
    options.page_in.order = order;
    options.serve_until = ServeUntil::vmm_ends;
    auto made = UserfaultPageIn::make(std::move(vmm), layout_, supply_, nullptr, options, clock_);
    EXPECT_TRUE(made) << made.error().message;
    return std::jthread([this, loop = std::move(*made)] {
      const auto end = loop->serve(stop_, [](const UserfaultPageInFigures&) {});
      EXPECT_EQ(end.error().code, Errc::canceled);
    });
  }
  void write(std::uint64_t page, std::byte value) {
    *static_cast<volatile std::byte*>(memory_.page(page) + kPageSizeBytes / 2) = value;
  }
  DirtyBitmap collected() {
    DirtyBitmap dirty(kRestoredPages);
    const auto result = source_->collect_into(dirty);
    EXPECT_TRUE(result) << result.error().message;
    return dirty;
  }

  const MonotonicClock clock_;
  const MemoryLayout layout_;
  MemoryPageSupply supply_;
  UserfaultMemory memory_;
  UniqueFd userfault_;
  CancelSignal stop_;
  std::optional<RestoredWriteSource> source_;
};

TEST_P(RestoredWriteSourceTest, WithDemandAndPrefetchExactlyTheWrittenPagesAreNamed) {
  std::jthread page_in = begin_page_in(PrefetchOrder::linear);
  std::set<std::uint64_t> written;
  for (std::uint64_t i = 0; i < 300; ++i) {
    const std::uint64_t page = (i * 619) % kRestoredPages;
    write(page, std::byte{0xab});
    written.insert(page);
  }
  for (std::uint64_t page = 0; page < kRestoredPages; ++page) {
    static_cast<void>(*static_cast<volatile std::byte*>(memory_.page(page)));
  }
  const DirtyBitmap dirty = collected();
  for (std::uint64_t page = 0; page < kRestoredPages; ++page) {
    EXPECT_EQ(dirty.is_set(PageIndex{page}), written.contains(page)) << page;
  }
  EXPECT_TRUE(collected().empty());
  stop_.cancel();
}

TEST_P(RestoredWriteSourceTest, NoWriteIsLostBetweenCollectionsWhilePagesCome) {
  std::jthread page_in = begin_page_in(PrefetchOrder::linear);
  std::atomic<unsigned> working{2};
  std::array<std::jthread, 2> guest;
  for (std::uint64_t number = 0; number < guest.size(); ++number) {
    guest[number] = std::jthread([&, number] {
      std::uint64_t random = number + 1;
      for (unsigned i = 0; i < 6'000; ++i) {
        random = random * 6364136223846793005U + 1442695040888963407U;
        // Each thread has pages of its own, so that a byte has one writer.
        write(((random >> 33) % (kRestoredPages / 2)) * 2 + number, static_cast<std::byte>(i));
      }
      --working;
    });
  }
  // A copy as a mover makes it: the image, and what was named, read after it was named.
  std::vector<std::byte> copy = contents_of(0, kRestoredPages);
  const auto take = [&] {
    const DirtyBitmap dirty = collected();
    for (std::uint64_t page = 0; page < kRestoredPages; ++page) {
      // In files a page may be named that is missing: its touch brings it.
      if (!dirty.is_set(PageIndex{page})) continue;
      std::memcpy(copy.data() + bytes_of_pages(page), memory_.page(page), kPageSizeBytes);
    }
  };
  while (working > 0) take();
  for (std::jthread& each : guest) each.join();
  take();
  EXPECT_EQ(std::memcmp(copy.data(), memory_.data(), copy.size()), 0);
  stop_.cancel();
}

TEST_P(RestoredWriteSourceTest, AfterTheRestoreHoleServiceAnswersAndWritesAreNamed) {
  {
    std::jthread page_in = begin_page_in(PrefetchOrder::linear);
    for (std::uint64_t page = 0; page < kRestoredPages; ++page) {
      static_cast<void>(*static_cast<volatile std::byte*>(memory_.page(page)));
    }
    stop_.cancel();
  }
  source_->all_are_there();
  auto holes = HoleService::start(userfault_.get(), {{memory_.address(), memory_.bytes()}});
  ASSERT_TRUE(holes) << holes.error().message;
  collected();
  const int how = GetParam().backing == Backing::memfd ? MADV_REMOVE : MADV_DONTNEED;
  ASSERT_EQ(::madvise(memory_.page(10), kPageSizeBytes, how), 0);
  source_->discard({PageIndex{10}, 1});
  EXPECT_TRUE(collected().is_set(PageIndex{10}));
  EXPECT_EQ(Toucher(memory_.page(10)).wait(), std::byte{0});
  write(10, std::byte{1});
  write(20, std::byte{1});
  const DirtyBitmap dirty = collected();
  EXPECT_TRUE(dirty.is_set(PageIndex{10}) && dirty.is_set(PageIndex{20}));
  EXPECT_EQ(dirty.count(), 2U);
}

INSTANTIATE_TEST_SUITE_P(Memory, RestoredWriteSourceTest,
                         testing::Values(RestoredCase{Backing::anonymous, Kind::asynchronous},
                                         RestoredCase{Backing::memfd, Kind::asynchronous},
                                         RestoredCase{Backing::anonymous, Kind::synchronous},
                                         RestoredCase{Backing::memfd, Kind::synchronous}),
                         [](const auto& each) {
                           const std::string memory =
                               each.param.backing == Backing::memfd ? "Memfd" : "Anonymous";
                           return memory +
                                  (each.param.kind == Kind::synchronous ? "Sync" : "Async");
                         });

}  // namespace
}  // namespace pageferry

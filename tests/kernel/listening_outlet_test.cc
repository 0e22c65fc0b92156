// ListeningOutlet on the real userfaultfd: what is prefetched gives way to a fault within a few pages.
#include "pager/listening_outlet.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <list>
#include <vector>

#include "fakes/page_content.h"
#include "fakes/userfault_memory.h"

namespace pageferry {
namespace {

using namespace testing_support;
using testing::AllOf;
using testing::ElementsAre;
using testing::Gt;
using testing::IsEmpty;
using testing::Lt;

constexpr std::uint64_t kGuestPages = 256;
constexpr std::uint64_t kTouched = 200;
constexpr PageChannel kPrefetched = PageChannel::background;

class ListeningOutletTest : public testing::Test {
 protected:
  void SetUp() override {
    register_missing(userfault_, ram_);
    const auto opened = placing_.open(duplicate(userfault_), std::nullopt);
    ASSERT_TRUE(opened) << opened.error().message;
  }
  void somebody_waits() {
    touchers_.emplace_back(ram_.page(kTouched));
    ASSERT_TRUE(fault_comes(placing_.fd()));
  }
  std::uint64_t put(PageRun run, PageChannel channel = kPrefetched) {
    const auto taken = outlet_.put_pages(channel, run, contents_of(raw(run.first), run.pages));
    EXPECT_TRUE(taken) << taken.error().message;
    return taken.value_or(0);
  }
  std::uint64_t put_zeros(PageRun run) {
    const auto taken = outlet_.put_zeros(kPrefetched, run);
    EXPECT_TRUE(taken) << taken.error().message;
    return taken.value_or(0);
  }
  std::vector<PageRun> faults() {
    std::vector<PageRun> faults;
    const auto read = outlet_.read_faults(faults);
    EXPECT_TRUE(read) << read.error().message;
    return faults;
  }

  UserfaultMemory ram_{bytes_of_pages(kGuestPages)};
  std::list<Toucher> touchers_;  // wait, in the worst case, until what is below is closed
  MemoryLayout layout_ = layout_of({{"pc.ram", kGuestPages}});
  UniqueFd userfault_ = open_userfault();
  UserfaultOutlet placing_{layout_, {ram_.address()}};
  ListeningOutlet outlet_{placing_};
};

TEST_F(ListeningOutletTest, WithoutFaultsARunIsTakenAsAWhole) {
  EXPECT_EQ(put({PageIndex{0}, 64}), 64U);
  EXPECT_FALSE(outlet_.has_heard());
  const auto expected = contents_of(0, 64);
  EXPECT_EQ(std::memcmp(ram_.data(), expected.data(), expected.size()), 0);
}

TEST_F(ListeningOutletTest, AFaultEndsARunOfPrefetchedPages) {
  somebody_waits();
  EXPECT_THAT(put({PageIndex{0}, 64}), AllOf(Gt(0U), Lt(64U)));
  EXPECT_TRUE(outlet_.has_heard());
  put({PageIndex{kTouched}, 1}, PageChannel::urgent);
  touchers_.front().wait();
}

TEST_F(ListeningOutletTest, AFaultEndsARunOfZeroPages) {
  somebody_waits();
  EXPECT_THAT(put_zeros({PageIndex{0}, kTouched}), AllOf(Gt(0U), Lt(kTouched)));
  EXPECT_TRUE(outlet_.has_heard());
  put({PageIndex{kTouched}, 1}, PageChannel::urgent);
  touchers_.front().wait();
}

TEST_F(ListeningOutletTest, NothingPrefetchedIsTakenUntilTheFaultWasFetched) {
  somebody_waits();
  const std::uint64_t taken = put({PageIndex{0}, 64});
  EXPECT_EQ(put({PageIndex{taken}, 64 - taken}), 0U);
  EXPECT_THAT(faults(), ElementsAre(PageRun{PageIndex{kTouched}, 1}));
  EXPECT_FALSE(outlet_.has_heard());
  EXPECT_EQ(put({PageIndex{taken}, 64 - taken}), 64U - taken);
  EXPECT_EQ(put({PageIndex{kTouched}, 1}, PageChannel::urgent), 1U);
  EXPECT_EQ(touchers_.front().wait(), contents_of(kTouched, 1)[0]);
}

TEST_F(ListeningOutletTest, APageThatSomebodyWaitsForIsTakenWhateverWasHeard) {
  somebody_waits();
  put({PageIndex{0}, 64});
  ASSERT_TRUE(outlet_.has_heard());
  EXPECT_EQ(put({PageIndex{kTouched}, 1}, PageChannel::urgent), 1U);
  EXPECT_EQ(touchers_.front().wait(), contents_of(kTouched, 1)[0]);
}

TEST_F(ListeningOutletTest, EachFaultIsToldOnce) {
  somebody_waits();
  put({PageIndex{0}, 64});
  EXPECT_THAT(faults(), ElementsAre(PageRun{PageIndex{kTouched}, 1}));
  EXPECT_THAT(faults(), IsEmpty());
  put({PageIndex{kTouched}, 1}, PageChannel::urgent);
  touchers_.front().wait();
}

}  // namespace
}  // namespace pageferry

// A guest that writes all the time goes through a real page file: passes over real write protection, O_DIRECT from its memory, and
// every page reads back as the guest left it.
#include "pager/page_out.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <atomic>
#include <random>
#include <thread>

#include "fakes/page_file_fixture.h"
#include "fakes/scratch_directory.h"
#include "fakes/tracked_guest.h"
#include "transport/aio_file.h"
#include "transport/threaded_file.h"

namespace pageferry {
namespace {

using namespace testing_support;

constexpr std::uint64_t kPassedPages = 4096;
constexpr std::uint64_t kHotPages = 512;

// A vCPU: writes words all over its hot pages, as fast as it can.
class WritingGuest {
 public:
  explicit WritingGuest(UserfaultMemory& memory) : memory_(memory) {}
  ~WritingGuest() { pause(); }
  void resume() {
    running_ = true;
    vcpu_ = std::thread([this] { run(); });
  }
  void pause() {
    running_ = false;
    if (vcpu_.joinable()) vcpu_.join();
  }
  // Waits until it has written so often again.
  void let_write(std::uint64_t times) const {
    const std::uint64_t enough = writes_ + times;
    while (writes_ < enough) std::this_thread::yield();
  }

 private:
  void run() {
    std::mt19937_64 random(7);
    while (running_) {
      const std::uint64_t page = random() % kHotPages * (kPassedPages / kHotPages);
      auto* words = reinterpret_cast<volatile std::uint64_t*>(memory_.page(page));
      words[random() % (kPageSizeBytes / sizeof(std::uint64_t))] = ++writes_;
    }
  }
  UserfaultMemory& memory_;
  std::atomic<bool> running_{false};
  std::atomic<std::uint64_t> writes_{0};
  std::thread vcpu_;
};

class PageOutKernelTest : public testing::TestWithParam<std::tuple<Tracking, Backing>> {
 protected:
  void SetUp() override {
    for (std::uint64_t page = 0; page < kPassedPages; ++page) {
      // Every fourth page stays as it was born.
      if (page % 4 == 3) continue;
      const PageArray content = content_of(page, 1);
      std::copy(content.begin(), content.end(), ram_.page(page));
    }
    source_ = make_source(std::get<0>(GetParam()), layout_, {ram_.address()});
    directory_ = UniqueFd(::open(scratch_.path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    auto file = AioFile::create(directory_.get(), "pages", scratch_.path(), {});
    ASSERT_TRUE(file) << file.error().message;
    auto threaded = ThreadedFile::over(std::move(*file), Seconds(10));
    ASSERT_TRUE(threaded);
    writer_ = writer_on(std::move(*threaded), layout_, small_options());
    memory_.emplace(GuestMemory::make(layout_, {ram_.page(0)}).value());
  }
  // A page that the guest else leaves alone: no pass brings it by chance.
  void write_cold_page(std::uint64_t number) {
    *reinterpret_cast<volatile std::uint64_t*>(ram_.page(number * kPassedPages / kHotPages + 1)) =
        ~number;
  }
  void expect_stored_as_it_is() {
    auto file = AioFile::open(directory_.get(), "pages", scratch_.path(), {});
    ASSERT_TRUE(file) << file.error().message;
    auto reader = open_reader(std::move(*file));
    ASSERT_TRUE(reader) << reader.error().message;
    for (std::uint64_t page = 0; page < kPassedPages; ++page) {
      const std::byte* now = ram_.page(page);
      ASSERT_EQ(read_page(**reader, page), std::vector<std::byte>(now, now + kPageSizeBytes))
          << page;
    }
  }

  ScratchDirectory scratch_;
  UniqueFd directory_;
  MemoryLayout layout_ = layout_of({{"pc.ram", kPassedPages}});
  UserfaultMemory ram_{bytes_of_pages(kPassedPages), std::get<1>(GetParam())};
  CancelSignal cancel_;
  std::unique_ptr<DirtySource> source_;
  std::optional<GuestMemory> memory_;
  std::unique_ptr<PageFileWriter> writer_;
};

INSTANTIATE_TEST_SUITE_P(All, PageOutKernelTest,
                         testing::Combine(testing::Values(Tracking::async, Tracking::sync),
                                          testing::Values(Backing::anonymous, Backing::memfd)),
                         name_of_tracked_backing);

TEST_P(PageOutKernelTest, AGuestThatWritesAllTheTimeIsStoredAsItWasLeft) {
  WritingGuest guest(ram_);
  ASSERT_TRUE(source_->start());
  guest.resume();
  PageOut page_out(*memory_, *source_, *writer_, cancel_, real_clock());
  ConvergenceLimits limits;
  limits.downtime_max = Nanoseconds(1);
  limits.passes_max = 8;
  const auto brownout = page_out.run_brownout(limits, [&](const PassStats& pass, const PassFacts&) {
    guest.let_write(1000);
    write_cold_page(pass.number);
  });
  ASSERT_TRUE(brownout) << brownout.error().message;
  guest.let_write(1000);
  write_cold_page(0);
  guest.pause();
  const auto last = page_out.run_blackout();
  ASSERT_TRUE(last) << last.error().message;
  ASSERT_TRUE(writer_->finish_and_commit());
  ASSERT_TRUE(source_->stop());
  EXPECT_GT(last->pages, 0U);
  EXPECT_LE(last->pages, kHotPages + limits.passes_max + 1);
  writer_.reset();
  expect_stored_as_it_is();
}

TEST_P(PageOutKernelTest, PagesThatNeverWereTakeNoSpace) {
  ASSERT_TRUE(source_->start());
  PageOut page_out(*memory_, *source_, *writer_, cancel_, real_clock());
  const auto brownout = page_out.run_brownout({}, {});
  ASSERT_TRUE(brownout) << brownout.error().message;
  EXPECT_EQ(brownout->end, BrownoutEnd::nothing_left);
  EXPECT_EQ(writer_->stats().home_pages, kPassedPages / 4 * 3);
}

}  // namespace
}  // namespace pageferry

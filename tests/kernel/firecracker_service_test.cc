// FirecrackerService on the real userfaultfd, in memory of this process, with its socket: threads that touch, a balloon, and the ends.
#include "vmstate/firecracker_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <array>
#include <future>
#include <memory>
#include <thread>
#include <vector>

#include "fakes/memory_page_supply.h"
#include "fakes/page_content.h"
#include "fakes/userfault_memory.h"

namespace pageferry {
namespace {

using namespace testing_support;
using testing::HasSubstr;

constexpr std::uint64_t kLowPages = 192;
constexpr std::uint64_t kHighPages = 64;
constexpr std::uint64_t kPages = kLowPages + kHighPages;

// Two regions whose contents lie in the source the other way round. The client's process is not seen, so that a closed connection is its
// end.
class FirecrackerServiceTest : public testing::Test {
 protected:
  FirecrackerServiceTest() : source_(layout_of({{"memory", kPages}})) {
    for (std::uint64_t page = 0; page < kPages; ++page) {
      if (page % 7 != 0) source_.set_page(PageIndex{page}, content_of(page, 1));
    }
    register_missing(userfault_, low_);
    register_missing(userfault_, high_);
  }
  ~FirecrackerServiceTest() override {
    stop_.cancel();
    if (serving_.joinable()) serving_.join();
  }

  void start(PrefetchOrder order) {
    std::array<int, 2> ends{};
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()), 0);
    client_end_.reset(ends[0]);
    FirecrackerClient client;
    client.connection.reset(ends[1]);
    client.userfault = duplicate(userfault_);
    client.regions.layout = layout_of({{"region 0", kLowPages}, {"region 1", kHighPages}});
    client.regions.addresses = {low_.address(), high_.address()};
    client.regions.source_pages = {PageIndex{kHighPages}, PageIndex{0}};
    auto service = FirecrackerService::start(std::move(client), source_, order, clock_);
    ASSERT_TRUE(service) << service.error().message;
    service_ = std::move(*service);
    std::promise<Result<void>> ended;
    ended_ = ended.get_future();
    serving_ = std::thread([this, promise = std::move(ended)]() mutable {
      promise.set_value(service_->serve(stop_, [this](const UserfaultPageInFigures& figures) {
        if (figures.resident_after && !std::exchange(told_resident_, true)) resident_.set_value();
      }));
    });
  }
  Result<void> end() {
    serving_.join();
    return ended_.get();
  }
  void wait_until_resident() {
    ASSERT_EQ(resident_.get_future().wait_for(Seconds(30)), std::future_status::ready);
  }
  const std::byte* page_of_guest(std::uint64_t page) const {
    return page < kLowPages ? low_.page(page) : high_.page(page - kLowPages);
  }
  static std::vector<std::byte> content_of_guest(std::uint64_t page) {
    const std::uint64_t source = page < kLowPages ? page + kHighPages : page - kLowPages;
    return source % 7 == 0 ? std::vector<std::byte>(kPageSizeBytes) : contents_of(source, 1);
  }
  bool is_right(std::uint64_t page, const std::vector<std::byte>& expected) const {
    return std::memcmp(page_of_guest(page), expected.data(), expected.size()) == 0;
  }
  // By several threads, each from another page on.
  void expect_pages(std::uint64_t first, std::uint64_t end) {
    std::vector<std::jthread> threads;
    for (std::uint64_t thread = 0; thread < 4; ++thread) {
      threads.emplace_back([=, this] {
        for (std::uint64_t i = 0; i < end - first; ++i) {
          const std::uint64_t page = first + (i * 5 + thread * 37) % (end - first);
          EXPECT_TRUE(is_right(page, content_of_guest(page))) << page;
        }
      });
    }
  }

  const MonotonicClock clock_;
  CancelSignal stop_;
  MemoryPageSupply source_;
  UserfaultMemory low_{bytes_of_pages(kLowPages)};
  UserfaultMemory high_{bytes_of_pages(kHighPages)};
  UniqueFd userfault_ = open_ballooning_userfault();
  UniqueFd client_end_;
  std::unique_ptr<FirecrackerService> service_;
  std::promise<void> resident_;
  bool told_resident_ = false;  // the serving thread's
  std::future<Result<void>> ended_;
  std::thread serving_;
};

TEST_F(FirecrackerServiceTest, ThreadsThatTouchAllPagesFindThemOnDemand) {
  start(PrefetchOrder::none);
  expect_pages(0, kPages);
  client_end_.reset();
  EXPECT_TRUE(end());
  const UserfaultPageInFigures figures = service_->figures();
  EXPECT_EQ(figures.pages_total, kPages);
  EXPECT_GT(figures.faults, 0U);
  EXPECT_EQ(figures.pages_removed, 0U);
}

TEST_F(FirecrackerServiceTest, PrefetchBringsAllOfItAndTheServiceGoesOn) {
  start(PrefetchOrder::linear);
  wait_until_resident();
  for (std::uint64_t page = 0; page < kPages; ++page) {
    EXPECT_TRUE(is_right(page, content_of_guest(page))) << page;
  }
  Remover(high_, 3, 2).wait();
  EXPECT_TRUE(is_right(kLowPages + 3, std::vector<std::byte>(kPageSizeBytes)));
  client_end_.reset();
  EXPECT_TRUE(end());
  EXPECT_EQ(service_->figures().pages_removed, 2U);
  EXPECT_EQ(service_->figures().removed_faults, 1U);
}

TEST_F(FirecrackerServiceTest, WhatIsRemovedWhilePagesComeIsZeroForAllWhoTouchIt) {
  start(PrefetchOrder::linear);
  for (std::uint64_t page = 0; page < kHighPages; page += 8) {
    Remover(high_, page, 8).wait();
    std::vector<std::jthread> threads;
    for (int thread = 0; thread < 3; ++thread) {
      threads.emplace_back([=, this] {
        for (std::uint64_t i = page; i < page + 8; ++i) {
          EXPECT_TRUE(is_right(kLowPages + i, std::vector<std::byte>(kPageSizeBytes))) << i;
        }
      });
    }
  }
  expect_pages(0, kLowPages);
  client_end_.reset();
  EXPECT_TRUE(end());
}

TEST_F(FirecrackerServiceTest, APageThatCannotBeProvedEndsItAndNobodyGetsIt) {
  source_.break_page(PageIndex{10});
  start(PrefetchOrder::none);
  Toucher toucher(high_.page(10));
  const auto ended = end();
  ASSERT_FALSE(ended);
  EXPECT_EQ(ended.error().code, Errc::corrupt);
  EXPECT_THAT(ended.error().message, HasSubstr("block 'region 1', offset 0xa000"));
  EXPECT_FALSE(toucher.has_seen());
  service_.reset();
  EXPECT_FALSE(toucher.has_seen()) << "whoever holds the userfaultfd keeps it waiting";
  const auto bytes = contents_of(10, 1);
  uffdio_copy request{.dst = high_.address() + bytes_of_pages(10),
                      .src = reinterpret_cast<std::uintptr_t>(bytes.data()),
                      .len = bytes.size(),
                      .mode = 0,
                      .copy = 0};
  ASSERT_EQ(::ioctl(userfault_.get(), UFFDIO_COPY, &request), 0);
  EXPECT_EQ(toucher.wait(), bytes[0]);
}

TEST_F(FirecrackerServiceTest, StoppedItIsCanceled) {
  start(PrefetchOrder::none);
  stop_.cancel();
  const auto ended = end();
  ASSERT_FALSE(ended);
  EXPECT_EQ(ended.error().code, Errc::canceled);
}

TEST_F(FirecrackerServiceTest, WhatIsSaidOnTheConnectionIsNotHeard) {
  start(PrefetchOrder::none);
  ASSERT_EQ(::send(client_end_.get(), "more", 4, 0), 4);
  expect_pages(0, kPages);
  client_end_.reset();
  EXPECT_TRUE(end());
}

}  // namespace
}  // namespace pageferry

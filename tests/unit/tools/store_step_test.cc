// A step on the store that hangs never holds up the one who waits for it.
#include "tools/pageferry/store_step.h"

#include <gtest/gtest.h>
#include <poll.h>

#include <thread>

namespace pageferry {
namespace {

// Waits until it is let go, as a step on a store that hangs does.
Result<int> hanging_step(const std::shared_ptr<CancelSignal>& let_go) {
  pollfd waiting{.fd = let_go->fd(), .events = POLLIN, .revents = 0};
  ::poll(&waiting, 1, -1);
  return 1;
}

TEST(StoreStep, OutcomeIsReturned) {
  const Result<int> done = run_store_step<int>("seven", {}, [] { return Result<int>(7); });
  ASSERT_TRUE(done) << done.error().message;
  EXPECT_EQ(*done, 7);
}

TEST(StoreStep, ErrorOfTheStepIsReturned) {
  const Result<void> done = run_store_step<void>(
      "full", {}, []() -> Result<void> { return fail(Errc::no_space, "no room"); });
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().code, Errc::no_space);
}

TEST(StoreStep, CancelEndsTheWaitForAStepThatHangs) {
  auto let_go = std::make_shared<CancelSignal>();
  CancelSignal stop;
  std::thread other([&stop] { stop.cancel(); });
  const auto done = run_store_step<int>("hangs", {&stop, Deadline::never()},
                                        [let_go] { return hanging_step(let_go); });
  other.join();
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().code, Errc::canceled);
  let_go->cancel();
}

TEST(StoreStep, DeadlineEndsTheWaitAndNamesTheStep) {
  auto let_go = std::make_shared<CancelSignal>();
  const MonotonicClock clock;
  const auto done =
      run_store_step<int>("fsync of it", {nullptr, Deadline::after(clock, Milliseconds(1))},
                          [let_go] { return hanging_step(let_go); });
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().code, Errc::timeout);
  EXPECT_NE(done.error().message.find("fsync of it"), std::string::npos);
  let_go->cancel();
}

}  // namespace
}  // namespace pageferry

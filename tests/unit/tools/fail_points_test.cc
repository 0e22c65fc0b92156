// Fail points: parsed strictly, silent unless asked.
#include "tools/pageferry/fail_points.h"

#include <gtest/gtest.h>
#include <signal.h>

namespace pageferry {
namespace {

TEST(FailPoints, UnknownPointIsRefusedAndAllAreNamed) {
  auto points = FailPoints::parse({"nowhere=kill"});
  ASSERT_FALSE(points);
  EXPECT_NE(points.error().message.find("source.before-shut"), std::string::npos);
}

TEST(FailPoints, UnknownActionIsRefused) {
  EXPECT_FALSE(FailPoints::parse({"source.setup=explode"}));
  EXPECT_FALSE(FailPoints::parse({"source.setup"}));
  EXPECT_FALSE(FailPoints::parse({"source.setup=wait:"}));
}

TEST(FailPoints, PointThatWasNotAskedForDoesNothing) {
  auto points = FailPoints::parse({"source.setup=error"});
  ASSERT_TRUE(points);
  EXPECT_TRUE(points->hit("source.blackout"));
}

TEST(FailPoints, ErrorFailsTheStep) {
  auto points = FailPoints::parse({"source.setup=error"});
  ASSERT_TRUE(points);
  auto hit = points->hit("source.setup");
  ASSERT_FALSE(hit);
  EXPECT_EQ(hit.error().code, Errc::io);
}

TEST(FailPoints, PointActsOnceHoweverOftenItIsPassed) {
  auto points = FailPoints::parse({"source.pass1=error"});
  ASSERT_TRUE(points);
  const FailPoints copy = *points;
  EXPECT_FALSE(points->hit("source.pass1"));
  EXPECT_TRUE(copy.hit("source.pass1"));
}

TEST(FailPointsDeathTest, KillKills) {
  auto points = FailPoints::parse({"source.setup=kill"});
  ASSERT_TRUE(points);
  EXPECT_EXIT([[maybe_unused]] auto hit = points->hit("source.setup"),
              ::testing::KilledBySignal(SIGKILL), "");
}

TEST(FailPoints, SpecsOfOneSideArePassedOn) {
  auto points = FailPoints::parse({"source.setup=kill", "destination.loaded=stop"});
  ASSERT_TRUE(points);
  EXPECT_EQ(points->specs_for("destination."), std::vector<std::string>{"destination.loaded=stop"});
}

}  // namespace
}  // namespace pageferry

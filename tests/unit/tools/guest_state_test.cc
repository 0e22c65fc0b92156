// GuestState, the rules of the hook: every request in every place, against a table that a person can check with docs/hook-protocol.md; and what
// follows from what happened.
#include "tools/vmm_hook/guest_state.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace pageferry {
namespace {

using hook_protocol::Request;
using hook_protocol::Type;

// A guest in each place.
GuestState running() {
  return GuestState(HookStart::own_guest);
}
GuestState tracked() {
  GuestState guest = running();
  guest.mover_came();
  guest.tracking(true);
  return guest;
}
GuestState paused() {
  GuestState guest = tracked();
  guest.paused();
  return guest;
}
GuestState forsaken() {
  GuestState guest = paused();
  guest.forsake();
  return guest;
}
GuestState committed() {
  GuestState guest = paused();
  guest.committed(4);
  return guest;
}
GuestState moved_away() {
  GuestState guest = committed();
  guest.ended();
  return guest;
}
GuestState incoming() {
  return GuestState(HookStart::incoming);
}
GuestState loaded() {
  GuestState guest = incoming();
  guest.loaded("attempt");
  return guest;
}
GuestState restoring() {
  GuestState guest = loaded();
  guest.resumed(5);
  return guest;
}

bool may(const GuestState& guest, Type type, HookRole role, std::uint64_t epoch = 5) {
  const auto checked = guest.check({.type = type, .epoch = epoch}, role);
  if (!checked) {
    EXPECT_EQ(checked.error().code, Errc::vmm);
  }
  return checked.has_value();
}

TEST(GuestStateTest, EachPlaceGrantsWhatTheTableSays) {
  const std::vector<std::pair<std::string, GuestState>> places = {
      {"running", running()},   {"tracked", tracked()},     {"paused", paused()},
      {"forsaken", forsaken()}, {"committed", committed()}, {"moved_away", moved_away()},
      {"incoming", incoming()}, {"loaded", loaded()},       {"restoring", restoring()}};
  struct Row {
    Type type;
    HookRole role;
    std::string granted;  // one letter for each place, in order: y or -
  };
  const std::vector<Row> rows = {{Type::track, HookRole::mover, "y-------y"},
                                 {Type::collect, HookRole::mover, "-yyyyy---"},
                                 {Type::untrack, HookRole::mover, "-yyyyy---"},
                                 {Type::pause, HookRole::mover, "yy-------"},
                                 {Type::save_state, HookRole::mover, "--y------"},
                                 {Type::commit, HookRole::mover, "--y------"},
                                 {Type::resume, HookRole::mover, "----y--y-"},
                                 {Type::resume, HookRole::restorer, "----y--y-"},
                                 {Type::end, HookRole::mover, "----y----"},
                                 {Type::take_userfault, HookRole::restorer, "------yyy"},
                                 {Type::load_state, HookRole::restorer, "------y--"},
                                 {Type::resident, HookRole::restorer, "------yyy"},
                                 {Type::get_state, HookRole::observer, "yyyyyyyyy"}};
  for (const Row& row : rows) {
    for (std::size_t i = 0; i < places.size(); ++i) {
      EXPECT_EQ(may(places[i].second, row.type, row.role), row.granted[i] == 'y')
          << "request " << static_cast<int>(row.type) << ", " << places[i].first;
    }
  }
}

TEST(GuestStateTest, AnObserverOnlyLooks) {
  for (const Type type : {Type::track, Type::collect, Type::pause, Type::commit, Type::resume,
                          Type::end, Type::load_state, Type::resident, Type::share_progress}) {
    EXPECT_FALSE(may(committed(), type, HookRole::observer)) << static_cast<int>(type);
  }
}

TEST(GuestStateTest, OnlyALaterEpochResumes) {
  GuestState guest = committed();
  EXPECT_FALSE(may(guest, Type::resume, HookRole::mover, 3));
  EXPECT_FALSE(may(guest, Type::resume, HookRole::mover, 4));
  EXPECT_TRUE(may(guest, Type::resume, HookRole::mover, 5));
  guest.resumed(9);
  guest.paused();
  EXPECT_FALSE(may(guest, Type::commit, HookRole::mover, 8)) << "it runs under 9";
  EXPECT_TRUE(may(guest, Type::commit, HookRole::mover, 9));
}

TEST(GuestStateTest, EpochZeroCountsAsCommitted) {
  GuestState guest = paused();
  guest.committed(0);
  EXPECT_FALSE(may(guest, Type::resume, HookRole::mover, 0));
  EXPECT_TRUE(guest.facts().has_epoch);
}

TEST(GuestStateTest, OnlyAPausedGuestIsForsaken) {
  GuestState guest = committed();
  guest.mover_left();
  EXPECT_FALSE(guest.is_forsaken());
  guest = tracked();
  guest.mover_left();
  EXPECT_FALSE(guest.is_forsaken());
  guest = paused();
  guest.mover_left();
  EXPECT_TRUE(guest.is_forsaken());
  guest.resumed_by_itself();
  EXPECT_FALSE(guest.is_forsaken());
  EXPECT_EQ(guest.state(), HookState::running);
}

TEST(GuestStateTest, TrackingSinceAnAttemptNeedsThatOneAndEveryWriteKnown) {
  GuestState guest = restoring();
  const Request since{.type = Type::track, .attempt_id = "attempt"};
  EXPECT_EQ(guest.facts().tracked_since_attempt, "");
  EXPECT_EQ(guest.check(since, HookRole::mover).error().code, Errc::not_found);
  guest.knows_restored_writes(true);
  EXPECT_EQ(guest.facts().tracked_since_attempt, "attempt");
  EXPECT_TRUE(guest.check(since, HookRole::mover));
  const Request other{.type = Type::track, .attempt_id = "other"};
  EXPECT_EQ(guest.check(other, HookRole::mover).error().code, Errc::not_found);
}

TEST(GuestStateTest, WithoutAnAttemptNothingIsTrackedSinceOne) {
  GuestState guest = running();
  guest.knows_restored_writes(true);
  EXPECT_EQ(guest.facts().tracked_since_attempt, "");
}

TEST(GuestStateTest, TheStateThatPeopleSee) {
  EXPECT_EQ(running().state(), HookState::running);
  EXPECT_EQ(tracked().state(), HookState::moving);
  EXPECT_EQ(paused().state(), HookState::paused);
  EXPECT_EQ(committed().state(), HookState::committed);
  EXPECT_EQ(moved_away().state(), HookState::moved_away);
  EXPECT_EQ(loaded().state(), HookState::incoming);
  EXPECT_EQ(restoring().state(), HookState::restoring);
  GuestState guest = restoring();
  guest.became_resident();
  EXPECT_EQ(guest.state(), HookState::running);
}

}  // namespace
}  // namespace pageferry

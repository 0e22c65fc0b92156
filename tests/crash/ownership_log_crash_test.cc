// A tool that writes a record and dies at every single step, with and without a power cut after it: what the next tool
// reads is a whole record or none, what write() called written is still there, and the next tool gets its own record
// written or learns whose is there.
#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <utility>

#include "fakes/memory_record_files.h"
#include "fakes/ownership_samples.h"
#include "transport/ownership_log.h"

namespace pageferry {
namespace {

using namespace testing_support;

const OwnershipRecord kOpened = sample_record(0, OwnerFact{}, sample_writer('a', 1));
const OwnershipRecord kOurs = sample_record(0, releases_image(0), sample_writer('a', 1));
const OwnershipRecord kTheirs = sample_record(0, releases_nothing(), sample_writer('a', 2));

enum class PowerCut { no, yes };

struct Life {
  bool died = false;
  std::optional<RecordOutcome> outcome;
};

OwnershipLog log_on(MemoryRecordStore& store, MemoryRecordFiles::Faults faults = {}) {
  auto files = std::make_unique<MemoryRecordFiles>(store);
  if (faults) files->faults = std::move(faults);
  return OwnershipLog(std::move(files));
}

MemoryRecordStore opened_store() {
  MemoryRecordStore store;
  const CancelSignal stop;
  EXPECT_TRUE(log_on(store).write(kOpened, WhenRefused::give_up, stop));
  return store;
}

// Writes kOurs; the operation with number `at` gets `fault`.
Life live(MemoryRecordStore& store, std::size_t at, RecordFault fault) {
  Life life;
  const CancelSignal stop;
  auto log = log_on(store, [at, fault](std::size_t operation, std::string_view) {
    return operation == at ? fault : RecordFault::none;
  });
  try {
    const auto outcome = log.write(kOurs, WhenRefused::repeat, stop);
    EXPECT_TRUE(outcome) << outcome.error().message;
    if (outcome) life.outcome = *outcome;
  } catch (const ProcessDied&) {
    life.died = true;
  }
  return life;
}

void check_next_life(MemoryRecordStore& store, const Life& life, PowerCut power_cut) {
  if (power_cut == PowerCut::yes) store.power_cut();
  const auto snapshot = log_on(store).read();
  ASSERT_TRUE(snapshot) << snapshot.error().message;
  const auto& found = snapshot->top().released;
  if (found) {
    EXPECT_EQ(*found, kOurs);
  }
  if (life.outcome) {
    EXPECT_TRUE(found) << "called written, and gone";
  }
  // What was seen once stays, whatever happens to the power.
  store.power_cut();
  const CancelSignal stop;
  const auto outcome = log_on(store).write(kTheirs, WhenRefused::repeat, stop);
  ASSERT_TRUE(outcome) << outcome.error().message;
  EXPECT_EQ(outcome->kind, found ? RecordOutcome::Kind::taken : RecordOutcome::Kind::written);
  if (found) {
    EXPECT_EQ(outcome->winner, kOurs);
  }
  ASSERT_TRUE(log_on(store).remove_leftovers(sample_id(9)));
  EXPECT_EQ(store.list(), (std::vector<std::string>{"owner.0", "released.0"}));
}

class OwnershipLogCrash : public ::testing::TestWithParam<RecordFault> {};

TEST_P(OwnershipLogCrash, AtEveryStepLeavesAWholeRecordOrNone) {
  const RecordFault fault = GetParam();
  for (const PowerCut power_cut : {PowerCut::no, PowerCut::yes}) {
    bool died_somewhere = false;
    for (std::size_t at = 0; at < 8; ++at) {
      SCOPED_TRACE(at);
      MemoryRecordStore store = opened_store();
      const Life life = live(store, at, fault);
      died_somewhere = died_somewhere || life.died;
      check_next_life(store, life, power_cut);
    }
    EXPECT_TRUE(died_somewhere) << "no step was hit: this test would be blind";
  }
}

INSTANTIATE_TEST_SUITE_P(All, OwnershipLogCrash,
                         ::testing::Values(RecordFault::dies_before, RecordFault::dies_after,
                                           RecordFault::torn),
                         [](const auto& fault) -> std::string {
                           switch (fault.param) {
                             case RecordFault::dies_before:
                               return "Before";
                             case RecordFault::dies_after:
                               return "After";
                             default:
                               return "Torn";
                           }
                         });

// A reader that dies between reading and its sync has promised nothing; one that returned has.
TEST(OwnershipLogReadCrash, WhatReadReturnedSurvivesAPowerCut) {
  for (std::size_t at = 0; at < 20; ++at) {
    SCOPED_TRACE(at);
    MemoryRecordStore store = opened_store();
    store.names["released.0"] = std::make_shared<std::string>(*encode_record(kOurs));
    std::optional<OwnershipSnapshot> seen;
    auto log = log_on(store, [at](std::size_t operation, std::string_view) {
      return operation == at ? RecordFault::dies_before : RecordFault::none;
    });
    try {
      auto snapshot = log.read();
      ASSERT_TRUE(snapshot);
      seen = *snapshot;
    } catch (const ProcessDied&) {
    }
    store.power_cut();
    if (seen) {
      EXPECT_EQ(store.names.count("released.0"), 1U);
    }
  }
}

}  // namespace
}  // namespace pageferry

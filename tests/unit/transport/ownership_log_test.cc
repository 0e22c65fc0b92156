// OwnershipLog over a directory in memory: what it concludes when replies are lost, links land late
// and the store refuses, and that it reads in the order rule 4 demands.
#include "transport/ownership_log.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <utility>

#include "fakes/memory_record_files.h"
#include "fakes/ownership_samples.h"

namespace pageferry {
namespace {

using namespace testing_support;

struct Bench {
  MemoryRecordStore store;
  CancelSignal stop;
  MemoryRecordFiles* files = nullptr;  // of the log made last

  OwnershipLog log() {
    auto made = std::make_unique<MemoryRecordFiles>(store);
    files = made.get();
    return OwnershipLog(std::move(made));
  }
  void put(const OwnershipRecord& record) {
    auto bytes = encode_record(record);
    ASSERT_TRUE(bytes);
    store.names[record.file_name()] = std::make_shared<std::string>(*bytes);
  }
  std::size_t temporaries() const {
    std::size_t count = 0;
    for (const auto& [name, bytes] : store.names) count += name.front() == '.' ? 1U : 0U;
    return count;
  }
};

// A script: the n-th call of `call` gets `fault`.
MemoryRecordFiles::Faults nth(std::string call, std::size_t n, RecordFault fault) {
  return [call = std::move(call), n, fault, seen = std::size_t{0}](std::size_t,
                                                                   std::string_view name) mutable {
    return name == call && seen++ == n ? fault : RecordFault::none;
  };
}

const OwnershipRecord kOurs = sample_record(0, OwnerFact{}, sample_writer('a', 1));
const OwnershipRecord kTheirs = sample_record(0, OwnerFact{}, sample_writer('b', 2));

TEST(OwnershipLogWrite, FirstWriterGetsTheNameAndLeavesNothingElse) {
  Bench bench;
  auto log = bench.log();
  const auto outcome = log.write(kOurs, WhenRefused::give_up, bench.stop);
  ASSERT_TRUE(outcome) << outcome.error().message;
  EXPECT_EQ(outcome->kind, RecordOutcome::Kind::written);
  EXPECT_EQ(bench.store.list(), std::vector<std::string>{"owner.0"});
  EXPECT_EQ(bench.store.durable.count("owner.0"), 1U);
}

TEST(OwnershipLogWrite, SecondWriterLearnsWhoWon) {
  Bench bench;
  bench.put(kTheirs);
  auto log = bench.log();
  const auto outcome = log.write(kOurs, WhenRefused::give_up, bench.stop);
  ASSERT_TRUE(outcome) << outcome.error().message;
  EXPECT_EQ(outcome->kind, RecordOutcome::Kind::taken);
  EXPECT_EQ(outcome->winner, kTheirs);
  EXPECT_EQ(bench.temporaries(), 0U);
}

TEST(OwnershipLogWrite, LostReplyOfALinkThatWasMadeIsAWin) {
  Bench bench;
  auto log = bench.log();
  bench.files->faults = nth("link", 0, RecordFault::reply_lost);
  const auto outcome = log.write(kOurs, WhenRefused::give_up, bench.stop);
  ASSERT_TRUE(outcome) << outcome.error().message;
  EXPECT_EQ(outcome->kind, RecordOutcome::Kind::written);
  EXPECT_EQ(bench.files->pauses, 0U);
}

TEST(OwnershipLogWrite, FailedLinkIsTriedAgain) {
  Bench bench;
  auto log = bench.log();
  bench.files->faults = nth("link", 0, RecordFault::fails);
  const auto outcome = log.write(kOurs, WhenRefused::give_up, bench.stop);
  ASSERT_TRUE(outcome) << outcome.error().message;
  EXPECT_EQ(outcome->kind, RecordOutcome::Kind::written);
  EXPECT_EQ(bench.files->pauses, 1U);
  EXPECT_EQ(bench.temporaries(), 0U);
}

TEST(OwnershipLogWrite, HangingLinkThatLandsBeforeTheNextTryIsOurs) {
  Bench bench;
  auto log = bench.log();
  bench.files->faults = nth("link", 0, RecordFault::hangs);
  bench.files->on_pause = [&] { bench.store.land_hanging_links(); };
  const auto outcome = log.write(kOurs, WhenRefused::give_up, bench.stop);
  ASSERT_TRUE(outcome) << outcome.error().message;
  EXPECT_EQ(outcome->kind, RecordOutcome::Kind::written);
}

TEST(OwnershipLogWrite, WhileOurLinkHangsAnotherMayWin) {
  Bench bench;
  auto log = bench.log();
  bench.files->faults = nth("link", 0, RecordFault::hangs);
  bench.files->on_pause = [&] {
    bench.put(kTheirs);
    bench.store.land_hanging_links();
  };
  const auto outcome = log.write(kOurs, WhenRefused::give_up, bench.stop);
  ASSERT_TRUE(outcome) << outcome.error().message;
  EXPECT_EQ(outcome->kind, RecordOutcome::Kind::taken);
  EXPECT_EQ(outcome->winner, kTheirs);
}

TEST(OwnershipLogWrite, FullStoreIsACertainNoWithGiveUp) {
  Bench bench;
  auto log = bench.log();
  bench.files->faults = nth("write_new", 0, RecordFault::refused);
  const auto outcome = log.write(kOurs, WhenRefused::give_up, bench.stop);
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().code, Errc::no_space);
  EXPECT_NE(outcome.error().message.find("not written: owner.0"), std::string::npos);
  EXPECT_TRUE(bench.store.names.empty());
}

TEST(OwnershipLogWrite, RefusedLinkIsACertainNoWithGiveUp) {
  Bench bench;
  auto log = bench.log();
  bench.files->faults = nth("link", 0, RecordFault::refused);
  const auto outcome = log.write(kOurs, WhenRefused::give_up, bench.stop);
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().code, Errc::no_space);
  EXPECT_TRUE(bench.store.names.empty());
}

TEST(OwnershipLogWrite, FullStoreIsWaitedOutWithRepeat) {
  Bench bench;
  auto log = bench.log();
  bench.files->faults = [](std::size_t operation, std::string_view) {
    return operation < 10 ? RecordFault::refused : RecordFault::none;
  };
  const auto outcome = log.write(kOurs, WhenRefused::repeat, bench.stop);
  ASSERT_TRUE(outcome) << outcome.error().message;
  EXPECT_EQ(outcome->kind, RecordOutcome::Kind::written);
}

// An earlier link hangs, then the store is full: "full" says nothing about the link that still
// hangs.
TEST(OwnershipLogWrite, RefusalAfterAnUnknownOutcomeIsNoAnswer) {
  Bench bench;
  auto log = bench.log();
  bench.files->faults = [links = 0](std::size_t, std::string_view call) mutable {
    if (call != "link") return RecordFault::none;
    ++links;
    return links == 1 ? RecordFault::hangs : links == 2 ? RecordFault::refused : RecordFault::none;
  };
  const auto outcome = log.write(kOurs, WhenRefused::give_up, bench.stop);
  ASSERT_TRUE(outcome) << outcome.error().message;
  EXPECT_EQ(outcome->kind, RecordOutcome::Kind::written);
  EXPECT_EQ(bench.files->pauses, 2U);
}

TEST(OwnershipLogWrite, StopWhileTheOutcomeIsUnknownSaysSo) {
  Bench bench;
  auto log = bench.log();
  bench.files->faults = [](std::size_t, std::string_view call) {
    return call == "link" ? RecordFault::fails : RecordFault::none;
  };
  bench.files->on_pause = [&] { bench.stop.cancel(); };
  const auto outcome = log.write(kOurs, WhenRefused::repeat, bench.stop);
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().code, Errc::canceled);
  EXPECT_NE(outcome.error().message.find("unknown"), std::string::npos);
}

TEST(OwnershipLogWrite, StopWhileTheStoreRefusesIsTheRefusal) {
  Bench bench;
  auto log = bench.log();
  bench.files->faults = [](std::size_t, std::string_view call) {
    return call == "write_new" ? RecordFault::refused : RecordFault::none;
  };
  bench.files->on_pause = [&] { bench.stop.cancel(); };
  const auto outcome = log.write(kOurs, WhenRefused::repeat, bench.stop);
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().code, Errc::no_space);
}

TEST(OwnershipLogWrite, RecordIsNotWrittenBeforeTheDirectoryIsSynced) {
  Bench bench;
  auto log = bench.log();
  bench.files->faults = nth("sync", 0, RecordFault::fails);
  const auto outcome = log.write(kOurs, WhenRefused::give_up, bench.stop);
  ASSERT_TRUE(outcome) << outcome.error().message;
  EXPECT_EQ(outcome->kind, RecordOutcome::Kind::written);
  EXPECT_EQ(bench.files->pauses, 1U);
  EXPECT_EQ(bench.store.durable.count("owner.0"), 1U);
}

TEST(OwnershipLogWrite, DamagedRecordUnderTheNameIsAnErrorAtOnce) {
  Bench bench;
  bench.store.names["owner.0"] = std::make_shared<std::string>("garbage");
  auto log = bench.log();
  const auto outcome = log.write(kOurs, WhenRefused::repeat, bench.stop);
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().code, Errc::corrupt);
}

TEST(OwnershipLogWrite, SameClaimantWithOtherContentHasNotWrittenThisRecord) {
  Bench bench;
  const auto first = sample_record(0, releases_nothing());
  const auto second = sample_record(0, releases_image());
  bench.put(first);
  auto log = bench.log();
  const auto outcome = log.write(second, WhenRefused::give_up, bench.stop);
  ASSERT_TRUE(outcome) << outcome.error().message;
  EXPECT_EQ(outcome->kind, RecordOutcome::Kind::taken);
  EXPECT_EQ(outcome->winner, first);
}

// Random faults on every operation, hanging links landing at random: whoever is told "written" is
// the one that the store names, and nobody else is.
TEST(OwnershipLogWrite, RandomFaultsNeverMakeTwoWinners) {
  for (unsigned seed = 1; seed <= 2000; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    Bench bench;
    std::vector<OwnershipRecord> claims;
    std::vector<OwnershipRecord> winners;
    for (int writer = 1; writer <= 3; ++writer) {
      claims.push_back(sample_record(0, OwnerFact{}, sample_writer('a', writer)));
      auto log = bench.log();
      bench.files->faults = [&](std::size_t, std::string_view call) {
        switch (random() % 6) {
          case 0:
            return RecordFault::fails;
          case 1:
            return RecordFault::reply_lost;
          case 2:
            return call == "link" ? RecordFault::hangs : RecordFault::refused;
          default:
            return RecordFault::none;
        }
      };
      bench.files->on_pause = [&] {
        if (random() % 3 == 0) bench.store.land_hanging_links();
        if (random() % 20 == 0) bench.stop.cancel();
      };
      const auto outcome = log.write(claims.back(), WhenRefused::give_up, bench.stop);
      if (outcome && outcome->kind == RecordOutcome::Kind::written)
        winners.push_back(claims.back());
    }
    bench.store.land_hanging_links();
    ASSERT_LE(winners.size(), 1U);
    if (!winners.empty()) {
      EXPECT_EQ(*bench.store.names.at("owner.0"), *encode_record(winners.front()));
    }
  }
}

TEST(OwnershipLogRead, NoRecordsGiveAnEmptySnapshot) {
  Bench bench;
  const auto snapshot = bench.log().read();
  ASSERT_TRUE(snapshot) << snapshot.error().message;
  EXPECT_TRUE(snapshot->empty());
}

TEST(OwnershipLogRead, StopsBelowTheEpochThatEndsTheWalk) {
  Bench bench;
  for (std::uint32_t epoch = 0; epoch < 5; ++epoch) bench.put(sample_record(epoch, OwnerFact{}));
  bench.put(sample_record(0, releases_image(0)));
  bench.put(sample_record(1, releases_image(1)));
  bench.put(sample_record(2, releases_image(2)));
  bench.put(sample_record(3, never_ran()));
  const auto snapshot = bench.log().read();
  ASSERT_TRUE(snapshot) << snapshot.error().message;
  EXPECT_EQ(snapshot->first, Epoch{2});
  EXPECT_EQ(snapshot->highest(), Epoch{4});
  EXPECT_EQ(image_for(*snapshot, Epoch{4}).image, sample_image(2));
}

TEST(OwnershipLogRead, AllMeansAll) {
  Bench bench;
  for (std::uint32_t epoch = 0; epoch < 3; ++epoch) {
    bench.put(sample_record(epoch, OwnerFact{}));
    bench.put(sample_record(epoch, releases_image(epoch)));
  }
  const auto snapshot = bench.log().read_all();
  ASSERT_TRUE(snapshot) << snapshot.error().message;
  EXPECT_EQ(snapshot->first, Epoch{0});
  EXPECT_EQ(snapshot->epochs.size(), 3U);
}

TEST(OwnershipLogRead, MissingOwnerBelowTheHighestIsDamage) {
  Bench bench;
  bench.put(sample_record(0, OwnerFact{}));
  bench.put(sample_record(2, OwnerFact{}));
  const auto snapshot = bench.log().read();
  ASSERT_FALSE(snapshot);
  EXPECT_EQ(snapshot.error().code, Errc::corrupt);
  EXPECT_NE(snapshot.error().message.find("owner.1"), std::string::npos);
}

TEST(OwnershipLogRead, RecordUnderAnothersNameIsDamage) {
  Bench bench;
  bench.put(sample_record(0, OwnerFact{}));
  bench.store.names["released.0"] = bench.store.names["owner.0"];
  const auto snapshot = bench.log().read();
  ASSERT_FALSE(snapshot);
  EXPECT_EQ(snapshot.error().code, Errc::corrupt);
}

TEST(OwnershipLogRead, WhatWasReadIsDurable) {
  Bench bench;
  bench.put(sample_record(0, OwnerFact{}));  // visible, its writer died before the sync
  ASSERT_TRUE(bench.log().read());
  bench.store.power_cut();
  EXPECT_EQ(bench.store.names.count("owner.0"), 1U);
}

// Violation 8: the owner writes running.0, runs, dies and is fenced while we read. Whoever sees
// fenced.0 or released.0 must see running.0 too, wherever the two fall between our reads.
TEST(OwnershipLogRead, RunningIsReadAfterWhatClosesTheEpoch) {
  const std::vector<OwnershipRecord> closings = {
      sample_record(0, FencedFact{sample_id(1), FencingMeans::operator_word, ""}),
      sample_record(0, releases_nothing())};
  for (const OwnershipRecord& closing : closings) {
    bool seen_closed = false;
    for (std::size_t moment = 1; moment <= 12; ++moment) {
      Bench bench;
      bench.put(sample_record(0, OwnerFact{}));
      auto log = bench.log();
      bench.files->after_read = [&](std::size_t reads) {
        if (reads != moment) return;
        bench.put(sample_record(0, runs()));
        bench.put(closing);
      };
      const auto snapshot = log.read();
      ASSERT_TRUE(snapshot) << snapshot.error().message;
      if (!snapshot->top().is_closed()) continue;
      seen_closed = true;
      EXPECT_TRUE(snapshot->top().ran()) << closing.file_name() << " after read " << moment;
    }
    EXPECT_TRUE(seen_closed) << "no moment was early enough: this test would be blind";
  }
}

TEST(OwnershipLogLeftovers, OnlyOthersTemporariesGo) {
  Bench bench;
  bench.put(kOurs);
  bench.store.names[".new." + sample_id(1).hex() + ".owner.0.0"] = nullptr;
  bench.store.names[".new." + sample_id(2).hex() + ".owner.0.0"] = nullptr;
  bench.store.names["attempt.0.x"] = nullptr;
  ASSERT_TRUE(bench.log().remove_leftovers(sample_id(1)));
  EXPECT_EQ(bench.store.list(),
            (std::vector<std::string>{".new." + sample_id(1).hex() + ".owner.0.0", "attempt.0.x",
                                      "owner.0"}));
}

}  // namespace
}  // namespace pageferry

// Many processes race for the same epoch on a real file system: one wins, and all agree on who. PAGEFERRY_TEST_STORE names
// the directory to do it in, e.g. on NFS; by default the directory for temporary files.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "fakes/ownership_samples.h"
#include "fakes/scratch_directory.h"
#include "transport/vm_directory.h"

namespace pageferry {
namespace {

using namespace testing_support;

constexpr int kProcesses = 24;
constexpr std::uint32_t kRounds = 20;

// What a racer tells by its pipe, once per round.
struct Told {
  std::uint32_t round = 0;
  std::int32_t racer = 0;
  std::int32_t won = 0;
  RandomId winner;
};

OwnershipRecord claim(std::uint32_t round, int racer, const RandomId& id) {
  OwnershipRecord record = sample_record(round, OwnerFact{});
  record.writer.claimant = id;
  record.writer.vmm = sample_vmm(racer);
  return record;
}

// One racer: opens its own descriptors, waits for the start, and claims epoch after epoch.
int race(const std::string& store, int racer, int start, int tell) {
  const auto vm = VmDirectory::open(store, "raced", VmDirectory::IfMissing::create);
  if (!vm) return 1;
  auto log = vm->open_log();
  const auto id = RandomId::make();
  const CancelSignal stop;
  char go = 0;
  if (!log || !id || ::read(start, &go, 1) != 0) return 2;
  for (std::uint32_t round = 0; round < kRounds; ++round) {
    const auto outcome = log->write(claim(round, racer, *id), WhenRefused::give_up, stop);
    if (!outcome) return 3;
    Told told{round, racer, outcome->kind == RecordOutcome::Kind::written ? 1 : 0, *id};
    if (told.won == 0) told.winner = outcome->winner->writer.claimant;
    if (::write(tell, &told, sizeof told) != static_cast<ssize_t>(sizeof told)) return 4;
  }
  return 0;
}

std::string race_directory(const ScratchDirectory& scratch) {
  const char* const chosen = std::getenv("PAGEFERRY_TEST_STORE");
  return chosen == nullptr ? scratch.path() : chosen;
}

TEST(OwnerRace, HasExactlyOneWinnerAndAllAgree) {
  const ScratchDirectory scratch;
  std::string store = race_directory(scratch) + "/race-XXXXXX";
  ASSERT_NE(::mkdtemp(store.data()), nullptr) << store;
  int start[2];
  int tell[2];
  ASSERT_EQ(::pipe(start), 0);
  ASSERT_EQ(::pipe(tell), 0);
  std::vector<pid_t> children;
  for (int racer = 0; racer < kProcesses; ++racer) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      ::close(start[1]);
      ::close(tell[0]);
      ::_exit(race(store, racer, start[0], tell[1]));
    }
    children.push_back(child);
  }
  ::close(tell[1]);
  ::close(start[0]);
  ::close(start[1]);  // the end of file is the starting shot

  std::vector<int> winners(kRounds, 0);
  std::vector<std::set<RandomId>> named(kRounds);
  std::size_t answers = 0;
  for (Told told; ::read(tell[0], &told, sizeof told) == static_cast<ssize_t>(sizeof told);) {
    ASSERT_LT(told.round, kRounds);
    winners[told.round] += told.won;
    named[told.round].insert(told.winner);
    ++answers;
  }
  ::close(tell[0]);
  for (const pid_t child : children) {
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  }
  EXPECT_EQ(answers, kProcesses * kRounds);
  for (std::uint32_t round = 0; round < kRounds; ++round) {
    EXPECT_EQ(winners[round], 1) << "owner." << round;
    EXPECT_EQ(named[round].size(), 1U) << "owner." << round;
  }
  const auto vm = VmDirectory::open(store, "raced", VmDirectory::IfMissing::refuse);
  ASSERT_TRUE(vm);
  const auto snapshot = vm->open_log()->read_all();
  ASSERT_TRUE(snapshot) << snapshot.error().message;
  EXPECT_EQ(snapshot->epochs.size(), kRounds);
  for (std::uint32_t round = 0; round < kRounds; ++round) {
    EXPECT_EQ(named[round].count(snapshot->at(Epoch{round}).owner_writer().claimant), 1U);
  }
  std::filesystem::remove_all(store);
}

}  // namespace
}  // namespace pageferry

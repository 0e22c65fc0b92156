// The demo VM by itself, without the hook: its guest runs, judges its own memory, and goes on elsewhere. The oracle of other tests is
// tested here: each fault that it must notice is made once.
//
// On threads always; in KVM where there is one.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "fakes/demo_vm_fixture.h"
#include "fakes/huge_pages.h"
#include "fakes/scratch_directory.h"

namespace pageferry::demo {
namespace {

using namespace testing_support;
using testing::HasSubstr;

class DemoVmTest : public testing::TestWithParam<VcpuKind> {
 protected:
  VmSettings settings() const { return small_guest(GetParam()); }
};

std::string name_of_kind(const testing::TestParamInfo<VcpuKind>& info) {
  return info.param == VcpuKind::kvm ? "Kvm" : "Threads";
}
INSTANTIATE_TEST_SUITE_P(All, DemoVmTest, testing::ValuesIn(kinds_here()), name_of_kind);

// --- it runs ---

TEST_P(DemoVmTest, ItWritesAndVerifiesAndFindsNothingWrong) {
  const auto vm = booted(settings());
  wait_until(*vm, [](const VmStatus& s) { return s.report.pages_written > 20'000; });
  const VmStatus status = checked(*vm);
  EXPECT_EQ(status.run_state, RunState::running) << status.failure;
  EXPECT_GT(status.report.pages_verified, status.report.pages_written);
  EXPECT_EQ(status.report.bad, 0U);
}

TEST_P(DemoVmTest, ACheckGoesOverAllOfItsMemory) {
  VmSettings quiet = settings();
  quiet.rates = {};
  const auto vm = booted(quiet);
  wait_until(*vm, [](const VmStatus& s) { return s.report.filled == 1; });
  const std::uint64_t before = vm->status().report.pages_verified;
  const VmStatus status = checked(*vm);
  const auto plan = plan_guest(quiet.guest);
  EXPECT_EQ(status.report.pages_verified - before, plan->parameters.data_pages);
}

TEST_P(DemoVmTest, TheHeartbeatGoesOnWithNothingToDo) {
  VmSettings quiet = settings();
  quiet.rates = {};
  const auto vm = booted(quiet);
  wait_until(*vm, [](const VmStatus& s) { return s.report.filled == 1; });
  const std::uint64_t before = vm->status().report.heartbeats;
  wait_until(*vm, [&](const VmStatus& s) { return s.report.heartbeats > before + 50; });
}

TEST_P(DemoVmTest, NothingRunsWhileItIsPaused) {
  VmSettings with_disk = settings();
  const ScratchDirectory scratch;
  add_disk(with_disk, scratch.file("disk"));
  const auto vm = booted(with_disk);
  wait_until(*vm, [](const VmStatus& s) { return s.report.blocks_verified > 5; });
  for (int round = 0; round < 20; ++round) {
    ASSERT_TRUE(vm->pause());
    const auto first = memory_of(*vm);
    const auto state = vm->save();
    const auto again = vm->save();
    ASSERT_TRUE(state && again) << (state ? again : state).error().message;
    EXPECT_TRUE(*again == *state) << "not printed: too long";
    EXPECT_TRUE(memory_of(*vm) == first);
    const std::uint64_t beats = vm->status().report.heartbeats;
    ASSERT_TRUE(vm->resume());
    wait_until(*vm, [&](const VmStatus& s) { return s.report.heartbeats > beats + 2; });
  }
  EXPECT_EQ(checked(*vm).report.bad, 0U);
}

// --- it notices ---

TEST_P(DemoVmTest, OneFlippedBitIsNoticed) {
  const auto vm = booted(settings());
  wait_until(*vm, [](const VmStatus& s) { return s.report.filled == 1; });
  ASSERT_TRUE(vm->pause());
  const std::uint64_t page = vm->memory().slots()[2].guest_address + 7 * kGuestPageBytes;
  ASSERT_TRUE(vm->flip(page + 1'234, 3));
  ASSERT_TRUE(vm->resume());
  const VmStatus status = checked(*vm);
  EXPECT_EQ(status.report.bad, 1U) << "once, however often it is looked at";
  EXPECT_EQ(status.report.first_bad_kind, BadKind::content);
  EXPECT_EQ(status.report.first_bad_address, page);
}

TEST_P(DemoVmTest, AnOldPageIsNoticed) {
  const auto vm = booted(settings());
  wait_until(*vm, [](const VmStatus& s) { return s.report.filled == 1; });
  ASSERT_TRUE(vm->pause());
  const auto before = memory_of(*vm);
  ASSERT_TRUE(vm->resume());
  const std::uint64_t written = vm->status().report.pages_written;
  wait_until(*vm, [&](const VmStatus& s) { return s.report.pages_written > written + 20'000; });
  ASSERT_TRUE(vm->pause());
  const MemorySlot& slot = vm->memory().slots()[1];
  const std::uint64_t page = written_since(*vm, 1, before[1]);
  std::memcpy(slot.host_address + page, before[1].data() + page, kGuestPageBytes);
  ASSERT_TRUE(vm->resume());
  const VmStatus status = checked(*vm);
  EXPECT_EQ(status.report.bad, 1U);
  EXPECT_EQ(status.report.first_bad_kind, BadKind::stale);
  EXPECT_EQ(status.report.first_bad_address, slot.guest_address + page);
}

TEST_P(DemoVmTest, AnOldPageWithItsOldEntryIsNoticed) {
  const auto vm = booted(settings());
  wait_until(*vm, [](const VmStatus& s) { return s.report.filled == 1; });
  ASSERT_TRUE(vm->pause());
  const auto before = memory_of(*vm);
  ASSERT_TRUE(vm->resume());
  const std::uint64_t written = vm->status().report.pages_written;
  wait_until(*vm, [&](const VmStatus& s) { return s.report.pages_written > written + 20'000; });
  ASSERT_TRUE(vm->pause());
  const std::uint64_t page = written_since(*vm, 1, before[1]);
  std::memcpy(vm->memory().slots()[1].host_address + page, before[1].data() + page,
              kGuestPageBytes);
  const std::uint64_t entry = kEntriesAddress + page / kGuestPageBytes * sizeof(Entry);
  std::memcpy(vm->memory().at(entry, sizeof(Entry)), before[0].data() + entry, sizeof(Entry));
  ASSERT_TRUE(vm->resume());
  const VmStatus status = checked(*vm);
  EXPECT_EQ(status.report.bad, 1U);
  EXPECT_EQ(status.report.first_bad_kind, BadKind::version_sum);
}

TEST_P(DemoVmTest, RegistersOfAnotherMomentAreNoticed) {
  const auto vm = booted(settings());
  wait_until(*vm, [](const VmStatus& s) { return s.report.filled == 1; });
  ASSERT_TRUE(vm->pause());
  const auto state = vm->save();
  ASSERT_TRUE(vm->resume());
  const std::uint64_t beats = vm->status().report.heartbeats;
  wait_until(*vm, [&](const VmStatus& s) { return s.report.heartbeats > beats + 20; });
  ASSERT_TRUE(vm->pause());
  ASSERT_TRUE(vm->load(*state));
  ASSERT_TRUE(vm->resume());
  wait_until(*vm, [](const VmStatus& s) { return s.report.bad > 0; });
  EXPECT_EQ(vm->status().report.first_bad_kind, BadKind::registers);
}

TEST_P(DemoVmTest, PagesThatWereGivenBackAndComeBackAreNoticed) {
  VmSettings balloon = settings();
  balloon.rates = {.give_backs = 1'000};
  const auto vm = booted(balloon);
  wait_until(*vm, [](const VmStatus& s) { return s.report.filled == 1; });
  ASSERT_TRUE(vm->pause());
  const auto before = memory_of(*vm);
  ASSERT_TRUE(vm->resume());
  const std::uint64_t already = vm->status().report.pages_given_back;
  wait_until(*vm, [&](const VmStatus& s) { return s.report.pages_given_back > already + 1'000; });
  ASSERT_TRUE(vm->pause());
  put_memory(*vm, 1, before[1]);
  ASSERT_TRUE(vm->resume());
  EXPECT_EQ(checked(*vm).report.first_bad_kind, BadKind::not_zero);
}

TEST_P(DemoVmTest, ABlockThatChangedOnTheDiskIsNoticed) {
  VmSettings with_disk = settings();
  const ScratchDirectory scratch;
  add_disk(with_disk, scratch.file("disk"));
  const auto vm = booted(with_disk);
  wait_until(*vm, [](const VmStatus& s) { return s.report.blocks_written > 50; });
  ASSERT_TRUE(vm->pause());
  flip_each_block(with_disk);
  ASSERT_TRUE(vm->resume());
  wait_until(*vm, [](const VmStatus& s) { return s.report.bad > 0; });
  EXPECT_EQ(vm->status().report.first_bad_kind, BadKind::block);
}

// --- it goes on elsewhere ---

TEST_P(DemoVmTest, ItGoesOnInAnotherVmExactlyWhereItWas) {
  VmSettings everything = settings();
  const ScratchDirectory scratch;
  add_disk(everything, scratch.file("disk"));
  everything.rates.give_backs = 200;
  auto vm = booted(everything);
  wait_until(*vm, [](const VmStatus& s) { return s.report.blocks_verified > 5; });
  for (int move = 0; move < 5; ++move) {
    ASSERT_TRUE(vm->pause());
    const VmStatus before = vm->status();
    const auto state = vm->save();
    ASSERT_TRUE(state) << state.error().message;
    const auto memory = memory_of(*vm);
    vm.reset();
    vm = made(everything);
    for (std::size_t slot = 0; slot < memory.size(); ++slot) put_memory(*vm, slot, memory[slot]);
    const auto loaded = vm->load(*state);
    ASSERT_TRUE(loaded) << loaded.error().message;
    ASSERT_TRUE(vm->resume());
    wait_until(*vm, [&](const VmStatus& s) {  // each vCPU: none waits for an answer that was lost
      return s.report.blocks_verified > before.report.blocks_verified + 20;
    });
    const VmStatus after = checked(*vm);
    EXPECT_GT(after.report.heartbeats, before.report.heartbeats);
    EXPECT_GE(after.given_back_bytes, before.given_back_bytes);
    EXPECT_EQ(after.report.bad, 0U) << "move " << move;
  }
}

TEST_P(DemoVmTest, AStateOfAnotherNumberOfVcpusIsRefused) {
  const auto vm = booted(settings());
  ASSERT_TRUE(vm->pause());
  const auto state = vm->save();
  VmSettings other = settings();
  other.guest.vcpus = 1;
  const auto refused = made(other)->load(*state);
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().message, HasSubstr("2 vCPUs"));
}

TEST_P(DemoVmTest, MemoryWithoutAGuestInItIsSaid) {
  const auto vm = made(settings());
  ASSERT_TRUE(vm->resume());
  wait_until(*vm, [](const VmStatus& s) { return s.run_state == RunState::failed; });
  EXPECT_FALSE(vm->resume());
}

// --- memory of every kind ---

TEST_P(DemoVmTest, AnonymousMemoryCanBeGivenBack) {
  expect_balloon_works(settings(), MemoryKind::anonymous);
}
TEST_P(DemoVmTest, SharedMemoryCanBeGivenBack) {
  expect_balloon_works(settings(), MemoryKind::memfd);
}
TEST_P(DemoVmTest, TransparentHugePagesCanBeGivenBack) {
  expect_balloon_works(settings(), MemoryKind::transparent_huge);
}
TEST_P(DemoVmTest, HugetlbPagesCanBeGivenBack) {
  const HugePages pages(settings().guest.memory_bytes / kHugeBytes);
  ASSERT_TRUE(pages.enough()) << "2 MiB pages are needed: be root, or reserve some";
  expect_balloon_works(settings(), MemoryKind::hugetlb);
}

}  // namespace
}  // namespace pageferry::demo

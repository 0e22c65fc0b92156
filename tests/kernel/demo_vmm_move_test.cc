// A demo VMM moves: out of one process through the hook and a page file into another, while its guest works. The mover and the restorer
// here are the smallest that do it right; the guest says whether they did.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>

#include "fakes/demo_process.h"
#include "fakes/expectations.h"
#include "fakes/page_file_fixture.h"
#include "fakes/scratch_directory.h"
#include "pager/page_in.h"
#include "pager/page_out.h"
#include "pager/userfault_outlet.h"
#include "transport/aio_file.h"
#include "transport/threaded_file.h"
#include "vmstate/hook_client.h"

namespace pageferry {
namespace {

using namespace testing_support;

Deadline move_deadline() {
  return Deadline::after(real_clock(), Seconds(30));
}

// The hook as a dirty source. `forget_the_last`: drops data pages of the last collection, as a pager with a bug would.
enum class Fault : std::uint8_t { none, forget_the_last };
class HookDirtySource final : public DirtySource {
 public:
  HookDirtySource(HookClient& client, Fault fault)
      : DirtySource(client.vm().layout), client_(client), fault_(fault) {}
  void now_the_last() { last_ = true; }

 protected:
  Result<void> begin() override { return client_.start_tracking(move_deadline()); }
  Result<void> fetch(DirtyBitmap& dirty) override {
    DirtyBitmap fetched(layout().pages());
    PF_TRY(client_.collect_into(fetched, move_deadline()));
    if (last_ && fault_ == Fault::forget_the_last) {
      const PageIndex first = first_data_page();
      fetched.clear({first, layout().pages() - raw(first)});
    }
    dirty.merge_back(fetched);
    return {};
  }
  Result<void> end() override { return client_.stop_tracking(move_deadline()); }

 private:
  // Behind "boot", which holds the guest's own tables.
  PageIndex first_data_page() const {
    return PageIndex{pages_of_bytes(layout().blocks()[0].length_bytes)};
  }

  HookClient& client_;
  Fault fault_;
  bool last_ = false;
};

// The memory files of a VMM, mapped for reading.
class MappedSlots {
 public:
  explicit MappedSlots(const HookVm& vm) {
    for (std::size_t i = 0; i < vm.slots.size(); ++i) {
      const std::uint64_t bytes = vm.layout.blocks()[i].length_bytes;
      void* const at = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, vm.slots[i].memory.get(),
                              static_cast<off_t>(vm.slots[i].memory_offset_bytes));
      EXPECT_NE(at, MAP_FAILED) << std::strerror(errno);
      parts_.emplace_back(at, bytes);
    }
  }
  ~MappedSlots() {
    for (const auto& [at, bytes] : parts_) ::munmap(at, bytes);
  }
  MappedSlots(const MappedSlots&) = delete;
  MappedSlots& operator=(const MappedSlots&) = delete;
  std::vector<const std::byte*> addresses() const {
    std::vector<const std::byte*> all;
    for (const auto& part : parts_) all.push_back(static_cast<const std::byte*>(part.first));
    return all;
  }

 private:
  std::vector<std::pair<void*, std::uint64_t>> parts_;
};

class DemoVmmMoveTest : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    directory_ = UniqueFd(::open(scratch_.path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  }
  // Of a guest that does all that it can do.
  std::vector<std::string> source_words() const {
    std::vector<std::string> words{PAGEFERRY_DEMO_VMM,
                                   "--hook",
                                   scratch_.file("source"),
                                   "--memory-mib",
                                   "48",
                                   "--write-rate-mib-s",
                                   "40",
                                   "--read-rate-mib-s",
                                   "20",
                                   "--disk",
                                   scratch_.file("disk"),
                                   "--disk-mib",
                                   "1",
                                   "--disk-rate-per-s",
                                   "500",
                                   "--give-back-rate-mib-s",
                                   "1"};
    if (!GetParam()) words.emplace_back("--threads");
    return words;
  }
  static void wait_until_filled(const DemoProcess& vmm) {
    // A check ends only when the guest has filled its memory.
    ASSERT_EQ(vmm.check().value("bad-pages", 1), 0) << vmm.status();
  }

  // The blackout shall have something to do: pages that vCPUs wrote, and the last blocks that the disk brought.
  static void let_work(const DemoProcess& vmm, std::uint64_t pages, std::uint64_t blocks) {
    const auto first = vmm.status();
    const std::uint64_t enough_pages = first["written-pages"].get<std::uint64_t>() + pages;
    const std::uint64_t enough_blocks = first["verified-blocks"].get<std::uint64_t>() + blocks;
    for (auto now = first;
         now["written-pages"] < enough_pages || now["verified-blocks"] < enough_blocks;
         now = vmm.check()) {
      ASSERT_FALSE(HasFailure());
    }
  }

  // Everything of the source's guest is in "pages" and state_, committed.
  void move_out(const DemoProcess& vmm, HookClient& mover, Fault fault = Fault::none) {
    const MappedSlots mapped(mover.vm());
    auto memory = GuestMemory::make(mover.vm().layout, mapped.addresses());
    ASSERT_TRUE(memory) << memory.error().message;
    HookDirtySource source(mover, fault);
    expect_ok(source.start());
    auto file = AioFile::create(directory_.get(), file_name(), scratch_.path(), {});
    ASSERT_TRUE(file) << file.error().message;
    auto threaded = ThreadedFile::over(std::move(*file), Seconds(10));
    ASSERT_TRUE(threaded);
    PageFileWriterOptions options = small_options();
    options.tail_bytes_max = std::uint64_t{64} << 20;
    const auto writer = writer_on(std::move(*threaded), mover.vm().layout, options);
    const CancelSignal cancel;
    PageOut page_out(*memory, source, *writer, cancel, real_clock());
    ConvergenceLimits limits;
    limits.downtime_max = Milliseconds(100);
    limits.passes_max = 5;
    const auto brownout = page_out.run_brownout(limits, [](const PassStats&, const PassFacts&) {});
    ASSERT_TRUE(brownout) << brownout.error().message;
    let_work(vmm, 500, 20);
    expect_ok(mover.pause(move_deadline()));
    source.now_the_last();
    const auto blackout = page_out.run_blackout();
    ASSERT_TRUE(blackout) << blackout.error().message;
    auto state = mover.save_state(move_deadline());
    ASSERT_TRUE(state) << state.error().message;
    state_ = std::move(*state);
    ASSERT_TRUE(writer->finish_and_commit());
    expect_ok(mover.commit(epoch_, move_deadline()));
  }

  std::unique_ptr<DemoProcess> start_incoming(const HookVm& vm) {
    std::vector<std::string> words = vm.incoming_command;
    for (std::string& word : words) {
      if (word == "{socket}") word = scratch_.file("incoming" + std::to_string(epoch_));
    }
    return std::make_unique<DemoProcess>(std::move(words));
  }

  // The guest runs in `vmm`, and all of its pages are there.
  void move_in(const DemoProcess& vmm) {
    auto restorer =
        HookClient::connect(vmm.hook_path(), HookClient::Role::restorer, move_deadline());
    ASSERT_TRUE(restorer) << restorer.error().message;
    HookClient& client = **restorer;
    auto userfault = client.take_userfault(move_deadline());
    ASSERT_TRUE(userfault) << userfault.error().message;
    auto file = AioFile::open(directory_.get(), file_name(), scratch_.path(), {});
    ASSERT_TRUE(file) << file.error().message;
    auto reader = open_reader(std::move(*file));
    ASSERT_TRUE(reader) << reader.error().message;
    std::vector<std::uint64_t> addresses;
    for (const HookSlot& slot : client.vm().slots) addresses.push_back(slot.host_address);
    UserfaultOutlet outlet(client.vm().layout, addresses);
    expect_ok(outlet.open(std::move(*userfault), std::nullopt));
    expect_ok(client.load_state(state_, "attempt", move_deadline()));
    expect_ok(client.resume(++epoch_, move_deadline()));
    PageIn page_in(**reader, client.vm().layout, SentMap(client.vm().layout.pages()), outlet,
                   real_clock(), {});
    while (!page_in.complete()) {
      std::vector<PageRun> faults;
      expect_ok(outlet.read_faults(faults));
      for (const PageRun& fault : faults) page_in.request(fault);
      expect_ok(page_in.step());
      ASSERT_FALSE(page_in.failure()) << page_in.failure()->message;
      if (page_in.wants_step()) continue;
      std::array<pollfd, 2> waiting{{{outlet.fd(), POLLIN, 0}, {(*reader)->ready_fd(), POLLIN, 0}}};
      ::poll(waiting.data(), waiting.size(), 1);
    }
    expect_ok(client.resident(move_deadline()));
    faults_ = page_in.counters().faults;
  }

  std::string file_name() const { return "pages" + std::to_string(file_number_); }

  ScratchDirectory scratch_;
  UniqueFd directory_;
  std::vector<std::byte> state_;
  std::uint64_t epoch_ = 0;
  std::uint64_t file_number_ = 0;
  std::uint64_t faults_ = 0;
};

std::string name_of_case(const testing::TestParamInfo<bool>& info) {
  return info.param ? "Kvm" : "Threads";
}
#ifdef PAGEFERRY_TEST_WITH_KVM
INSTANTIATE_TEST_SUITE_P(All, DemoVmmMoveTest, testing::Values(false, true), name_of_case);
#else
INSTANTIATE_TEST_SUITE_P(All, DemoVmmMoveTest, testing::Values(false), name_of_case);
#endif

TEST_P(DemoVmmMoveTest, AGuestMovesFromProcessToProcessAndGoesOn) {
  auto vmm = std::make_unique<DemoProcess>(source_words());
  wait_until_filled(*vmm);
  for (int move = 0; move < 3; ++move, ++file_number_) {
    auto mover = HookClient::connect(vmm->hook_path(), HookClient::Role::mover, move_deadline());
    ASSERT_TRUE(mover) << mover.error().message;
    move_out(*vmm, **mover);
    if (HasFatalFailure()) return;
    const auto before = vmm->status();
    EXPECT_EQ(before["hook-state"], "committed");
    EXPECT_EQ(before["state"], "paused");
    auto next = start_incoming((*mover)->vm());
    move_in(*next);
    if (HasFatalFailure()) return;
    expect_ok((*mover)->end(move_deadline()));
    EXPECT_EQ(vmm->exit_code(), 0);
    const auto after = next->check();
    EXPECT_EQ(after["bad-pages"], 0) << after;
    EXPECT_EQ(after["state"], "running");
    EXPECT_EQ(after["hook-state"], "running");
    EXPECT_GT(after["heartbeats"], before["heartbeats"]);
    EXPECT_GT(after["first-word-after-us"], 0);
    EXPECT_GT(after["verified-blocks"], before["verified-blocks"]);
    vmm = std::move(next);
  }
  vmm->ask({{"type", "end"}});
  EXPECT_EQ(vmm->exit_code(), 0);
}

TEST_P(DemoVmmMoveTest, AGuestWhoseMoveIsGivenUpRunsOn) {
  DemoProcess vmm(source_words());
  wait_until_filled(vmm);
  {
    auto mover = HookClient::connect(vmm.hook_path(), HookClient::Role::mover, move_deadline());
    ASSERT_TRUE(mover) << mover.error().message;
    expect_ok((*mover)->start_tracking(move_deadline()));
    expect_ok((*mover)->pause(move_deadline()));
    EXPECT_EQ(vmm.status()["state"], "paused");
    EXPECT_EQ(vmm.status()["heartbeats"], vmm.status()["heartbeats"]);
    EXPECT_TRUE((*mover)->give_up());
  }
  const auto status = vmm.check();
  EXPECT_EQ(status["bad-pages"], 0) << status;
  EXPECT_EQ(status["state"], "running");
}

// The oracle sees what a pager does wrong: dirty pages that were not written again.
TEST_P(DemoVmmMoveTest, PagesThatThePagerForgotAreNoticed) {
  DemoProcess vmm(source_words());
  wait_until_filled(vmm);
  auto mover = HookClient::connect(vmm.hook_path(), HookClient::Role::mover, move_deadline());
  ASSERT_TRUE(mover) << mover.error().message;
  move_out(vmm, **mover, Fault::forget_the_last);
  if (HasFatalFailure()) return;
  const auto next = start_incoming((*mover)->vm());
  move_in(*next);
  EXPECT_GT(next->check().value("bad-pages", 0), 0);
}

// A VMM that ends while its guest waits for pages ends as a whole: the guest reads no zeros on the way.
TEST_P(DemoVmmMoveTest, AVmmThatIsToldToEndWhilePagesAreMissingEndsAtOnce) {
  DemoProcess vmm(source_words());
  wait_until_filled(vmm);
  auto mover = HookClient::connect(vmm.hook_path(), HookClient::Role::mover, move_deadline());
  ASSERT_TRUE(mover) << mover.error().message;
  move_out(vmm, **mover);
  if (HasFatalFailure()) return;
  const auto next = start_incoming((*mover)->vm());
  auto restorer =
      HookClient::connect(next->hook_path(), HookClient::Role::restorer, move_deadline());
  ASSERT_TRUE(restorer) << restorer.error().message;
  ASSERT_TRUE((*restorer)->take_userfault(move_deadline()));
  expect_ok((*restorer)->load_state(state_, "attempt", move_deadline()));
  expect_ok((*restorer)->resume(1, move_deadline()));
  EXPECT_EQ(next->status()["hook-state"], "restoring");
  EXPECT_EQ(next->ask({{"type", "end"}})["type"], "ok");
  EXPECT_EQ(next->exit_code(), 1);
}

#ifdef PAGEFERRY_TEST_WITH_KVM
// KVM's log has nothing of what the VMM writes; the disk reports it.
class DemoVmmKvmLogTest : public DemoVmmMoveTest {};
INSTANTIATE_TEST_SUITE_P(All, DemoVmmKvmLogTest, testing::Values(true), name_of_case);
TEST_P(DemoVmmKvmLogTest, AGuestMovesWithItsWritesFoundByKvm) {
  std::vector<std::string> words = source_words();
  for (const char* word : {"--dirty-source", "kvm-log"}) words.emplace_back(word);
  DemoProcess vmm(words);
  wait_until_filled(vmm);
  auto mover = HookClient::connect(vmm.hook_path(), HookClient::Role::mover, move_deadline());
  ASSERT_TRUE(mover) << mover.error().message;
  move_out(vmm, **mover);
  if (HasFatalFailure()) return;
  const auto next = start_incoming((*mover)->vm());
  move_in(*next);
  if (HasFatalFailure()) return;
  const auto status = next->check();
  EXPECT_EQ(status["bad-pages"], 0) << status;
}
#endif

TEST_P(DemoVmmMoveTest, TheFaultSwitchIsNoticed) {
  DemoProcess vmm(source_words());
  wait_until_filled(vmm);
  const std::uint64_t in_ram0 = std::uint64_t{4 << 20} + 12'345;
  EXPECT_EQ(vmm.ask({{"type", "flip"}, {"address", in_ram0}, {"bit", 3}})["type"], "ok");
  const auto status = vmm.check();
  EXPECT_EQ(status["bad-pages"], 1) << status;
  vmm.ask({{"type", "end"}});
  EXPECT_EQ(vmm.exit_code(), 1);
}

}  // namespace
}  // namespace pageferry

// A guest is restored while everything around it goes wrong, from a seed: its pager is killed, stopped and replaced, or paused; reads
// fail, bring
// flipped bits, come late or never; pages in the file are stale for a while; the guest removes memory, singly and in storms. The guest
// checks
// each page itself. At the end of each round one healthy pager must bring it to its end.
//
//   PAGEFERRY_FAULTS=10000 PAGEFERRY_SEED=7 soak_page_in_faults_test         how many are injected, at least; and the first seed
#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>

#include <cstdlib>
#include <map>
#include <optional>
#include <random>
#include <string>

#include "fakes/page_file_fixture.h"
#include "fakes/scratch_directory.h"
#include "pager/userfault_page_in.h"
#include "soak/restored_guest.h"
#include "transport/aio_file.h"
#include "transport/faulty_file.h"

namespace pageferry {
namespace {

using namespace testing_support;

std::uint64_t number_from(const char* name, std::uint64_t otherwise) {
  const char* const text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

void let_time_pass(std::uint64_t us) {
  const timespec duration{.tv_sec = 0, .tv_nsec = static_cast<long>(us * 1000)};
  ::nanosleep(&duration, nullptr);
}

// The bitmap in Shared.
class SharedReports final : public RemovalReports {
 public:
  explicit SharedReports(Shared& shared) : shared_(&shared) {}
  void take(std::vector<PageRun>& removed) override {
    const std::uint64_t reports = shared_->reports;
    if (reports == seen_) return;
    seen_ = reports;
    for (std::size_t word = 0; word < known_.size(); ++word) {
      const std::uint64_t now = shared_->removed[word];
      for (std::uint64_t fresh = now & ~known_[word]; fresh != 0; fresh &= fresh - 1) {
        const auto bit = static_cast<std::uint64_t>(std::countr_zero(fresh));
        removed.push_back({.first = PageIndex{word * 64 + bit}, .pages = 1});
      }
      known_[word] = now;
    }
  }
  void keep(PageRun removed) override {
    for (std::uint64_t i = 0; i < removed.pages; ++i) {
      shared_->report_removed(raw(removed.first) + i);
    }
  }
  // The guest removes after it has reported: nothing is left to do.
  void remove_again(PageRun /*placed*/) override {}

 private:
  Shared* shared_;
  std::uint64_t seen_ = 0;
  std::array<std::uint64_t, kGuestPages / 64> known_{};
};

// The file with the guest's pages, in which some can be made stale.
class Image {
 public:
  Image() : fd_(::open(directory_.path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
    auto file = AioFile::create(fd_.get(), "pages", directory_.path(), {});
    PF_CHECK(file.has_value());
    auto writer = writer_on(std::move(*file), layout, small_options());
    writer->begin_pass(1);
    for (std::uint64_t page = 0; page < kGuestPages; ++page) {
      if (page % 7 != 0) PF_CHECK(put(*writer, page, 1).has_value());
    }
    PF_CHECK(writer->finish_and_commit().has_value());
    find_slots();
  }
  std::unique_ptr<StorageFile> open(const std::string& faults, const Clock& clock) const {
    auto file = AioFile::open(fd_.get(), "pages", directory_.path(), {});
    if (!file) return nullptr;
    if (faults.empty()) return std::move(*file);
    auto parsed = parse_storage_faults(faults);
    PF_CHECK(parsed.has_value());
    auto faulty = FaultyFile::over(std::move(*file), std::move(*parsed), clock);
    if (!faulty) return nullptr;
    return std::move(*faulty);
  }
  // What the page held before, as after a write that the store lost.
  void make_stale(std::uint64_t page) {
    const auto slot = slots_.find(page);
    if (slot == slots_.end()) return;
    write(slot->second, content_of(page, 0));
    stale_.push_back(page);
  }
  void mend() {
    for (const std::uint64_t page : stale_) write(slots_.at(page), content_of(page, 1));
    stale_.clear();
  }

  const MemoryLayout layout = layout_of({{"ram", kGuestPages}});

 private:
  void find_slots() {
    file_.reset(::openat(fd_.get(), "pages", O_RDWR | O_CLOEXEC));
    PageArray bytes;
    for (off_t at = 0;
         ::pread(file_.get(), bytes.data(), bytes.size(), at) == static_cast<ssize_t>(bytes.size());
         at += static_cast<off_t>(bytes.size())) {
      std::uint64_t page = 0;
      std::memcpy(&page, bytes.data(), sizeof page);
      if (page < kGuestPages && bytes == content_of(page, 1)) slots_[page] = at;
    }
    PF_CHECK(slots_.size() > kGuestPages / 2);
  }
  void write(off_t at, const PageArray& bytes) const {
    PF_CHECK(::pwrite(file_.get(), bytes.data(), bytes.size(), at) ==
             static_cast<ssize_t>(bytes.size()));
  }

  ScratchDirectory directory_;
  UniqueFd fd_;
  UniqueFd file_;
  std::map<std::uint64_t, off_t> slots_;
  std::vector<std::uint64_t> stale_;
};

struct PagerSettings {
  std::string faults;
  PrefetchOrder order = PrefetchOrder::linear;
  std::uint64_t bandwidth_bytes_per_s = 0;
};

// In a process of its own. The exit status only says whether it could begin.
[[noreturn]] void be_pager(const Image& image, const RestoredGuest& guest, Shared& shared,
                           const PagerSettings& settings) {
  const MonotonicClock clock;
  auto file = image.open(settings.faults, clock);
  if (file == nullptr) ::_exit(2);
  auto reader = PageFileReader::open(std::move(file), {.retry_delay = Milliseconds(1)}, clock, {});
  if (!reader) {
    ++shared.storage_faults;
    ::_exit(3);
  }
  UserfaultVmm vmm{.userfault = guest.userfault(),
                   .block_addresses = {guest.address()},
                   .process_fd = guest.process_fd()};
  if (auto tables = PageTables::open(guest.pid())) vmm.tables.emplace(std::move(*tables));
  SharedReports reports(shared);
  UserfaultPageInOptions options;
  options.page_in.order = settings.order;
  options.page_in.prefetch_bandwidth_bytes_per_s = settings.bandwidth_bytes_per_s;
  options.serve_until = ServeUntil::vmm_ends;
  options.tell_interval = Milliseconds(2);
  auto loop =
      UserfaultPageIn::make(std::move(vmm), image.layout, **reader, &reports, options, clock);
  if (!loop) ::_exit(4);
  const CancelSignal never;
  std::uint64_t told = 0;
  const auto ended = (*loop)->serve(never, [&](const UserfaultPageInFigures& figures) {
    const PageFileReaderStats stats = (*reader)->stats();
    const std::uint64_t failed = stats.checksum_failures + stats.io_failures;
    shared.storage_faults += failed - told;
    told = failed;
    shared.pages_bad = figures.pages_bad;
  });
  ::_exit(ended ? 0 : 5);
}

struct Injected {
  std::uint64_t kills = 0, replaced = 0, paused = 0, stale = 0, storms = 0, storage = 0,
                removals = 0;
  std::uint64_t checks = 0, rounds = 0;
  std::uint64_t all() const { return kills + replaced + paused + stale + storms + storage; }
};

class Round {
 public:
  Round(Image& image, std::uint64_t seed, Injected& injected)
      : image_(image), random_(seed), injected_(injected) {
    void* const memory =
        ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    PF_CHECK(memory != MAP_FAILED);
    shared_ = new (memory) Shared;
    const Backing backing = seed % 2 == 0 ? Backing::anonymous : Backing::memfd;
    guest_.emplace(*shared_, backing, seed);
  }
  ~Round() {
    end_pager();
    guest_.reset();
    image_.mend();
    ::munmap(shared_, sizeof(Shared));
  }
  Round(const Round&) = delete;
  Round& operator=(const Round&) = delete;

  // Whether the guest came to its end, and found every page right.
  void run() {
    start_pager();
    const std::uint64_t injections = 10 + random_() % 20;
    for (std::uint64_t i = 0; i < injections; ++i) {
      let_time_pass(random_() % 20'000);
      inject();
      restart_if_it_ended();
    }
    image_.mend();
    end_pager();
    shared_->phase = Shared::Phase::finish;
    start_healthy_pager();
    EXPECT_TRUE(guest_->ends_within(60'000)) << "the guest hangs, in spite of a new pager";
    EXPECT_EQ(shared_->ended, kGuestThreads);
    EXPECT_EQ(shared_->wrong, 0U) << "the first is page " << shared_->first_wrong;
    injected_.storage += shared_->storage_faults;
    injected_.removals += shared_->removals;
    injected_.checks += shared_->checks;
    ++injected_.rounds;
  }

 private:
  std::string random_faults() {
    std::string faults;
    for (std::uint64_t i = random_() % 14; i > 0; --i) {
      const char* const effect = random_() % 2 == 0 ? "eio" : "flip";
      faults += fmt::format("read:nth={}:{},", 1 + random_() % 200, effect);
    }
    switch (random_() % 8) {
      case 0:
        faults += fmt::format("read:after={}:eio,", 20 + random_() % 200);
        break;
      case 1:
        faults += fmt::format("read:after={}:flip,", 20 + random_() % 200);
        break;
      case 2:
        faults += fmt::format("read:after={}:hang,", 20 + random_() % 200);
        break;
      case 3:
        faults += fmt::format("read:delay-ms={},", 1 + random_() % 5);
        break;
      default:
        break;
    }
    if (!faults.empty()) faults.pop_back();
    return faults;
  }
  void start_pager() {
    PagerSettings settings{.faults = random_faults()};
    const std::array orders{PrefetchOrder::none, PrefetchOrder::linear, PrefetchOrder::hot};
    settings.order = orders[random_() % orders.size()];
    settings.bandwidth_bytes_per_s = (5 + random_() % 60) << 20;
    start(settings);
  }
  void start_healthy_pager() { start({}); }
  void start(const PagerSettings& settings) {
    pager_ = ::fork();
    if (pager_ == 0) be_pager(image_, *guest_, *shared_, settings);
  }
  static void end(pid_t pager) {
    ::kill(pager, SIGKILL);
    ::waitpid(pager, nullptr, 0);
  }
  void end_pager() {
    if (pager_ > 0) end(pager_);
    pager_ = -1;
  }
  // A pager whose storage failed when it began, for one.
  void restart_if_it_ended() {
    if (::waitpid(pager_, nullptr, WNOHANG) == pager_) start_pager();
  }
  void inject() {
    const std::uint64_t chance = random_() % 100;
    if (chance < 40) {
      end_pager();
      start_pager();
      ++injected_.kills;
    } else if (chance < 60) {
      const pid_t stopped = pager_;
      ::kill(stopped, SIGSTOP);
      start_pager();
      let_time_pass(random_() % 10'000);
      end(stopped);
      ++injected_.replaced;
    } else if (chance < 70) {
      ::kill(pager_, SIGSTOP);
      let_time_pass(random_() % 20'000);
      ::kill(pager_, SIGCONT);
      ++injected_.paused;
    } else if (chance < 85) {
      image_.make_stale(random_() % kGuestPages);
      ++injected_.stale;
    } else {
      shared_->phase = Shared::Phase::storm;
      let_time_pass(random_() % 3'000);
      shared_->phase = Shared::Phase::run;
      ++injected_.storms;
    }
  }

  Image& image_;
  std::mt19937_64 random_;
  Injected& injected_;
  Shared* shared_ = nullptr;
  std::optional<RestoredGuest> guest_;
  pid_t pager_ = -1;
};

TEST(PageInFaults, NoPageIsWrongAndNobodyHangsThatANewPagerDoesNotCure) {
  const std::uint64_t wanted = number_from("PAGEFERRY_FAULTS", 60);
  const std::uint64_t first_seed = number_from("PAGEFERRY_SEED", 1);
  Image image;
  Injected injected;
  for (std::uint64_t seed = first_seed; injected.all() < wanted && !HasFailure(); ++seed) {
    SCOPED_TRACE(fmt::format("PAGEFERRY_SEED={}", seed));
    Round(image, seed, injected).run();
  }
  fmt::print(
      "{} rounds, {} faults: {} kills, {} stopped and replaced, {} paused, {} stale pages, {} "
      "storms, {} failed reads; "
      "{} removals, {} pages checked\n",
      injected.rounds, injected.all(), injected.kills, injected.replaced, injected.paused,
      injected.stale, injected.storms, injected.storage, injected.removals, injected.checks);
}

}  // namespace
}  // namespace pageferry

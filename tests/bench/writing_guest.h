// WritingGuest: memory of this process and a thread that plays a vCPU on it: it computes, writes one page, and again, so that without
// tracking it dirties about 50 MiB/s over its working set. What tracking takes from it shows as fewer accesses in the same time: the
// work between two of them is counted in steps, not in time, so a CPU that is taken away counts too.
//
// Thread rule: one thread, the benchmark's.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <random>
#include <thread>
#include <vector>

#include "bench/raw_io.h"
#include "pager/dirty_source.h"
#include "pager/page.h"
#include "transport/os/fd.h"

namespace pageferry::bench {

enum class Backing { anonymous, memfd };

struct GuestFigures {
  std::uint64_t accesses = 0;
  double collect_ms = 0;  // median; 0 without a source
};

class WritingGuest {
 public:
  static constexpr std::uint64_t kPagesPerS = 12'800;  // 50 MiB/s
  static constexpr std::uint64_t kWorkingSetBytes = 256 * kMiB;

  WritingGuest(std::uint64_t bytes, Backing backing) : bytes_(bytes) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
    if (backing == Backing::memfd) {
      file_.reset(::memfd_create("guest", MFD_CLOEXEC));
      PF_CHECK(::ftruncate(file_.get(), static_cast<off_t>(bytes)) == 0);
      flags = MAP_SHARED;
    }
    void* const at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, file_.get(), 0);
    PF_CHECK(at != MAP_FAILED);
    PF_CHECK(::madvise(at, bytes, MADV_NOHUGEPAGE) == 0);
    memory_ = static_cast<volatile std::byte*>(at);
    for (std::uint64_t byte = 0; byte < bytes; byte += kPageSizeBytes) memory_[byte] = std::byte{1};
  }
  ~WritingGuest() { ::munmap(const_cast<std::byte*>(memory_), bytes_); }
  WritingGuest(const WritingGuest&) = delete;
  WritingGuest& operator=(const WritingGuest&) = delete;

  std::uint64_t address() const {
    return reinterpret_cast<std::uintptr_t>(const_cast<std::byte*>(memory_));
  }

  // Writes for `length`, while `source`, if there is one, is asked for what was written every `pass_length`.
  GuestFigures run(Nanoseconds length, Nanoseconds pass_length, DirtySource* source,
                   std::uint64_t seed) {
    DirtyBitmap dirty(pages_of_bytes(bytes_));
    if (source != nullptr) {
      must(source->start());
      must(source->collect_into(dirty));  // every page; arms them
    }
    std::atomic<bool> stop{false};
    GuestFigures figures;
    std::thread vcpu([&] { figures.accesses = live(stop, seed); });
    std::vector<double> collections;
    const Nanoseconds start = MonotonicClock().now();
    while (MonotonicClock().now() - start < length) {
      std::this_thread::sleep_for(pass_length);
      if (source == nullptr) continue;
      const Nanoseconds before = MonotonicClock().now();
      must(source->collect_into(dirty));
      collections.push_back(1e3 * seconds_since(before));
    }
    stop = true;
    vcpu.join();
    if (source != nullptr) must(source->stop());
    if (!collections.empty()) {
      std::ranges::sort(collections);
      figures.collect_ms = collections[collections.size() / 2];
    }
    return figures;
  }

 private:
  static std::uint64_t compute(std::uint64_t state, std::uint64_t steps) {
    for (std::uint64_t step = 0; step < steps; ++step) {
      state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    }
    return state;
  }
  // Once for a machine: how many steps there are between two accesses.
  static std::uint64_t steps_per_access() {
    static const std::uint64_t steps = [] {
      constexpr std::uint64_t kTried = 100'000'000;
      const Nanoseconds start = MonotonicClock().now();
      const std::uint64_t result = compute(1, kTried);
      const double seconds = seconds_since(start);
      PF_CHECK(result != 0);
      return static_cast<std::uint64_t>(static_cast<double>(kTried) / seconds /
                                        static_cast<double>(kPagesPerS));
    }();
    return steps;
  }

  std::uint64_t live(const std::atomic<bool>& stop, std::uint64_t seed) const {
    const std::uint64_t steps = steps_per_access();
    const std::uint64_t pages = pages_of_bytes(std::min(kWorkingSetBytes, bytes_));
    std::mt19937_64 random(seed);
    std::uint64_t accesses = 0;
    std::uint64_t state = seed;
    for (; !stop; ++accesses) {
      state = compute(state, steps);
      memory_[bytes_of_pages(random() % pages)] = static_cast<std::byte>(state);
    }
    return accesses;
  }

  std::uint64_t bytes_;
  UniqueFd file_;
  volatile std::byte* memory_ = nullptr;
};

}  // namespace pageferry::bench

// HugePages: 2 MiB pages reserved for one test and given back after it. Root can reserve them; whoever cannot uses those that
// the machine has to spare. Several tests take turns: the number is one for the machine.
//
// Thread rule: one thread.
#pragma once

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cstdint>
#include <fstream>
#include <string>

#include "transport/os/fd.h"

namespace pageferry::testing_support {

inline constexpr std::uint64_t kHugeBytes = std::uint64_t{2} << 20;

class HugePages {
 public:
  explicit HugePages(std::uint64_t pages) : turn_(::open(kNumber, O_RDONLY | O_CLOEXEC)) {
    if (turn_.valid()) ::flock(turn_.get(), LOCK_EX);
    before_ = number(kNumber);
    if (number(kFree) >= pages) return;
    std::ofstream(kNumber) << before_ + pages;
    reserved_ = number(kNumber) != before_;
    enough_ = number(kFree) >= pages;
  }
  ~HugePages() {
    if (reserved_) std::ofstream(kNumber) << before_;
  }
  HugePages(const HugePages&) = delete;
  HugePages& operator=(const HugePages&) = delete;

  bool enough() const { return enough_; }

 private:
  static constexpr const char* kNumber = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
  static constexpr const char* kFree = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
  static std::uint64_t number(const char* path) {
    std::uint64_t value = 0;
    std::ifstream(path) >> value;
    return value;
  }

  UniqueFd turn_;  // locked
  std::uint64_t before_ = 0;
  bool reserved_ = false;
  bool enough_ = true;
};

}  // namespace pageferry::testing_support

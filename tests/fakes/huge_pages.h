// HugePages: 2 MiB pages reserved for one test and given back after it. Root can reserve them; whoever cannot uses those that
// the machine has to spare.
//
// Their number is one for the machine, so tests take turns: whoever needs some holds a lock (flock) on the kernel's file of that
// number for as long as it uses them. tests/harness/huge_pages.py does the same; no other test writes the number. One at a time in
// a process, and outliving all that map the pages.
//
// Thread rule: one thread.
#pragma once

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cstdint>
#include <fstream>
#include <string>

#include "fakes/page_content.h"
#include "transport/os/fd.h"

namespace pageferry::testing_support {

class HugePages {
 public:
  explicit HugePages(std::uint64_t pages) : turn_(::open(kNumber, O_RDONLY | O_CLOEXEC)) {
    if (turn_.valid()) ::flock(turn_.get(), LOCK_EX);
    before_ = number(kNumber);
    if (free() >= pages) return;
    std::ofstream(kNumber) << before_ + pages;
    reserved_ = number(kNumber) != before_;
    enough_ = free() >= pages;
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
  static constexpr const char* kPromised =
      "/sys/kernel/mm/hugepages/hugepages-2048kB/resv_hugepages";  // mapped, not touched yet
  static std::uint64_t number(const char* path) {
    std::uint64_t value = 0;
    std::ifstream(path) >> value;
    return value;
  }

  static std::uint64_t free() { return number(kFree) - number(kPromised); }

  UniqueFd turn_;  // locked
  std::uint64_t before_ = 0;
  bool reserved_ = false;
  bool enough_ = true;
};

}  // namespace pageferry::testing_support

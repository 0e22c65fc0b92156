// Writes page_file_v2.bin anew: make_page_file_v2 > page_file_v2.bin. Kept to show how it was made; the file in the
// repository must never be replaced.
#include <cstdio>

#include "golden/page_file_v2.h"

int main() {
  pageferry::testing_support::MemoryDisk base;
  pageferry::testing_support::write_golden(base);
  pageferry::testing_support::MemoryDisk disk;
  pageferry::testing_support::write_golden_v2(disk, base);
  return std::fwrite(disk.live.data(), 1, disk.live.size(), stdout) == disk.live.size() ? 0 : 1;
}

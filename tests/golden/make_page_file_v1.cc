// Writes page_file_v1.bin anew: make_page_file_v1 > page_file_v1.bin. Kept to show how it was made; the file in the
// repository must never be replaced.
#include <cstdio>

#include "golden/page_file_v1.h"

int main() {
  pageferry::testing_support::MemoryDisk disk;
  pageferry::testing_support::write_golden(disk);
  return std::fwrite(disk.live.data(), 1, disk.live.size(), stdout) == disk.live.size() ? 0 : 1;
}

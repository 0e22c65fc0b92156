// Writes valid inputs of page_file_fuzzer into a directory: without them it would need hours to find the magic.
#include <fstream>
#include <string>

#include "golden/page_file_v1.h"

int main(int argc, char** argv) {
  using namespace pageferry;
  using namespace pageferry::testing_support;
  if (argc != 2) return 2;
  MemoryDisk disk;
  write_golden(disk);
  auto reader = open_reader(disk);
  if (!reader) return 1;
  const struct {
    char kind;
    const char* name;
    std::uint64_t offset;
    std::uint64_t bytes;
  } seeds[] = {{0, "header", kHeaderOffset, kFileBlockBytes},
               {1, "commit", kCommitOffset, kFileBlockBytes},
               {2, "layout", kLayoutOffset, (*reader)->header().layout_bytes},
               {3, "delta", (*reader)->record().delta_offset, kFileBlockBytes},
               {4, "map", (*reader)->header().map_offset, kFileBlockBytes}};
  for (const auto& seed : seeds) {
    std::ofstream out(std::string(argv[1]) + "/" + seed.name, std::ios::binary);
    out.put(seed.kind);
    out.write(reinterpret_cast<const char*>(disk.live.data() + seed.offset),
              static_cast<std::streamsize>(seed.bytes));
    if (!out) return 1;
  }
  return 0;
}

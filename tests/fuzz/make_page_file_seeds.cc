// Writes valid inputs of page_file_fuzzer into a directory: without them it would need hours to find the magic.
#include <fstream>
#include <string>

#include "golden/page_file_v2.h"

int main(int argc, char** argv) {
  using namespace pageferry;
  using namespace pageferry::testing_support;
  if (argc != 2) return 2;
  MemoryDisk disk;
  write_golden(disk);
  auto reader = open_reader(disk);
  if (!reader) return 1;
  MemoryDisk based;
  write_golden_v2(based, disk);
  const struct {
    char kind;
    const char* name;
    const MemoryDisk* disk;
    std::uint64_t offset;
    std::uint64_t bytes;
  } seeds[] = {{0, "header", &disk, kHeaderOffset, kFileBlockBytes},
               {1, "commit", &disk, kCommitOffset, kFileBlockBytes},
               {2, "layout", &disk, kLayoutOffset, (*reader)->header().layout_bytes},
               {3, "delta", &disk, (*reader)->record().delta_offset, kFileBlockBytes},
               {4, "map", &disk, (*reader)->header().map_offset, kFileBlockBytes},
               {0, "header_with_base", &based, kHeaderOffset, kFileBlockBytes},
               {1, "commit_with_base", &based, kCommitOffset, kFileBlockBytes},
               {4, "map_with_base", &based, (*reader)->header().map_offset, kFileBlockBytes}};
  for (const auto& seed : seeds) {
    std::ofstream out(std::string(argv[1]) + "/" + seed.name, std::ios::binary);
    out.put(seed.kind);
    out.write(reinterpret_cast<const char*>(seed.disk->live.data() + seed.offset),
              static_cast<std::streamsize>(seed.bytes));
    if (!out) return 1;
  }
  return 0;
}

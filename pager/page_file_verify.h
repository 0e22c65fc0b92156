// Looking at a page file: what it says about itself, and the proof that every stored page is what
// was stored. For `pageferry inspect` and `send --verify`.
//
// Thread rule: one thread, that of the file; progress is called on it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "pager/page_file_bases.h"
#include "pager/page_file_image.h"
#include "transport/storage_file.h"
#include "transport/storage_wait.h"

namespace pageferry {

struct BaseSummary {
  std::string file_name;
  std::string commit_id;  // hex
  std::uint64_t committed_bytes = 0;
  std::uint64_t pages = 0;  // that lie in it
};
struct PageFileSummary {
  std::string name;
  std::string file_id;    // hex
  std::string commit_id;  // hex
  std::uint32_t format_version = 0;
  MemoryLayout layout;
  std::uint64_t memory_bytes = 0;  // of the guest
  std::uint64_t stored_pages = 0;
  std::uint64_t zero_pages = 0;
  std::uint64_t tail_pages = 0;  // stored while the guest was stopped
  std::uint64_t slots = 0;       // home slots given out
  std::uint64_t delta_entries = 0;
  std::uint32_t version_max = 0;  // the blackout's
  std::uint64_t map_bytes = 0;
  std::uint64_t tail_reserved_bytes = 0;
  std::uint64_t committed_bytes = 0;
  std::uint64_t base_pages = 0;  // of the stored pages, in bases
  std::vector<BaseSummary> bases;
};
PageFileSummary summarize(const std::string& name, const PageFileImage& image);

struct VerifyOptions {
  std::size_t read_bytes = std::size_t{1} << 20;  // of one read; a multiple of the page size
  unsigned reads_in_flight = 8;
  unsigned attempts = 3;       // for a read that fails or brings a bad page
  std::size_t named_max = 16;  // bad pages that are named, the others are counted
};
struct VerifyReport {
  std::uint64_t pages_checked = 0;
  std::uint64_t bytes_read = 0;
  std::uint64_t bad_pages = 0;
  std::vector<std::string> bad;  // one line each: page, RAM block, offsets, what is wrong
};
using VerifyProgress = std::function<void(std::uint64_t pages_checked, std::uint64_t pages)>;

// Reads every stored page, in file order, and checks it; then those in each of the bases, which are the image's. Pages that are
// bad after all attempts are in the report, which is a success of this function. Errors: Errc::corrupt when two pages claim one
// place; Errc::canceled, Errc::timeout; no memory (8 bytes for each block of the file). After canceled or timeout the buffers of
// reads in flight are leaked.
Result<VerifyReport> verify_pages(StorageFile& file, const PageFileImage& image,
                                  const PageFileBases& bases, const VerifyOptions& options,
                                  const WaitBounds& bounds, const VerifyProgress& progress);

}  // namespace pageferry

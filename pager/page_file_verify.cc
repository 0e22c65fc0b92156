// In file order, not in page order: what the blackout left in the tail is scattered over the guest,
// and small reads in page order would be an order of magnitude slower. So the map is turned around
// first (file block -> page), and then the file is read from front to back in large pieces, leaving
// out those that hold no live page (old content of home slots that moved to the tail is never
// looked at). Each base is one more such file.
#include "pager/page_file_verify.h"

#include <fmt/format.h>

#include <algorithm>

#include "transport/crc32c.h"
#include "transport/io_buffer.h"

namespace pageferry {
namespace {

constexpr unsigned kReadsInFlightMax = 64;

// Page + 1 for each block of the file, or of that base; 0: no live page.
Result<std::vector<std::uint64_t>> pages_by_block(const PageFileImage& image, std::size_t base) {
  const std::uint64_t file_bytes =
      base == 0 ? image.record.file_bytes : image.header.bases[base - 1].file_bytes;
  std::vector<std::uint64_t> pages(file_bytes / kFileBlockBytes);
  for (std::uint64_t page = 0; page < image.map.pages(); ++page) {
    const MapEntry entry = image.map.get(PageIndex{page});
    if (entry.is_zero() || entry.base() != base) continue;
    std::uint64_t& owner = pages[entry.block()];
    if (owner != 0) {
      return page_file_corrupt(
          fmt::format("pages {} and {} are both said to be in block {}{}", owner - 1, page,
                      entry.block(), base == 0 ? std::string() : fmt::format(" of base {}", base)));
    }
    owner = page + 1;
  }
  return pages;
}

class Verifier {
 public:
  // `where`: said of a bad page, before its offset. `report`: what was found in other files.
  Verifier(StorageFile& file, const PageFileImage& image, const VerifyOptions& options,
           std::vector<std::uint64_t> pages, std::string where, VerifyReport report)
      : file_(file),
        image_(image),
        options_(options),
        pages_(std::move(pages)),
        where_(std::move(where)),
        report_(std::move(report)) {}

  Result<VerifyReport> run(const WaitBounds& bounds, const VerifyProgress& progress);

 private:
  struct Piece {
    IoBuffer buffer;
    std::uint64_t first_block = 0;
    std::uint64_t blocks = 0;
    unsigned attempts = 0;
  };

  Result<void> start(std::uint64_t tag, Piece& piece);
  // The next piece that holds a live page; false at the end.
  bool choose(Piece& piece);
  Result<void> settle(IoDone& done, std::vector<std::uint64_t>& idle);
  void report(const Piece& piece, const Result<void>& outcome);
  std::string describe(std::uint64_t block) const;

  StorageFile& file_;
  const PageFileImage& image_;
  const VerifyOptions& options_;
  std::vector<std::uint64_t> pages_;
  const std::string where_;
  std::vector<Piece> pieces_;
  std::uint64_t next_block_ = 0;
  VerifyReport report_;
};

bool Verifier::choose(Piece& piece) {
  while (next_block_ < pages_.size() && pages_[next_block_] == 0) ++next_block_;
  if (next_block_ == pages_.size()) return false;
  piece.first_block = next_block_;
  piece.blocks =
      std::min<std::uint64_t>(options_.read_bytes / kFileBlockBytes, pages_.size() - next_block_);
  while (pages_[piece.first_block + piece.blocks - 1] == 0) --piece.blocks;
  piece.attempts = 0;
  next_block_ += piece.blocks;
  return true;
}

Result<void> Verifier::start(std::uint64_t tag, Piece& piece) {
  ++piece.attempts;
  const std::size_t bytes = piece.blocks * kFileBlockBytes;
  report_.bytes_read += bytes;
  return file_.submit_read(piece.buffer.bytes().first(bytes), piece.first_block * kFileBlockBytes,
                           tag, IoPriority::background);
}

std::string Verifier::describe(std::uint64_t block) const {
  const PageIndex page{pages_[block] - 1};
  const RamBlock& ram = image_.layout.blocks()[image_.layout.block_of(page)];
  return fmt::format("page {} (RAM block '{}' offset {:#x}, {}file offset {})", raw(page), ram.name,
                     bytes_of_pages(page - ram.first_page), where_, block * kFileBlockBytes);
}

void Verifier::report(const Piece& piece, const Result<void>& outcome) {
  for (std::uint64_t i = 0; i < piece.blocks; ++i) {
    const std::uint64_t block = piece.first_block + i;
    if (pages_[block] == 0) continue;
    ++report_.pages_checked;
    std::string why;
    if (!outcome) {
      why = outcome.error().message;
    } else {
      const std::uint32_t stored = image_.map.get(PageIndex{pages_[block] - 1}).crc;
      const std::uint32_t computed =
          crc32c(piece.buffer.bytes().subspan(i * kFileBlockBytes, kFileBlockBytes));
      if (computed == stored) continue;
      why = fmt::format("checksum {:#010x}, stored was {:#010x}", computed, stored);
    }
    if (++report_.bad_pages <= options_.named_max) {
      report_.bad.push_back(fmt::format("{}: {}", describe(block), why));
    }
  }
}

Result<void> Verifier::settle(IoDone& done, std::vector<std::uint64_t>& idle) {
  Piece& piece = pieces_[done.tag];
  const VerifyReport before = report_;
  report(piece, done.outcome);
  if (report_.bad_pages > before.bad_pages && piece.attempts < options_.attempts) {
    // Maybe only the way here was bad.
    const std::uint64_t bytes_read = report_.bytes_read;
    report_ = before;
    report_.bytes_read = bytes_read;
    return start(done.tag, piece);
  }
  idle.push_back(done.tag);
  return {};
}

Result<VerifyReport> Verifier::run(const WaitBounds& bounds, const VerifyProgress& progress) {
  const unsigned in_flight = std::min(options_.reads_in_flight, file_.queue_depth());
  PF_ASSIGN(const std::unique_ptr<IoBufferPool> pool,
            IoBufferPool::make(options_.read_bytes, in_flight));
  pieces_.resize(in_flight);
  std::vector<std::uint64_t> idle;
  for (std::uint64_t tag = 0; tag < in_flight; ++tag) {
    pieces_[tag].buffer = pool->take();
    idle.push_back(tag);
  }
  std::vector<IoDone> done;
  Result<void> outcome;
  while (outcome) {
    while (outcome && !idle.empty() && choose(pieces_[idle.back()])) {
      outcome = start(idle.back(), pieces_[idle.back()]);
      if (outcome) idle.pop_back();
    }
    if (!outcome || file_.in_flight() == 0) break;
    done.clear();
    outcome = wait_for_completions(file_, bounds, done);
    for (IoDone& one : done) {
      if (outcome) outcome = settle(one, idle);
    }
    if (outcome && progress) progress(report_.pages_checked, image_.record.stored_pages);
  }
  if (file_.in_flight() > 0) pool->abandon();
  pieces_.clear();
  if (!outcome) return tl::make_unexpected(outcome.error());
  return std::move(report_);
}

}  // namespace

PageFileSummary summarize(const std::string& name, const PageFileImage& image) {
  PageFileSummary s;
  s.name = name;
  s.file_id = to_hex(image.header.file_id);
  s.commit_id = to_hex(image.record.commit_id);
  s.format_version = image.header.format_version();
  s.layout = image.layout;
  s.memory_bytes = image.layout.bytes();
  s.stored_pages = image.record.stored_pages;
  s.zero_pages = image.layout.pages() - image.record.stored_pages;
  s.tail_pages = image.record.tail_pages;
  s.slots = image.record.slots;
  s.delta_entries = image.record.delta_entries;
  s.version_max = image.record.version_max;
  s.map_bytes = image.header.map_blocks() * kFileBlockBytes;
  s.tail_reserved_bytes = image.header.tail_bytes;
  s.committed_bytes = image.record.file_bytes;
  s.base_pages = image.record.base_pages;
  for (const PageFileBase& base : image.header.bases) {
    s.bases.push_back({base.file_name(), to_hex(base.commit_id), base.file_bytes, 0});
  }
  if (s.bases.empty()) return s;
  for (std::uint64_t page = 0; page < image.map.pages(); ++page) {
    const std::size_t base = image.map.get(PageIndex{page}).base();
    if (base != 0) ++s.bases[base - 1].pages;
  }
  return s;
}

Result<VerifyReport> verify_pages(StorageFile& file, const PageFileImage& image,
                                  const PageFileBases& bases, const VerifyOptions& options,
                                  const WaitBounds& bounds, const VerifyProgress& progress) {
  if (options.read_bytes == 0 || !is_page_aligned(options.read_bytes) ||
      options.read_bytes > kIoBytesMax || options.reads_in_flight == 0 ||
      options.reads_in_flight > kReadsInFlightMax || options.attempts == 0) {
    return fail(Errc::invalid,
                fmt::format("verify with {} reads of {} bytes, {} attempts: limits 1..{}, {}, 1..",
                            options.reads_in_flight, options.read_bytes, options.attempts,
                            kReadsInFlightMax, kIoBytesMax));
  }
  PF_CHECK(bases.count() == image.header.bases.size());
  VerifyReport report;
  for (std::size_t number = 0; number <= bases.count(); ++number) {
    PF_ASSIGN(std::vector<std::uint64_t> pages, pages_by_block(image, number));
    StorageFile& holds = number == 0 ? file : bases.file(number);
    std::string where = number == 0 ? "" : image.header.bases[number - 1].file_name() + " ";
    PF_ASSIGN(report,
              Verifier(holds, image, options, std::move(pages), std::move(where), std::move(report))
                  .run(bounds, progress));
  }
  return report;
}

}  // namespace pageferry

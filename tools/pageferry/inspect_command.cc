// inspect: what a page file says about itself, and with --verify whether every page in it, or in a base
// of it, is what was written.
#include <fmt/format.h>

#include "pager/page_file_verify.h"
#include "tools/pageferry/commands.h"
#include "tools/pageferry/memory_source.h"
#include "tools/pageferry/reporter.h"

namespace pageferry {
namespace {

constexpr std::uint64_t kMapBytesMax = std::uint64_t{16} << 30;

nlohmann::json to_json(const PageFileSummary& summary) {
  nlohmann::json blocks = nlohmann::json::array();
  for (const RamBlock& block : summary.layout.blocks()) {
    blocks.push_back({{"name", block.name},
                      {"bytes", block.length_bytes},
                      {"backing-page-bytes", block.backing_page_bytes}});
  }
  nlohmann::json bases = nlohmann::json::array();
  for (const BaseSummary& base : summary.bases) {
    bases.push_back({{"file", base.file_name},
                     {"commit-id", base.commit_id},
                     {"committed-bytes", base.committed_bytes},
                     {"pages", base.pages}});
  }
  return {{"file", summary.name},
          {"format-version", summary.format_version},
          {"file-id", summary.file_id},
          {"commit-id", summary.commit_id},
          {"memory-bytes", summary.memory_bytes},
          {"stored-pages", summary.stored_pages},
          {"zero-pages", summary.zero_pages},
          {"tail-pages", summary.tail_pages},
          {"slots", summary.slots},
          {"delta-entries", summary.delta_entries},
          {"version-max", summary.version_max},
          {"map-bytes", summary.map_bytes},
          {"tail-reserved-bytes", summary.tail_reserved_bytes},
          {"committed-bytes", summary.committed_bytes},
          {"base-pages", summary.base_pages},
          {"bases", std::move(bases)},
          {"ram-blocks", std::move(blocks)}};
}

struct OpenFile {
  std::unique_ptr<AioFile> file;
  PageFileImage image;
  PageFileBases bases;
};

Result<OpenFile> open_page_file(const std::string& path) {
  OpenFile opened;
  PF_ASSIGN(opened.file, open_storage_file(path, AioOptions{}));
  PF_ASSIGN(opened.image, PageFileImage::load(*opened.file, kMapBytesMax, WaitBounds{}));
  auto bases = PageFileBases::open(opened.image.header, bases_beside(path), WaitBounds{});
  if (!bases) return with_context(std::move(bases).error(), path);
  opened.bases = std::move(*bases);
  return opened;
}

// Adds what the proof found; false when a page is bad.
Result<bool> add_proof(OpenFile& opened, Reporter& reporter, nlohmann::json& result) {
  const std::uint64_t stored = bytes_of_pages(opened.image.map.pages());
  const auto progress = [&](std::uint64_t checked, std::uint64_t pages) {
    nlohmann::json fields;
    fields["ram"] = {{"total", bytes_of_pages(pages)},
                     {"transferred", bytes_of_pages(checked)},
                     {"remaining", bytes_of_pages(pages - checked)},
                     {"page-size", kPageSizeBytes}};
    reporter.progress("verify", std::move(fields));
  };
  PF_ASSIGN(const VerifyReport report, verify_pages(*opened.file, opened.image, opened.bases,
                                                    VerifyOptions{}, WaitBounds{}, progress));
  result["verified"] = {{"pages", report.pages_checked},
                        {"bytes-read", report.bytes_read},
                        {"memory-bytes", stored},
                        {"bad-pages", report.bad_pages}};
  for (const std::string& line : report.bad) reporter.error(Error{Errc::corrupt, 0, line});
  return report.bad_pages == 0;
}

}  // namespace

ExitCode run_inspect(const InspectCommand& command, const Clock& clock) {
  Reporter reporter(command.common.style, command.common.verbosity, clock);
  auto opened = open_page_file(command.file);
  if (!opened) {
    reporter.error(opened.error());
    return ExitCode::failed;
  }
  nlohmann::json result = to_json(summarize(command.file, opened->image));
  bool good = true;
  if (command.read_back == ReadBack::yes) {
    auto proved = add_proof(*opened, reporter, result);
    if (!proved) reporter.error(proved.error());
    good = proved && *proved;
  }
  const ExitCode code = good ? ExitCode::done : ExitCode::state_lost;
  reporter.finish(std::move(result), code);
  return code;
}

}  // namespace pageferry

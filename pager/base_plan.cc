// One walk over the map of the base counts what is needed of each file.
#include "pager/base_plan.h"

#include <fmt/format.h>

#include <algorithm>

namespace pageferry {
namespace {

// Of each file, not counted: too little to be worth a full write.
constexpr std::uint64_t kBaseFreeBytes = std::uint64_t{64} << 20;

using PagesByFile = std::array<std::uint64_t, kBasesMax + 1>;

PagesByFile count_pages_by_file(const PageMap& map) {
  PagesByFile pages{};
  for (std::uint64_t page = 0; page < map.pages(); ++page) {
    const MapEntry entry = map.get(PageIndex{page});
    if (!entry.is_zero()) ++pages[entry.base()];
  }
  return pages;
}

}  // namespace

MapEntry BasePlan::carried(const MapEntry& entry) const {
  if (entry.is_zero()) return {};
  const std::uint64_t number = numbers[entry.base()];
  PF_CHECK(number != 0);
  return {entry.block() | number << kLocationBaseShift, 0, entry.crc};
}

Result<BasePlan> plan_bases(const PageFileImage& base) {
  const PagesByFile pages = count_pages_by_file(base.map);
  BasePlan plan;
  std::uint64_t blocks = 0;
  for (std::size_t number = 0; number < pages.size(); ++number) {
    if (pages[number] == 0) continue;
    if (plan.bases.size() == kBasesMax) {
      return fail(Errc::unsupported, fmt::format("its pages lie in more than {} files", kBasesMax));
    }
    plan.bases.push_back(number == 0 ? PageFileBase{base.record.commit_id, base.record.file_bytes}
                                     : base.header.bases[number - 1]);
    plan.numbers[number] = static_cast<std::uint8_t>(plan.bases.size());
    plan.pages += pages[number];
    // Head and map are there whatever the guest holds, and the reserved tail nearly so.
    const std::uint64_t free_bytes = base.header.tail_offset + kBaseFreeBytes;
    blocks += (std::max(plan.bases.back().file_bytes, free_bytes) - free_bytes) / kFileBlockBytes;
  }
  if (blocks > kBaseBlocksPerPageMax * plan.pages) {
    return fail(Errc::unsupported,
                fmt::format("{} pages are needed of files that hold {}, limit {} times", plan.pages,
                            blocks, kBaseBlocksPerPageMax));
  }
  return plan;
}

}  // namespace pageferry

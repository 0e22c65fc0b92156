// Each member by itself first, then the region as a whole, then the regions beside each other.
#include "vmstate/firecracker_regions.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>

namespace pageferry {
namespace {

using nlohmann::json;

constexpr std::uint64_t kHugePageSizeBytes = std::uint64_t{2} << 20;
constexpr std::size_t kNestingMax = 4;  // an array of flat objects is 2 deep

struct Region {
  std::uint64_t address = 0;
  std::uint64_t size_bytes = 0;
  std::uint64_t offset_bytes = 0;
  std::uint64_t page_size_bytes = 0;
};

// Where the brackets of a text close and how deep they get; strings are skipped.
struct Brackets {
  std::size_t end = 0;  // behind the bracket that closes the first; 0: it is open
  std::size_t depth_max = 0;
};
Brackets brackets_of(std::string_view text) {
  Brackets found;
  std::size_t depth = 0;
  bool in_text = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_text && c == '\\') {
      ++i;
    } else if (c == '"') {
      in_text = !in_text;
    } else if (!in_text && (c == '[' || c == '{')) {
      found.depth_max = std::max(found.depth_max, ++depth);
    } else if (!in_text && (c == ']' || c == '}')) {
      if (depth <= 1) {
        found.end = i + 1;
        return found;
      }
      --depth;
    }
  }
  return found;
}

Unexpected wrong(std::size_t index, std::string_view member, std::string_view why) {
  return fail(Errc::invalid, fmt::format("Firecracker region {}: {} {}", index, member, why));
}

// nullopt: the member is not there.
Result<std::optional<std::uint64_t>> find_number(const json& object, std::size_t index,
                                                 const char* member) {
  const auto found = object.find(member);
  if (found == object.end()) return std::optional<std::uint64_t>();
  if (!found->is_number_unsigned()) return wrong(index, member, "is no whole number from 0 on");
  return std::optional<std::uint64_t>(found->get<std::uint64_t>());
}

Result<std::uint64_t> number(const json& object, std::size_t index, const char* member) {
  PF_ASSIGN(const std::optional<std::uint64_t> value, find_number(object, index, member));
  if (!value) return wrong(index, member, "is missing");
  return *value;
}

Result<std::uint64_t> page_size(const json& object, std::size_t index) {
  PF_ASSIGN(const auto bytes, find_number(object, index, "page_size"));
  PF_ASSIGN(const auto deprecated, find_number(object, index, "page_size_kib"));
  if (!bytes && !deprecated) return wrong(index, "page_size", "is missing, and page_size_kib too");
  if (bytes && deprecated && *bytes != *deprecated) {
    return wrong(index, "page_size",
                 fmt::format("is {}, page_size_kib {}: both are in bytes and must agree", *bytes,
                             *deprecated));
  }
  const std::uint64_t value = bytes ? *bytes : *deprecated;
  if (value == kPageSizeBytes || value == kHugePageSizeBytes) return value;
  return wrong(
      index, bytes ? "page_size" : "page_size_kib",
      fmt::format("is {}, must be {} or {} bytes", value, kPageSizeBytes, kHugePageSizeBytes));
}

Result<void> check_region(const Region& region, std::size_t index, std::uint64_t source_pages) {
  const std::uint64_t page = region.page_size_bytes;
  if (region.size_bytes == 0 || region.size_bytes % page != 0 ||
      region.size_bytes > kMemoryBytesMax) {
    return wrong(index, "size",
                 fmt::format("is {}, must be a multiple of its page size {} in 1..{}",
                             region.size_bytes, page, kMemoryBytesMax));
  }
  if (region.address == 0 || region.address % page != 0) {
    return wrong(index, "base_host_virt_addr",
                 fmt::format("is {:#x}, must be a multiple of its page size {} and not 0",
                             region.address, page));
  }
  if (region.address > kAddressEnd - region.size_bytes) {
    return wrong(index, "base_host_virt_addr",
                 fmt::format("is {:#x}: {} bytes there end beyond {:#x}", region.address,
                             region.size_bytes, kAddressEnd));
  }
  if (!is_page_aligned(region.offset_bytes)) {
    return wrong(
        index, "offset",
        fmt::format("is {}, must be a multiple of {}", region.offset_bytes, kPageSizeBytes));
  }
  const std::uint64_t pages = pages_of_bytes(region.size_bytes);
  const std::uint64_t first = pages_of_bytes(region.offset_bytes);
  if (pages > source_pages || first > source_pages - pages) {
    return wrong(index, "offset",
                 fmt::format("is {}: {} bytes from there on are more than the {} bytes of memory "
                             "that there are",
                             region.offset_bytes, region.size_bytes, bytes_of_pages(source_pages)));
  }
  return {};
}

Result<Region> region_from_json(const json& object, std::size_t index, std::uint64_t source_pages) {
  if (!object.is_object()) return wrong(index, "entry", "is no object");
  Region region;
  PF_ASSIGN(region.address, number(object, index, "base_host_virt_addr"));
  PF_ASSIGN(region.size_bytes, number(object, index, "size"));
  PF_ASSIGN(region.offset_bytes, number(object, index, "offset"));
  PF_ASSIGN(region.page_size_bytes, page_size(object, index));
  PF_TRY(check_region(region, index, source_pages));
  return region;
}

// `member`: where a region begins, in whatever it says.
Result<void> check_apart(const std::vector<Region>& regions, std::uint64_t Region::*member,
                         std::string_view name) {
  std::vector<std::size_t> order(regions.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(),
            [&](std::size_t a, std::size_t b) { return regions[a].*member < regions[b].*member; });
  for (std::size_t i = 1; i < order.size(); ++i) {
    const Region& before = regions[order[i - 1]];
    const Region& after = regions[order[i]];
    if (after.*member - before.*member >= before.size_bytes) continue;
    return wrong(order[i], name,
                 fmt::format("is {:#x}, inside region {} of {} bytes at {:#x}", after.*member,
                             order[i - 1], before.size_bytes, before.*member));
  }
  return {};
}

Result<FirecrackerRegions> with_layout(const std::vector<Region>& regions) {
  FirecrackerRegions result;
  std::vector<RamBlock> blocks;
  for (std::size_t i = 0; i < regions.size(); ++i) {
    blocks.push_back({.name = fmt::format("region {}", i),
                      .length_bytes = regions[i].size_bytes,
                      .backing_page_bytes = regions[i].page_size_bytes});
    result.addresses.push_back(regions[i].address);
    result.source_pages.push_back(PageIndex{pages_of_bytes(regions[i].offset_bytes)});
  }
  auto layout = MemoryLayout::make(std::move(blocks));
  if (!layout) return with_context(std::move(layout).error(), "Firecracker regions");
  result.layout = std::move(*layout);
  return result;
}

}  // namespace

MessageExtent extent_of_regions_message(std::string_view text) {
  const std::size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string_view::npos) return MessageExtent::partial;
  if (text[begin] != '[') return MessageExtent::no_array;
  return brackets_of(text).end == 0 ? MessageExtent::partial : MessageExtent::whole;
}

Result<FirecrackerRegions> decode_firecracker_regions(std::string_view text,
                                                      std::uint64_t source_pages) {
  if (text.size() > kFirecrackerMessageBytesMax) {
    return fail(Errc::invalid, fmt::format("Firecracker's region list has {} bytes, at most {}",
                                           text.size(), kFirecrackerMessageBytesMax));
  }
  // Nesting is bounded before parsing: what is built from JSON is also taken apart by recursion.
  if (brackets_of(text).depth_max > kNestingMax) {
    return fail(Errc::invalid,
                fmt::format("Firecracker's region list is nested deeper than {}", kNestingMax));
  }
  const json list = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!list.is_array()) {
    return fail(Errc::invalid,
                fmt::format("Firecracker's region list of {} bytes is no JSON array", text.size()));
  }
  if (list.empty() || list.size() > kFirecrackerRegionsMax) {
    return fail(Errc::invalid, fmt::format("Firecracker names {} regions, limit 1..{}", list.size(),
                                           kFirecrackerRegionsMax));
  }
  std::vector<Region> regions;
  for (std::size_t i = 0; i < list.size(); ++i) {
    PF_ASSIGN(const Region region, region_from_json(list[i], i, source_pages));
    regions.push_back(region);
  }
  PF_TRY(check_apart(regions, &Region::address, "base_host_virt_addr"));
  PF_TRY(check_apart(regions, &Region::offset_bytes, "offset"));
  return with_layout(regions);
}

}  // namespace pageferry

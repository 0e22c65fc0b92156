// Firecracker's region list: what is right becomes a layout, and each thing that is wrong is refused in one line that names it.
#include "vmstate/firecracker_regions.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace pageferry {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

constexpr std::uint64_t kMib = std::uint64_t{1} << 20;
constexpr std::uint64_t kSourcePages = 1024;  // 4 MiB

json region(std::uint64_t address, std::uint64_t size, std::uint64_t offset) {
  return {{"base_host_virt_addr", address},
          {"size", size},
          {"offset", offset},
          {"page_size", 4096},
          {"page_size_kib", 4096}};
}

json two_regions() {
  return json::array({region(0x7f0000000000, 3 * kMib, 0), region(0x7f1000000000, kMib, 3 * kMib)});
}

Result<FirecrackerRegions> decode(const json& list) {
  return decode_firecracker_regions(list.dump(), kSourcePages);
}

std::string refusal_of(const json& list) {
  const auto decoded = decode(list);
  if (decoded) return "accepted";
  EXPECT_EQ(decoded.error().code, Errc::invalid);
  EXPECT_THAT(decoded.error().message, Not(HasSubstr("\n")));
  return decoded.error().message;
}

std::string refusal_with(const char* at, const json& value) {
  json list = two_regions();
  list[json::json_pointer(at)] = value;
  return refusal_of(list);
}

TEST(FirecrackerRegions, EachRegionBecomesABlock) {
  const auto decoded = decode(two_regions());
  ASSERT_TRUE(decoded) << decoded.error().message;
  ASSERT_EQ(decoded->layout.blocks().size(), 2U);
  EXPECT_EQ(decoded->layout.blocks()[0].length_bytes, 3 * kMib);
  EXPECT_EQ(decoded->layout.blocks()[0].backing_page_bytes, kPageSizeBytes);
  EXPECT_THAT(decoded->addresses, ElementsAre(0x7f0000000000U, 0x7f1000000000U));
  EXPECT_THAT(decoded->source_pages, ElementsAre(PageIndex{0}, PageIndex{768}));
}

TEST(FirecrackerRegions, TheOrderIsTheirs) {
  const auto decoded = decode(
      json::array({region(0x7f1000000000, kMib, 3 * kMib), region(0x7f0000000000, 3 * kMib, 0)}));
  ASSERT_TRUE(decoded) << decoded.error().message;
  EXPECT_THAT(decoded->source_pages, ElementsAre(PageIndex{768}, PageIndex{0}));
}

TEST(FirecrackerRegions, EitherPageSizeWillDoAndBothAreInBytes) {
  for (const char* gone : {"page_size", "page_size_kib"}) {
    json list = two_regions();
    list[0].erase(gone);
    EXPECT_EQ(refusal_of(list), "accepted") << gone;
  }
  json list = two_regions();
  list[1].erase("page_size");
  list[1].erase("page_size_kib");
  EXPECT_THAT(refusal_of(list), HasSubstr("region 1: page_size is missing"));
  EXPECT_THAT(refusal_with("/0/page_size_kib", 4), HasSubstr("is 4096, page_size_kib 4"));
}

TEST(FirecrackerRegions, HugePagesAreKnown) {
  json list = json::array({region(0x7f0000000000, 2 * kMib, 0)});
  list[0]["page_size"] = list[0]["page_size_kib"] = 2 * kMib;
  const auto decoded = decode(list);
  ASSERT_TRUE(decoded) << decoded.error().message;
  EXPECT_EQ(decoded->layout.blocks()[0].backing_page_bytes, 2 * kMib);
  list[0]["base_host_virt_addr"] = 0x7f0000001000;
  EXPECT_THAT(refusal_of(list), HasSubstr("multiple of its page size 2097152"));
  list[0]["base_host_virt_addr"] = 0x7f0000000000;
  list[0]["size"] = kMib;
  EXPECT_THAT(refusal_of(list), HasSubstr("size is 1048576"));
}

TEST(FirecrackerRegions, OtherPageSizesAreRefused) {
  for (const std::uint64_t bytes :
       {std::uint64_t{0}, std::uint64_t{4}, std::uint64_t{8192}, 1024 * kMib}) {
    json list = two_regions();
    list[0]["page_size"] = list[0]["page_size_kib"] = bytes;
    EXPECT_THAT(refusal_of(list), HasSubstr(fmt::format("page_size is {}", bytes)));
  }
}

TEST(FirecrackerRegions, MembersMustBeThereAndWholeNumbers) {
  for (const char* member : {"base_host_virt_addr", "size", "offset"}) {
    json list = two_regions();
    list[1].erase(member);
    EXPECT_THAT(refusal_of(list), HasSubstr(fmt::format("region 1: {} is missing", member)));
    for (const json& value : {json(-1), json("1"), json(1.5), json(nullptr), json::array()}) {
      EXPECT_THAT(refusal_with(fmt::format("/1/{}", member).c_str(), value),
                  HasSubstr(fmt::format("region 1: {} is no whole number", member)));
    }
  }
}

TEST(FirecrackerRegions, MembersOfNewerVersionsAreLeftAlone) {
  json list = two_regions();
  list[0]["numa_node"] = {{"id", 1}};
  EXPECT_EQ(refusal_of(list), "accepted");
}

TEST(FirecrackerRegions, SizesAndAddressesHaveLimits) {
  EXPECT_THAT(refusal_with("/0/size", 0), HasSubstr("size is 0"));
  EXPECT_THAT(refusal_with("/0/size", 4097), HasSubstr("size is 4097"));
  EXPECT_THAT(refusal_with("/0/size", std::uint64_t{1} << 63),
              HasSubstr("size is 9223372036854775808"));
  EXPECT_THAT(refusal_with("/0/base_host_virt_addr", 0), HasSubstr("is 0x0"));
  EXPECT_THAT(refusal_with("/0/base_host_virt_addr", 0x7f0000000001), HasSubstr("0x7f0000000001"));
  EXPECT_THAT(refusal_with("/0/base_host_virt_addr", ~std::uint64_t{0} << 12),
              HasSubstr("end beyond"));
  EXPECT_THAT(refusal_with("/1/offset", 3 * kMib + 1), HasSubstr("offset is 3145729, must be"));
}

TEST(FirecrackerRegions, MoreThanTheMemorySourceHasIsRefused) {
  EXPECT_THAT(refusal_with("/1/offset", 3 * kMib + 4096), HasSubstr("the 4194304 bytes of memory"));
  EXPECT_THAT(refusal_with("/1/offset", ~std::uint64_t{0} << 12), HasSubstr("region 1: offset"));
  EXPECT_THAT(refusal_with("/0/size", 5 * kMib), HasSubstr("region 0: offset is 0"));
}

TEST(FirecrackerRegions, OverlapsAreRefused) {
  EXPECT_THAT(refusal_with("/1/base_host_virt_addr", 0x7f0000000000 + 3 * kMib - 4096),
              HasSubstr("inside region 0 of 3145728 bytes at 0x7f0000000000"));
  EXPECT_EQ(refusal_with("/1/base_host_virt_addr", 0x7f0000000000 + 3 * kMib), "accepted");
  EXPECT_THAT(refusal_with("/1/offset", 2 * kMib),
              HasSubstr("region 1: offset is 0x200000, inside"));
  EXPECT_THAT(refusal_of(json::array({two_regions()[0], two_regions()[0]})), HasSubstr("inside"));
}

TEST(FirecrackerRegions, TheirNumberHasALimit) {
  EXPECT_THAT(refusal_of(json::array()), HasSubstr("0 regions"));
  json list = json::array();
  for (std::uint64_t i = 0; i < kFirecrackerRegionsMax; ++i) {
    list.push_back(region(0x7f0000000000 + i * 8192, 4096, i * 4096));
  }
  EXPECT_EQ(refusal_of(list), "accepted");
  EXPECT_GT(list.dump().size(), 16384U) << "far more than one packet";
  EXPECT_LT(list.dump().size(), kFirecrackerMessageBytesMax);
  list.push_back(region(0x7e0000000000, 4096, kFirecrackerRegionsMax * 4096));
  EXPECT_THAT(refusal_of(list), HasSubstr("257 regions, limit 1..256"));
}

TEST(FirecrackerRegions, WhatIsNoListIsRefused) {
  for (const char* text : {"", "null", "{}", "[", "[}", "[1]", "[[]]", "[{}", "hello", "[{}] x",
                           "[{\"size\":1e400}]", "[\"\xff\"]"}) {
    const auto decoded = decode_firecracker_regions(text, kSourcePages);
    ASSERT_FALSE(decoded) << text;
    EXPECT_EQ(decoded.error().code, Errc::invalid) << text;
  }
  const std::string deep = std::string(100'000, '[');
  EXPECT_THAT(decode_firecracker_regions(deep, kSourcePages).error().message,
              HasSubstr("nested deeper"));
  const std::string large(kFirecrackerMessageBytesMax + 1, ' ');
  EXPECT_THAT(decode_firecracker_regions(large, kSourcePages).error().message,
              HasSubstr("131073 bytes"));
}

TEST(FirecrackerRegions, EveryBeginningOfAMessageIsPartial) {
  json list = two_regions();
  list[0]["name"] = "a ] and \\\" a [";
  const std::string text = "\n " + list.dump();
  for (std::size_t bytes = 0; bytes < text.size(); ++bytes) {
    ASSERT_EQ(extent_of_regions_message(text.substr(0, bytes)), MessageExtent::partial) << bytes;
  }
  EXPECT_EQ(extent_of_regions_message(text), MessageExtent::whole);
  EXPECT_EQ(extent_of_regions_message("  x["), MessageExtent::no_array);
  EXPECT_EQ(extent_of_regions_message("{}"), MessageExtent::no_array);
}

}  // namespace
}  // namespace pageferry

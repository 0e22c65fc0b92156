// The memory map: what goes in comes out, version 1 stays readable (golden file), and nothing wrong is believed, since pages would be
// placed where it says.
#include "vmstate/qemu_memory_map.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <span>
#include <sstream>

#include "fakes/page_content.h"
#include "fakes/scratch_directory.h"
#include "transport/crc32c.h"

namespace pageferry {
namespace {

using namespace testing_support;

using nlohmann::json;
using testing::HasSubstr;
using testing_support::ScratchDirectory;

QemuMemoryMap example_map() {
  QemuMemoryMap map;
  map.process = {.pid = 4711, .start_ticks = 123456};
  map.qemu_version = 100002;
  map.placement = PagePlacement::direct;
  map.layout = *MemoryLayout::make(
      {{.name = "pc.ram", .length_bytes = std::uint64_t{1} << 30},
       {.name = "/objects/huge", .length_bytes = 4 * kHugeBytes, .backing_page_bytes = kHugeBytes},
       {.name = "pc.bios", .length_bytes = 262144}});
  map.block_addresses = {0x7f1000000000, 0x7f2000000000, 0x7f0fff000000};
  return map;
}

QemuMemoryMap stream_example() {
  QemuMemoryMap map = example_map();
  map.qemu_version = 70222;
  map.placement = PagePlacement::stream;
  map.out_of_band_inode = 987654;
  map.block_addresses.clear();
  return map;
}

std::string encoded(const QemuMemoryMap& map) {
  auto text = encode_memory_map(map);
  if (!text) ADD_FAILURE() << text.error().message;
  return text ? *text : "";
}

// A map with its JSON changed and the checksum made right again.
Result<QemuMemoryMap> decode_map_after(const std::function<void(json&)>& change,
                                       const QemuMemoryMap& map = example_map()) {
  const std::string text = encoded(map);
  json object = json::parse(text.substr(0, text.find('\n')));
  change(object);
  const std::string line = object.dump() + "\n";
  return decode_memory_map(
      fmt::format("{}crc32c {:08x}\n", line, crc32c(std::as_bytes(std::span(line)))));
}

std::string map_refusal_after(const std::function<void(json&)>& change,
                              const QemuMemoryMap& map = example_map()) {
  const auto decoded = decode_map_after(change, map);
  if (decoded) return "accepted";
  EXPECT_EQ(decoded.error().code, Errc::invalid) << decoded.error().message;
  return decoded.error().message;
}

TEST(QemuMemoryMapTest, ComesBackAsItWas) {
  const auto decoded = decode_memory_map(encoded(example_map()));
  ASSERT_TRUE(decoded) << decoded.error().message;
  EXPECT_EQ(*decoded, example_map());
}

TEST(QemuMemoryMapTest, ThatOfAStreamComesBackWithAndWithoutAConnection) {
  QemuMemoryMap map = stream_example();
  for (const std::uint64_t inode : {std::uint64_t{987654}, std::uint64_t{0}}) {
    map.out_of_band_inode = inode;
    const auto decoded = decode_memory_map(encoded(map));
    ASSERT_TRUE(decoded) << decoded.error().message;
    EXPECT_EQ(*decoded, map);
  }
}

TEST(QemuMemoryMapTest, VersionOneStaysReadableAndIsWrittenTheSameWay) {
  const auto check = [](const std::string& file, const QemuMemoryMap& map) {
    std::ifstream in(PAGEFERRY_GOLDEN_DIRECTORY "/" + file, std::ios::binary);
    ASSERT_TRUE(in) << "the golden file is missing";
    std::stringstream golden;
    golden << in.rdbuf();
    const auto decoded = decode_memory_map(golden.str());
    ASSERT_TRUE(decoded) << decoded.error().message;
    EXPECT_EQ(*decoded, map);
    EXPECT_EQ(encoded(map), golden.str());
  };
  check("memory_map_v1.json", example_map());
  check("memory_map_stream_v1.json", stream_example());
}

TEST(QemuMemoryMapTest, EveryTruncationAndEveryFlippedBitIsNoticed) {
  const std::string text = encoded(example_map());
  for (std::size_t i = 0; i < text.size(); ++i) {
    ASSERT_EQ(decode_memory_map(text.substr(0, i)).error().code, Errc::corrupt) << i;
    std::string damaged = text;
    damaged[i] = static_cast<char>(damaged[i] ^ 1);
    ASSERT_FALSE(decode_memory_map(damaged)) << "byte " << i;
  }
  EXPECT_FALSE(decode_memory_map(text + "\n"));
}

TEST(QemuMemoryMapTest, OtherFormatAndOtherVersionAreTold) {
  auto decoded = decode_map_after([](json& m) { m["version"] = 2; });
  ASSERT_FALSE(decoded);
  EXPECT_EQ(decoded.error().code, Errc::version);
  EXPECT_THAT(decoded.error().message, HasSubstr("version 2, this program reads 1"));
  decoded = decode_map_after([](json& m) { m["format"] = "pageferry-manifest"; });
  ASSERT_FALSE(decoded);
  EXPECT_EQ(decoded.error().code, Errc::version);
}

TEST(QemuMemoryMapTest, EveryMemberMustBeThereAndHaveItsType) {
  for (const char* at :
       {"/process", "/process/pid", "/process/start-ticks", "/qemu-version", "/placement",
        "/out-of-band-inode", "/blocks", "/blocks/1", "/blocks/1/name", "/blocks/1/bytes",
        "/blocks/1/backing-page-bytes", "/blocks/1/host-address"}) {
    const json::json_pointer pointer(at);
    EXPECT_THAT(map_refusal_after([&](json& m) { m[pointer] = nullptr; }), HasSubstr(" is no "))
        << at;
    EXPECT_THAT(map_refusal_after([&](json& m) { m[pointer] = -1; }), HasSubstr(" is no ")) << at;
    if (pointer.back() == "1") continue;
    EXPECT_THAT(
        map_refusal_after([&](json& m) { m[pointer.parent_pointer()].erase(pointer.back()); }),
        HasSubstr(pointer.back() + " is missing"))
        << at;
  }
}

TEST(QemuMemoryMapTest, AMemberThatIsNotKnownIsRefused) {
  for (const char* at : {"/more", "/process/more", "/blocks/0/more"}) {
    EXPECT_THAT(map_refusal_after([&](json& m) { m[json::json_pointer(at)] = 1; }),
                HasSubstr("more is not known to this version"));
  }
}

TEST(QemuMemoryMapTest, ValuesHaveLimits) {
  const auto refusal_of = [](const char* at, const json& value) {
    return map_refusal_after([&](json& m) { m[json::json_pointer(at)] = value; });
  };
  EXPECT_THAT(refusal_of("/process/pid", 0), HasSubstr("process.pid is 0, must be 1 to 4194304"));
  EXPECT_THAT(refusal_of("/process/pid", 4194305), HasSubstr("process.pid is 4194305"));
  EXPECT_THAT(refusal_of("/qemu-version", 0), HasSubstr("qemu-version is 0, must be 1 to 999999"));
  EXPECT_THAT(refusal_of("/qemu-version", 1000000), HasSubstr("qemu-version is 1000000"));
  EXPECT_THAT(refusal_of("/out-of-band-inode", 1), HasSubstr("out-of-band-inode is 1"));
  EXPECT_THAT(refusal_of("/placement", "automatic"), HasSubstr("neither direct nor stream"));
  EXPECT_THAT(refusal_of("/blocks", json::array()), HasSubstr("blocks has 0 entries"));
  EXPECT_THAT(refusal_of("/blocks/0/name", ""), HasSubstr("blocks[0].name has 0 bytes"));
  EXPECT_THAT(refusal_of("/blocks/0/name", std::string(256, 'x')), HasSubstr("has 256 bytes"));
  EXPECT_THAT(refusal_of("/blocks/0/bytes", 0), HasSubstr("blocks[0].bytes is 0"));
  EXPECT_THAT(refusal_of("/blocks/0/bytes", 4097), HasSubstr("length 4097 is not a multiple"));
  EXPECT_THAT(refusal_of("/blocks/0/bytes", (std::uint64_t{1} << 46) + 4096),
              HasSubstr("bytes is"));
  EXPECT_THAT(refusal_of("/blocks/2/backing-page-bytes", 1 << 20), HasSubstr("backing page size"));
  EXPECT_THAT(refusal_of("/blocks/2/name", "pc.ram"), HasSubstr("named twice"));
}

TEST(QemuMemoryMapTest, AddressesAreAlignedInsideAProcessAndApart) {
  const auto refusal_of = [](const char* at, std::uint64_t address) {
    return map_refusal_after([&](json& m) { m[json::json_pointer(at)] = address; });
  };
  EXPECT_THAT(refusal_of("/blocks/0/host-address", 0), HasSubstr("host-address is 0"));
  EXPECT_THAT(refusal_of("/blocks/0/host-address", 0x7f1000000001), HasSubstr("not aligned"));
  EXPECT_THAT(refusal_of("/blocks/1/host-address", 0x7f2000001000), HasSubstr("not aligned"));
  EXPECT_THAT(refusal_of("/blocks/0/host-address", (std::uint64_t{1} << 57) - 4096),
              HasSubstr("host-address is"));
  EXPECT_THAT(refusal_of("/blocks/2/host-address", 0x7f1000000000 + (1 << 30) - 4096),
              HasSubstr("one ends at 0x7f1040000000, the next begins at 0x7f103ffff000"));
  EXPECT_EQ(refusal_of("/blocks/2/host-address", 0x7f1000000000 + (1 << 30)), "accepted");
}

TEST(QemuMemoryMapTest, AStreamThatNamesAddressesIsRefused) {
  EXPECT_THAT(map_refusal_after([](json& m) { m["placement"] = "stream"; }),
              HasSubstr("blocks[0].host-address is not known"));
}

TEST(QemuMemoryMapTest, AStreamThatNamesNoBlocksIsRefused) {
  EXPECT_THAT(map_refusal_after([](json& m) { m["blocks"] = json::array(); }, stream_example()),
              HasSubstr("blocks has 0 entries"));
}

// --- the file ---

TEST(QemuMemoryMapFile, IsWrittenReadAndReplaced) {
  const ScratchDirectory directory;
  EXPECT_EQ(read_memory_map(directory.path()).error().code, Errc::not_found);
  QemuMemoryMap map = example_map();
  ASSERT_TRUE(write_memory_map(directory.path(), map));
  EXPECT_EQ(read_memory_map(directory.path()).value(), map);
  map.process.pid = 4712;
  ASSERT_TRUE(write_memory_map(directory.path(), map));
  EXPECT_EQ(read_memory_map(directory.path()).value(), map);
  struct stat status {};
  ASSERT_EQ(::stat(directory.file(kMemoryMapFileName).c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777U, 0600U);
}

TEST(QemuMemoryMapFile, ADraftThatAKilledWriterLeftIsNoMap) {
  const ScratchDirectory directory;
  std::ofstream(directory.file("memory-map.json.new")) << "half of it";
  EXPECT_EQ(read_memory_map(directory.path()).error().code, Errc::not_found);
  ASSERT_TRUE(write_memory_map(directory.path(), example_map()));
  EXPECT_EQ(read_memory_map(directory.path()).value(), example_map());
  EXPECT_FALSE(std::filesystem::exists(directory.file("memory-map.json.new")));
}

TEST(QemuMemoryMapFile, ADamagedOneIsNamed) {
  const ScratchDirectory directory;
  std::ofstream(directory.file(kMemoryMapFileName)) << "{}\n";
  const auto read = read_memory_map(directory.path());
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().code, Errc::corrupt);
  EXPECT_THAT(read.error().message, HasSubstr(directory.file(kMemoryMapFileName)));
}

TEST(QemuMemoryMapFile, WhatIsNoFileOfOursIsRefused) {
  const ScratchDirectory directory;
  const std::string path = directory.file(kMemoryMapFileName);
  const auto refusal = [&] {
    const auto read = read_memory_map(directory.path());
    EXPECT_FALSE(read);
    return read ? "accepted" : read.error().message;
  };
  ASSERT_TRUE(write_memory_map(directory.path(), example_map()));
  std::filesystem::rename(path, directory.file("elsewhere"));
  std::filesystem::create_symlink(directory.file("elsewhere"), path);
  EXPECT_THAT(refusal(), HasSubstr("symbolic link"));
  std::filesystem::remove(path);
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  EXPECT_THAT(refusal(), HasSubstr("must be a regular file"));
  std::filesystem::remove(path);
  std::ofstream(path) << std::string(kMemoryMapBytesMax + 1, ' ');
  EXPECT_THAT(refusal(), HasSubstr("has 1048577 bytes, at most 1048576"));
  std::filesystem::remove(path);
  if (::geteuid() != 0) return;  // only root can make what follows
  constexpr uid_t kNobody = 65534;
  ASSERT_TRUE(write_memory_map(directory.path(), example_map()));
  ASSERT_EQ(::chown(path.c_str(), kNobody, kNobody), 0);
  EXPECT_THAT(refusal(), HasSubstr("belongs to user 65534"));
}

}  // namespace
}  // namespace pageferry

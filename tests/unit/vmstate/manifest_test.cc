// The manifest: what goes in comes out, version 1 stays readable (golden file), and nothing wrong is believed: each member missing, of
// another type, beyond its limit; each byte flipped; each length cut.
#include "vmstate/manifest.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <span>
#include <sstream>

#include "pager/page.h"
#include "transport/crc32c.h"

namespace pageferry {
namespace {

using nlohmann::json;
using testing::AnyOf;
using testing::HasSubstr;

VmManifest example_manifest() {
  VmManifest manifest;
  manifest.vm_name = "web";
  manifest.vm_uuid = "11111111-2222-3333-4444-555555555555";
  manifest.attempt_id = "0f1e2d3c4b5a69788796a5b4c3d2e1f0";
  manifest.epoch = 7;
  manifest.source_host = "alpha";
  manifest.source_boot_id = "99999999-8888-7777-6666-555555555555";
  manifest.source.identity = {.pid = 4711, .start_ticks = 123456};
  manifest.source.argv = {"qemu-system-x86_64", "-name", "", "-append", "quote \" and ünïcode"};
  manifest.source.working_directory = "/srv/vm";
  manifest.source.uid = 64055;
  manifest.source.gid = 108;
  manifest.source.groups = {36, 108};
  manifest.source.executable = "/usr/bin/qemu-system-x86_64";
  manifest.source.executable_deleted = true;
  manifest.source.cgroup = "/user.slice";
  manifest.qemu_version = 70222;
  manifest.machine_type = "pc-q35-7.2";
  manifest.machine = {{"machine-type", "pc-q35-7.2"}, {"disks", json::array()}};
  manifest.run_state = GuestRunState::paused;
  manifest.page_bytes = kPageSizeBytes;
  manifest.blocks = {
      {.name = "pc.ram", .length_bytes = std::uint64_t{1} << 30, .backing_page_bytes = 2 << 20},
      {.name = "pc.bios", .length_bytes = 262144}};
  return manifest;
}

std::string encoded(const VmManifest& manifest) {
  auto text = encode_manifest(manifest);
  if (!text) ADD_FAILURE() << text.error().message;
  return text ? *text : "";
}

std::string with_checksum(const std::string& line) {
  return fmt::format("{}crc32c {:08x}\n", line, crc32c(std::as_bytes(std::span(line))));
}

// The example with its JSON changed and the checksum made right again.
Result<VmManifest> decode_after(const std::function<void(json&)>& change) {
  const std::string text = encoded(example_manifest());
  json object = json::parse(text.substr(0, text.find('\n')));
  change(object);
  return decode_manifest(with_checksum(object.dump() + "\n"));
}

std::string refusal_after(const std::function<void(json&)>& change) {
  const auto decoded = decode_after(change);
  if (decoded) return "accepted";
  EXPECT_EQ(decoded.error().code, Errc::invalid) << decoded.error().message;
  return decoded.error().message;
}

void expect_same(const VmManifest& a, const VmManifest& b) {
  EXPECT_EQ(a.vm_name, b.vm_name);
  EXPECT_EQ(a.vm_uuid, b.vm_uuid);
  EXPECT_EQ(a.attempt_id, b.attempt_id);
  EXPECT_EQ(a.epoch, b.epoch);
  EXPECT_EQ(a.source_host, b.source_host);
  EXPECT_EQ(a.source_boot_id, b.source_boot_id);
  EXPECT_EQ(a.source, b.source);
  EXPECT_EQ(a.qemu_version, b.qemu_version);
  EXPECT_EQ(a.machine_type, b.machine_type);
  EXPECT_EQ(a.machine, b.machine);
  EXPECT_EQ(a.run_state, b.run_state);
  EXPECT_EQ(a.page_bytes, b.page_bytes);
  EXPECT_EQ(a.blocks, b.blocks);
}

TEST(ManifestTest, ComesBackAsItWas) {
  const auto decoded = decode_manifest(encoded(example_manifest()));
  ASSERT_TRUE(decoded) << decoded.error().message;
  expect_same(*decoded, example_manifest());
}

TEST(ManifestTest, VersionOneStaysReadableAndIsWrittenTheSameWay) {
  std::ifstream in(PAGEFERRY_GOLDEN_DIRECTORY "/manifest_v1.json", std::ios::binary);
  ASSERT_TRUE(in) << "the golden file is missing";
  std::stringstream golden;
  golden << in.rdbuf();
  const auto decoded = decode_manifest(golden.str());
  ASSERT_TRUE(decoded) << decoded.error().message;
  expect_same(*decoded, example_manifest());
  EXPECT_EQ(encoded(example_manifest()), golden.str());
}

VmManifest hook_example() {
  VmManifest manifest = example_manifest();
  manifest.vm_name = "demo";
  manifest.vm_uuid = "00000000-0000-0000-0000-000000000000";
  manifest.source.argv = {"demo_vmm", "--hook", "vm.sock"};
  manifest.source.uid = manifest.source.gid = 1000;
  manifest.source.groups = {1000};
  manifest.source.executable = "/usr/bin/demo_vmm";
  manifest.source.executable_deleted = false;
  manifest.source.cgroup = "";
  manifest.run_state = GuestRunState::running;
  manifest.blocks = {
      {.name = "ram0", .length_bytes = std::uint64_t{1} << 28},
      {.name = "ram1", .length_bytes = std::uint64_t{2} << 20, .backing_page_bytes = 2 << 20}};
  manifest.hook =
      HookMachine{.machine = "demo_vmm 1, 2 vCPUs",
                  .socket = "/srv/vm/vm.sock",
                  .incoming_command = {"/usr/bin/demo_vmm", "--incoming", "--hook", "{socket}"},
                  .guest_addresses = {0, std::uint64_t{1} << 32}};
  return manifest;
}

TEST(ManifestTest, GoldenFileOfAVmmWithAHookIsReadAndWrittenTheSame) {
  std::ifstream in(PAGEFERRY_GOLDEN_DIRECTORY "/manifest_hook_v1.json", std::ios::binary);
  ASSERT_TRUE(in) << "the golden file is missing";
  std::stringstream golden;
  golden << in.rdbuf();
  const auto decoded = decode_manifest(golden.str());
  ASSERT_TRUE(decoded) << decoded.error().message;
  EXPECT_EQ(decoded->hook, hook_example().hook);
  EXPECT_EQ(encoded(hook_example()), golden.str());
}

VmManifest based_example() {
  VmManifest manifest = hook_example();
  manifest.bases = {{"base.c0c1c2c3c4c5c6c7c8c9cacbcccdcecf", std::uint64_t{3162112}},
                    {"base.00112233445566778899aabbccddeeff", std::uint64_t{1} << 28}};
  return manifest;
}

TEST(ManifestTest, GoldenFileWithBasesIsReadAndWrittenTheSame) {
  std::ifstream in(PAGEFERRY_GOLDEN_DIRECTORY "/manifest_bases_v1.json", std::ios::binary);
  ASSERT_TRUE(in) << "the golden file is missing";
  std::stringstream golden;
  golden << in.rdbuf();
  const auto decoded = decode_manifest(golden.str());
  ASSERT_TRUE(decoded) << decoded.error().message;
  EXPECT_EQ(decoded->bases, based_example().bases);
  EXPECT_EQ(encoded(based_example()), golden.str());
}

TEST(ManifestTest, ABaseLiesBesideThePageFileUnderItsOwnName) {
  for (const char* name : {"../base.c0c1c2c3c4c5c6c7c8c9cacbcccdce", "pages",
                           "base.C0C1C2C3C4C5C6C7C8C9CACBCCCDCECF"}) {
    VmManifest manifest = based_example();
    manifest.bases[1].file = name;
    const auto text = encode_manifest(manifest);
    ASSERT_FALSE(text) << name;
    EXPECT_THAT(text.error().message, HasSubstr("bases[1].file")) << name;
  }
}

TEST(ManifestTest, NoMoreBasesThanAPageFileHas) {
  VmManifest manifest = based_example();
  manifest.bases.resize(16, manifest.bases[0]);
  const auto text = encode_manifest(manifest);
  ASSERT_FALSE(text);
  EXPECT_THAT(text.error().message, HasSubstr("bases"));
}

TEST(ManifestTest, AVmmWithAHookHasAnAddressForEachBlock) {
  VmManifest manifest = hook_example();
  manifest.hook->guest_addresses.pop_back();
  const auto text = encode_manifest(manifest);
  ASSERT_FALSE(text);
  EXPECT_THAT(text.error().message, HasSubstr("guest-addresses"));
}

TEST(ManifestTest, AVmmWithAHookNamesAnAbsoluteSocket) {
  VmManifest manifest = hook_example();
  manifest.hook->socket = "vm.sock";
  const auto text = encode_manifest(manifest);
  ASSERT_FALSE(text);
  EXPECT_THAT(text.error().message, HasSubstr("socket"));
}

TEST(ManifestTest, EveryFlippedBitIsNoticed) {
  const std::string text = encoded(example_manifest());
  for (std::size_t i = 0; i < text.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string damaged = text;
      damaged[i] = static_cast<char>(damaged[i] ^ (1 << bit));
      const auto decoded = decode_manifest(damaged);
      // The case of a checksum's hex digit carries no information.
      const bool digit = i + 9 >= text.size() && i + 1 < text.size();
      if (digit && std::tolower(damaged[i]) == std::tolower(text[i])) continue;
      ASSERT_FALSE(decoded) << "byte " << i << " bit " << bit;
    }
  }
}

TEST(ManifestTest, EveryTruncationIsNoticed) {
  const std::string text = encoded(example_manifest());
  for (std::size_t length = 0; length < text.size(); ++length) {
    ASSERT_EQ(decode_manifest(text.substr(0, length)).error().code, Errc::corrupt) << length;
  }
  EXPECT_FALSE(decode_manifest(text + "\n"));
}

TEST(ManifestTest, OtherFormatAndOtherVersionAreTold) {
  auto decoded = decode_after([](json& m) { m["version"] = 2; });
  ASSERT_FALSE(decoded);
  EXPECT_EQ(decoded.error().code, Errc::version);
  EXPECT_THAT(decoded.error().message, HasSubstr("version 2, this program reads 1"));
  decoded = decode_after([](json& m) { m["format"] = "libvirt"; });
  EXPECT_EQ(decoded.error().code, Errc::version);
}

TEST(ManifestTest, EachMemberMustBeThere) {
  const std::string text = encoded(example_manifest());
  const json object = json::parse(text.substr(0, text.find('\n')));
  for (const auto& [key, value] : object.items()) {
    const auto decoded = decode_after([&key = key](json& m) { m.erase(key); });
    ASSERT_FALSE(decoded) << key;
    EXPECT_THAT(decoded.error().message, HasSubstr(key));
  }
  for (const char* part : {"vm", "attempt", "source"}) {
    for (const auto& [key, value] : object[part].items()) {
      EXPECT_THAT(refusal_after([&, &key = key](json& m) { m[part].erase(key); }),
                  HasSubstr(std::string(part) + "." + key + " is missing"));
    }
  }
}

TEST(ManifestTest, EachMemberMustHaveItsType) {
  const std::string text = encoded(example_manifest());
  const json object = json::parse(text.substr(0, text.find('\n')));
  for (const json& wrong : {json(), json(1.5), json(-1), json::array({json::object()})}) {
    for (const auto& [key, value] : object.items()) {
      EXPECT_FALSE(decode_after([&, &key = key](json& m) { m[key] = wrong; }))
          << key << " = " << wrong;
    }
    for (const char* part : {"vm", "attempt", "source"}) {
      for (const auto& [key, value] : object[part].items()) {
        EXPECT_NE(refusal_after([&, &key = key](json& m) { m[part][key] = wrong; }), "accepted")
            << part << "." << key << " = " << wrong;
      }
    }
  }
}

TEST(ManifestTest, UnknownMembersAreRefused) {
  EXPECT_THAT(refusal_after([](json& m) { m["extra"] = 1; }), HasSubstr("extra is not known"));
  EXPECT_THAT(refusal_after([](json& m) { m["source"]["extra"] = 1; }),
              HasSubstr("source.extra is not known"));
  EXPECT_THAT(refusal_after([](json& m) { m["blocks"][0]["extra"] = 1; }),
              HasSubstr("blocks[0].extra is not known"));
}

TEST(ManifestTest, LimitsAreKeptAndNamed) {
  EXPECT_THAT(refusal_after([](json& m) { m["vm"]["name"] = std::string(256, 'x'); }),
              HasSubstr("vm.name has 256 bytes, must have 1 to 255"));
  EXPECT_THAT(refusal_after([](json& m) { m["vm"]["name"] = ""; }), HasSubstr("0 bytes"));
  EXPECT_THAT(refusal_after([](json& m) { m["vm"]["run-state"] = "asleep"; }),
              HasSubstr("neither running nor paused"));
  EXPECT_THAT(refusal_after([](json& m) { m["attempt"]["id"] = "../../etc"; }),
              HasSubstr("other characters"));
  EXPECT_THAT(refusal_after([](json& m) { m["source"]["pid"] = 0; }),
              HasSubstr("source.pid is 0, must be 1 to"));
  EXPECT_THAT(refusal_after([](json& m) { m["source"]["uid"] = std::uint64_t{1} << 32; }),
              HasSubstr("source.uid"));
  EXPECT_THAT(refusal_after([](json& m) { m["source"]["argv"] = json::array(); }),
              HasSubstr("0 entries, must have 1 to 4096"));
  EXPECT_THAT(refusal_after([](json& m) { m["source"]["argv"][1] = std::string("a\0b", 3); }),
              HasSubstr("no NUL"));
  EXPECT_THAT(refusal_after([](json& m) { m["source"]["executable"] = "bin/qemu"; }),
              HasSubstr("no absolute path"));
  EXPECT_THAT(refusal_after([](json& m) { m["page-bytes"] = 65536; }),
              HasSubstr("page-bytes is 65536, must be 4096 to 4096"));
}

TEST(ManifestTest, BlocksMustMakeALayout) {
  EXPECT_THAT(refusal_after([](json& m) { m["blocks"][1]["name"] = "pc.ram"; }),
              HasSubstr("pc.ram"));
  EXPECT_THAT(refusal_after([](json& m) { m["blocks"][0]["bytes"] = 4097; }), HasSubstr("pc.ram"));
  EXPECT_THAT(refusal_after([](json& m) { m["blocks"][0]["bytes"] = std::uint64_t{1} << 60; }),
              HasSubstr("blocks[0].bytes"));
}

TEST(ManifestTest, DeepNestingIsRefusedBeforeItIsParsed) {
  const std::string line =
      R"({"machine":)" + std::string(100000, '[') + std::string(100000, ']') + "}\n";
  const auto decoded = decode_manifest(with_checksum(line));
  ASSERT_FALSE(decoded);
  EXPECT_THAT(decoded.error().message, HasSubstr("nested deeper than 64"));
}

TEST(ManifestTest, OversizeIsRefusedWithTheLimit) {
  const auto decoded = decode_manifest(std::string(kManifestBytesMax + 1, ' '));
  ASSERT_FALSE(decoded);
  EXPECT_THAT(decoded.error().message, HasSubstr("at most 16777216"));
}

TEST(ManifestTest, WhatCouldNotBeReadBackIsNotWritten) {
  VmManifest bad = example_manifest();
  bad.source.argv.push_back("\xff\xfe");
  EXPECT_THAT(encode_manifest(bad).error().message, HasSubstr("UTF-8"));
  bad = example_manifest();
  bad.vm_name = "";
  EXPECT_EQ(encode_manifest(bad).error().code, Errc::invalid);
}

TEST(ManifestTest, BlocksMayBeUnknownYet) {
  VmManifest early = example_manifest();
  early.blocks.clear();
  EXPECT_TRUE(decode_manifest(encoded(early)));
}

}  // namespace
}  // namespace pageferry

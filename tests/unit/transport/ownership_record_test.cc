// The text form of records: what is written is read back, and nothing else is believed.
#include "transport/ownership_record.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "fakes/ownership_samples.h"
#include "transport/crc32c.h"

namespace pageferry {
namespace {

using namespace testing_support;

std::string sealed(std::string_view lines) {
  const auto crc = crc32c(std::as_bytes(std::span(lines.data(), lines.size())));
  return fmt::format("{}crc32c {:08x}\n", lines, crc);
}

// The two lines before the checksum.
std::string opened(const OwnershipRecord& record) {
  const std::string bytes = *encode_record(record);
  return bytes.substr(0, bytes.rfind("crc32c "));
}

std::string replaced(std::string text, std::string_view from, std::string_view to) {
  const auto at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from << " in " << text;
  return text.replace(at, from.size(), to);
}

ReleasedFact full_release() {
  GuestState state;
  state.image = sample_image(3);
  state.memory = StoppedVmm{sample_host('b', 2), sample_vmm(4)};
  state.disks.push_back({"/var/lib/vm/disk 1.qcow2", 10'737'418'240, 1'790'000'000'123'456'789});
  state.disks.push_back({std::string("/odd/\xff%\n\"name"), 0, -5});
  return {state};
}

std::vector<OwnershipRecord> one_of_each() {
  return {sample_record(0, OwnerFact{}),
          sample_record(1, runs()),
          sample_record(2, never_ran()),
          sample_record(3, full_release()),
          sample_record(4, releases_nothing()),
          sample_record(5, releases_memory()),
          sample_record(6, ResidentFact{}),
          sample_record(7, FencedFact{sample_id(9), FencingMeans::fence_agent, "ipmi: off\xc3"}),
          sample_record(kEpochMax, EndedFact{})};
}

TEST(OwnershipRecord, EveryKindIsReadBackAsItWas) {
  for (const OwnershipRecord& record : one_of_each()) {
    SCOPED_TRACE(record.file_name());
    const auto bytes = encode_record(record);
    ASSERT_TRUE(bytes) << bytes.error().message;
    const auto again = decode_record_file(record.file_name(), *bytes);
    ASSERT_TRUE(again) << again.error().message;
    EXPECT_EQ(*again, record);
  }
}

TEST(OwnershipRecord, TextIsPrintableAscii) {
  for (const OwnershipRecord& record : one_of_each()) {
    const std::string bytes = *encode_record(record);
    for (const char c : bytes) EXPECT_TRUE(c == '\n' || (c >= ' ' && c < '\x7f'));
  }
}

TEST(OwnershipRecord, EveryFlippedBitIsRefused) {
  for (const OwnershipRecord& record : one_of_each()) {
    const std::string bytes = *encode_record(record);
    for (std::size_t at = 0; at < bytes.size(); ++at) {
      for (unsigned bit = 0; bit < 8; ++bit) {
        std::string damaged = bytes;
        damaged[at] = static_cast<char>(static_cast<unsigned char>(damaged[at]) ^ (1U << bit));
        EXPECT_FALSE(decode_record(damaged)) << record.file_name() << " byte " << at;
      }
    }
  }
}

TEST(OwnershipRecord, EveryTruncationIsRefused) {
  const std::string bytes = *encode_record(sample_record(3, full_release()));
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_FALSE(decode_record(bytes.substr(0, size))) << size;
  }
}

TEST(OwnershipRecord, BytesAfterTheEndAreRefused) {
  EXPECT_FALSE(decode_record(*encode_record(sample_record(0, OwnerFact{})) + "\n"));
}

TEST(OwnershipRecord, NewerFormatIsNamedAsSuch) {
  const auto text = replaced(opened(sample_record(0, OwnerFact{})), "record 1", "record 2");
  const auto decoded = decode_record(sealed(text));
  ASSERT_FALSE(decoded);
  EXPECT_EQ(decoded.error().code, Errc::version);
  EXPECT_NE(decoded.error().message.find("'2'"), std::string::npos) << decoded.error().message;
}

struct Forgery {
  std::string from;
  std::string to;
};

class OwnershipRecordForgery : public ::testing::TestWithParam<Forgery> {};

TEST_P(OwnershipRecordForgery, IsRefusedDespiteARightChecksum) {
  const auto text = opened(sample_record(3, full_release()));
  ASSERT_TRUE(decode_record(sealed(text)));
  const auto decoded = decode_record(sealed(replaced(text, GetParam().from, GetParam().to)));
  ASSERT_FALSE(decoded);
  EXPECT_EQ(decoded.error().code, Errc::corrupt) << decoded.error().message;
}

INSTANTIATE_TEST_SUITE_P(
    All, OwnershipRecordForgery,
    ::testing::Values(
        Forgery{"\"epoch\":3", "\"epoch\":-1"}, Forgery{"\"epoch\":3", "\"epoch\":1000000000"},
        Forgery{"\"epoch\":3", "\"epoch\":3.0"}, Forgery{"\"epoch\":3", "\"epoch\":\"3\""},
        Forgery{"\"epoch\":3", "\"epoch\":18446744073709551615"}, Forgery{"\"epoch\":3,", ""},
        Forgery{"\"epoch\":3,", "\"epoch\":3,\"epoch\":3,"},
        Forgery{"\"epoch\":3,", "\"epoch\":3,\"later\":1,"},
        Forgery{"\"epoch\":3,", "\"epoch\": 3,"},
        Forgery{"\"kind\":\"released\"", "\"kind\":\"relaxed\""},
        Forgery{"\"kind\":\"released\"", "\"kind\":\"owner\""}, Forgery{"host-a", "host a"},
        Forgery{"host-a", ""}, Forgery{"\"pid\":500", "\"pid\":0"},
        Forgery{"\"pid\":500", "\"pid\":4294967296"},
        Forgery{"\"attempt\":\"attempt.3", "\"attempt\":\"../x"},
        Forgery{"\"attempt\":\"attempt.3", "\"attempt\":\".hidden"},
        Forgery{"\"path\":\"/var", "\"path\":\"var"}, Forgery{"\"path\":\"/var", "\"path\":\"/%00"},
        Forgery{"\"path\":\"/var", "\"path\":\"/%76ar"}, Forgery{"\"size\":0", "\"size\":-1"},
        Forgery{"\"size\":0", "\"size\":9223372036854775808"},
        Forgery{"\"disks\":[", "\"disks\":[7,"}, Forgery{"\"disks\":[", "\"disks\":[{},"},
        Forgery{"{\"kind\"", "[{\"kind\""}, Forgery{"{\"kind\"", "null{\"kind\""}));

TEST(OwnershipRecord, DeepNestingIsRefusedWithoutHarm) {
  const std::string deep(500'000, '[');
  EXPECT_FALSE(decode_record(sealed("pageferry-record 1\n" + deep + "\n")));
}

TEST(OwnershipRecord, FileLongerThanTheLimitIsRefused) {
  const std::string big(kRecordBytesMax, ' ');
  const auto decoded = decode_record(sealed("pageferry-record 1\n" + big + "\n"));
  ASSERT_FALSE(decoded);
  EXPECT_NE(decoded.error().message.find(std::to_string(kRecordBytesMax)), std::string::npos);
}

TEST(OwnershipRecord, ContentUnderAnotherNameIsRefused) {
  const std::string bytes = *encode_record(sample_record(4, OwnerFact{}));
  EXPECT_TRUE(decode_record_file("owner.4", bytes));
  EXPECT_FALSE(decode_record_file("owner.5", bytes));
  EXPECT_FALSE(decode_record_file("running.4", bytes));
}

TEST(OwnershipRecord, OwnerWithoutAVmmIsNotWritten) {
  auto record = sample_record(0, OwnerFact{});
  record.writer.vmm.reset();
  EXPECT_FALSE(encode_record(record));
}

TEST(OwnershipRecord, RunningNamesItsVmmAndVoidNeedNot) {
  auto record = sample_record(0, runs());
  record.writer.vmm.reset();
  EXPECT_FALSE(encode_record(record));
  record.fact = never_ran();
  EXPECT_TRUE(encode_record(record));
}

TEST(OwnershipRecord, MostDisksAreTheLimit) {
  GuestState state;
  state.disks.assign(kRecordDisksMax, {"/" + std::string(kDiskPathBytesMax - 1, '\n'), 1, 1});
  EXPECT_TRUE(encode_record(sample_record(0, ReleasedFact{state})));
  state.disks.push_back(state.disks.front());
  EXPECT_FALSE(encode_record(sample_record(0, ReleasedFact{state})));
}

TEST(OwnershipRecordName, HasOneSpelling) {
  for (const OwnershipRecord& record : one_of_each()) {
    const auto parsed = parse_record_file_name(record.file_name());
    ASSERT_TRUE(parsed) << record.file_name();
    EXPECT_EQ(parsed->kind, record.kind());
    EXPECT_EQ(parsed->epoch, record.epoch);
  }
  for (const char* name : {"owner", "owner.", "owner.01", "owner.-1", "owner.+1", "owner.1 ",
                           "owner.1.2", "Owner.1", "owner.1000000000", "owner.99999999999999999999",
                           ".new.x", "", "attempt.0.x", " owner.1"}) {
    EXPECT_FALSE(parse_record_file_name(name)) << name;
  }
}

}  // namespace
}  // namespace pageferry

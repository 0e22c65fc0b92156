// Goal: the end of the device state is found where QEMU put it and nowhere else, and sections and
// description must agree. Method: hand-made tails with payloads that look like ends, footers and
// headers.
#include "vmstate/qemu_device_tail.h"

#include <gtest/gtest.h>

#include <string>

#include "fakes/source_stream.h"
#include "vmstate/device_state.h"

namespace pageferry::qemu_stream {
namespace {

using fakes::SourceStream;
using std::string_literals::operator""s;

std::string vmdesc(std::initializer_list<const char*> names) {
  std::string json = R"({"devices":[)";
  for (const char* name : names) {
    if (json.back() == '}') json += ',';
    json += R"({"name":")" + std::string(name) + R"(","instance_id":0})";
  }
  return json + "]}";
}

std::string tail_error_of(const SourceStream& stream) {
  DeviceStateTail tail;
  auto done = tail.append(stream.bytes());
  if (!done) return done.error().message;
  return *done ? "complete" : "incomplete";
}

TEST(QemuDeviceTailTest, SplitsSectionsAndDescription) {
  SourceStream sections;
  sections.device("a", 1, "payload");
  SourceStream stream = sections;
  stream.eof().description(vmdesc({"a"}));
  DeviceStateTail tail;
  auto done = tail.append(stream.bytes());
  ASSERT_TRUE(done.has_value()) << done.error().message;
  ASSERT_TRUE(*done);
  EXPECT_EQ(tail.take_device_sections(), sections.bytes());
  EXPECT_EQ(tail.take_vmdesc(), vmdesc({"a"}));
}

TEST(QemuDeviceTailTest, AnySplitIsCompleteOnlyWithTheLastByte) {
  SourceStream stream;
  stream.device("a", 1, "x}").device("b", 2, "}").eof().description(vmdesc({"a", "b"}));
  const ByteBuffer& bytes = stream.bytes();
  for (std::size_t cut = 0; cut < bytes.size(); ++cut) {
    DeviceStateTail tail;
    auto first = tail.append(std::span(bytes).first(cut));
    ASSERT_TRUE(first.has_value() && !*first) << cut;
    auto second = tail.append(std::span(bytes).subspan(cut));
    ASSERT_TRUE(second.has_value() && *second) << cut;
  }
}

SourceStream with_padded_description(std::size_t padding) {
  SourceStream stream;
  stream.device("a", 1, "p")
      .eof()
      .description(R"({"pad":")" + std::string(padding, ' ') + R"(",)" + vmdesc({"a"}).substr(1));
  return stream;
}

TEST(QemuDeviceTailTest, DescriptionOfAnyLengthIsFound) {
  // Around every number of NUL bytes in the length field.
  for (std::size_t padding = 0; padding < 600; ++padding) {
    ASSERT_EQ(tail_error_of(with_padded_description(padding)), "complete") << padding;
  }
  for (const std::size_t padding : {65480U, 65490U, 65495U, 66000U, 131072U}) {
    EXPECT_EQ(tail_error_of(with_padded_description(padding)), "complete") << padding;
  }
}

TEST(QemuDeviceTailTest, DescriptionBeyondItsLimitIsRefused) {
  EXPECT_NE(tail_error_of(with_padded_description(kVmdescBytesMax))
                .find("limits are 268435456 and 16777216"),
            std::string::npos);
}

TEST(QemuDeviceTailTest, PayloadThatLooksLikeAFooterIsNoEnd) {
  SourceStream stream;
  stream.device("a", 1, "\x7e\0\0\0\x01 more"s)
      .device("b", 2, "")
      .eof()
      .description(vmdesc({"a", "b"}));
  EXPECT_EQ(tail_error_of(stream), "complete");
}

TEST(QemuDeviceTailTest, SectionOfAnotherNameIsRefused) {
  SourceStream stream;
  stream.device("a", 1, "x").device("c", 2, "y").eof().description(vmdesc({"a", "b"}));
  EXPECT_EQ(tail_error_of(stream),
            "device state: section of \"a\" instance 0 at byte 0 has no end that fits");
}

TEST(QemuDeviceTailTest, MissingFirstSectionIsRefused) {
  SourceStream stream;
  stream.device("b", 2, "y").eof().description(vmdesc({"a"}));
  EXPECT_EQ(tail_error_of(stream), "device state: no section of \"a\" instance 0 at byte 0");
}

TEST(QemuDeviceTailTest, SectionThatIsNotDescribedIsRefused) {
  SourceStream stream;
  stream.device("a", 1, "x").device("b", 2, "y").eof().description(vmdesc({"a"}));
  EXPECT_NE(tail_error_of(stream), "complete");
}

TEST(QemuDeviceTailTest, SectionsWithoutDescribedDevicesAreRefused) {
  SourceStream stream;
  stream.device("a", 1, "x").eof().description(vmdesc({}));
  EXPECT_EQ(tail_error_of(stream),
            "device state: 21 bytes behind the last device of the description");
}

TEST(QemuDeviceTailTest, DescriptionThatIsNoJsonIsRefused) {
  SourceStream stream;
  stream.device("a", 1, "x").eof().description("{\"devices\":[}");
  EXPECT_EQ(tail_error_of(stream), "device description of 13 bytes is not a JSON object");
}

TEST(QemuDeviceTailTest, DescriptionWithoutDevicesIsRefused) {
  SourceStream stream;
  stream.device("a", 1, "x").eof().description("{}");
  EXPECT_EQ(tail_error_of(stream), "device description has no array \"devices\"");
}

TEST(QemuDeviceTailTest, EntryWithoutANameIsRefused) {
  SourceStream stream;
  stream.device("a", 1, "x").eof().description(R"({"devices":[{"instance_id":0}]})");
  EXPECT_EQ(tail_error_of(stream), "device description: entry 0 has no name and instance_id");
}

TEST(QemuDeviceTailTest, RunStateOfTheStoppedGuestIsRead) {
  SourceStream paused;
  paused.device("a", 1, "globalstate")
      .device("globalstate", 2, SourceStream::global_state("paused"));
  EXPECT_EQ(captured_run_state(paused.bytes()), "paused");
  EXPECT_EQ(captured_run_state(SourceStream().device("a", 1, "x").bytes()), "");
}

TEST(QemuDeviceTailTest, RunStateLongerThanItsBufferIsNone) {
  SourceStream stream;
  stream.device("globalstate", 2, std::string("\xff\xff\xff\xff", 4));
  EXPECT_EQ(captured_run_state(stream.bytes()), "");
}

}  // namespace
}  // namespace pageferry::qemu_stream

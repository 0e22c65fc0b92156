// Goal: return path messages are decoded whatever way the socket cuts them, and nothing outside the
// layout gets through. Method: builders make the bytes, checked once by hand; then every split, and
// each field wrong in turn.
#include "vmstate/qemu_return_path.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "fakes/source_stream.h"

namespace pageferry::qemu_stream {
namespace {

using fakes::message_bytes_of;

class QemuReturnPathTest : public testing::Test {
 protected:
  QemuReturnPathTest() {
    auto made = MemoryLayout::make({{.name = "pc.ram", .length_bytes = 100 * kPageSizeBytes},
                                    {.name = "rom", .length_bytes = 2 * kPageSizeBytes}});
    EXPECT_TRUE(made.has_value());
    layout_ = *made;
  }

  Result<std::vector<ReturnPathMessage>> decode(const ByteBuffer& bytes) {
    ReturnPathDecoder decoder(layout_);
    std::vector<ReturnPathMessage> messages;
    PF_TRY(decoder.feed(bytes, messages));
    return messages;
  }

  std::string error_of(const ByteBuffer& bytes) {
    auto result = decode(bytes);
    return result ? "no error" : result.error().message;
  }

  // One of everything.
  ByteBuffer conversation() {
    ByteBuffer out;
    append_pong(out, 3);
    append_request_pages(out, "rom", kPageSizeBytes, kPageSizeBytes);
    append_request_pages(out, "", 0, 2 * kPageSizeBytes);
    append_received_bitmap(out, "pc.ram", ByteBuffer(16, std::byte{0x5a}));
    append_switchover_ack(out);
    append_resume_ack(out, 1);
    append_shut(out, 0);
    return out;
  }

  std::vector<ReturnPathMessage> conversation_decoded() {
    return {Pong{3},
            PageRequest{.block = 1, .run = {PageIndex{101}, 1}},
            PageRequest{.block = 1, .run = {PageIndex{100}, 2}},
            ReceivedBitmap{.block = 0, .bits = ByteBuffer(16, std::byte{0x5a})},
            SwitchoverAck{},
            ResumeAck{1},
            Shut{0}};
  }

  MemoryLayout layout_;
};

TEST_F(QemuReturnPathTest, BuildersMakeTheDocumentedBytes) {
  ByteBuffer out;
  append_shut(out, 1);
  append_pong(out, 2);
  append_switchover_ack(out);
  append_request_pages(out, "ab", 0x1000, 0x2000);
  append_request_pages(out, "", 0x1000, 0x2000);
  EXPECT_EQ(out,
            message_bytes_of({0,   1, 0, 4, 0,  0, 0, 1, 0, 2, 0, 4,    0, 0, 0, 2,    0, 7, 0,
                              0,   0, 3, 0, 15, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0x20, 0, 2, 'a',
                              'b', 0, 4, 0, 12, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0x20, 0}));
}

TEST_F(QemuReturnPathTest, BitmapIsFollowedByItsSizeBitsAndMark) {
  ByteBuffer out;
  append_received_bitmap(out, "a", ByteBuffer(8, std::byte{1}));
  EXPECT_EQ(out, message_bytes_of({0, 5, 0,    2,    1,    'a',  0,    0,    0,    0,
                                   0, 0, 0,    8,    1,    1,    1,    1,    1,    1,
                                   1, 1, 0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef}));
}

TEST_F(QemuReturnPathTest, DecodesEveryMessageInOrder) {
  auto messages = decode(conversation());
  ASSERT_TRUE(messages.has_value()) << messages.error().message;
  EXPECT_EQ(*messages, conversation_decoded());
}

TEST_F(QemuReturnPathTest, AnySplitInTwoGivesTheSameMessages) {
  const ByteBuffer bytes = conversation();
  for (std::size_t cut = 0; cut <= bytes.size(); ++cut) {
    ReturnPathDecoder decoder(layout_);
    std::vector<ReturnPathMessage> messages;
    ASSERT_TRUE(decoder.feed(std::span(bytes).first(cut), messages).has_value()) << cut;
    ASSERT_TRUE(decoder.feed(std::span(bytes).subspan(cut), messages).has_value()) << cut;
    ASSERT_EQ(messages, conversation_decoded()) << cut;
  }
}

TEST_F(QemuReturnPathTest, ByteByByteGivesTheSameMessages) {
  const ByteBuffer bytes = conversation();
  ReturnPathDecoder decoder(layout_);
  std::vector<ReturnPathMessage> messages;
  for (const std::byte& byte : bytes) {
    ASSERT_TRUE(decoder.feed({&byte, 1}, messages).has_value());
  }
  EXPECT_EQ(messages, conversation_decoded());
}

TEST_F(QemuReturnPathTest, UnfinishedMessageIsNotHandedOut) {
  ByteBuffer bytes = conversation();
  bytes.pop_back();
  auto messages = decode(bytes);
  ASSERT_TRUE(messages.has_value());
  EXPECT_EQ(messages->size(), conversation_decoded().size() - 1);
}

TEST_F(QemuReturnPathTest, RefusesUnknownType) {
  EXPECT_EQ(error_of(message_bytes_of({0, 8, 0, 0})), "return path: unknown message type 8");
  EXPECT_EQ(error_of(message_bytes_of({0, 0, 0, 0})), "return path: unknown message type 0");
}

TEST_F(QemuReturnPathTest, RefusesWrongFixedLength) {
  EXPECT_EQ(error_of(message_bytes_of({0, 1, 0, 5})),
            "return path: message type 1 has length 5, must be 4");
}

TEST_F(QemuReturnPathTest, RefusesRequestBeforeABlockWasNamed) {
  ByteBuffer bytes;
  append_request_pages(bytes, "", 0, 4096);
  EXPECT_EQ(error_of(bytes), "return path: REQ_PAGES before any REQ_PAGES_ID named a block");
}

TEST_F(QemuReturnPathTest, RefusesUnknownBlock) {
  ByteBuffer bytes;
  append_request_pages(bytes, "vga", 0, 4096);
  EXPECT_EQ(error_of(bytes), "return path: unknown RAM block \"vga\"");
}

TEST_F(QemuReturnPathTest, RefusesNameLongerThanItsField) {
  EXPECT_EQ(
      error_of(message_bytes_of({0, 3, 0, 14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 9, 'r'})),
      "return path: block name of 9 bytes in a field of 1");
}

TEST_F(QemuReturnPathTest, RefusesRangeBeyondTheBlock) {
  ByteBuffer bytes;
  append_request_pages(bytes, "rom", kPageSizeBytes, 2 * kPageSizeBytes);
  EXPECT_EQ(error_of(bytes),
            "return path: request for 8192 bytes at 4096 of block \"rom\", which has 8192");
}

TEST_F(QemuReturnPathTest, RefusesStartThatWouldOverflow) {
  ByteBuffer bytes;
  append_request_pages(bytes, "rom", 0xfffffffffffff000, kPageSizeBytes);
  EXPECT_NE(error_of(bytes), "no error");
}

TEST_F(QemuReturnPathTest, RefusesUnalignedAndEmptyRequests) {
  ByteBuffer unaligned;
  append_request_pages(unaligned, "rom", 1, kPageSizeBytes);
  EXPECT_NE(error_of(unaligned), "no error");
  ByteBuffer empty;
  append_request_pages(empty, "rom", 0, 0);
  EXPECT_NE(error_of(empty), "no error");
}

TEST_F(QemuReturnPathTest, RefusesBitmapOfAnotherSizeBeforeReadingIt) {
  ByteBuffer bytes;
  append_received_bitmap(bytes, "pc.ram", ByteBuffer(24, std::byte{0}));
  bytes.resize(4 + 7 + 8);  // the size is known, no bit has come
  EXPECT_EQ(error_of(bytes), "return path: bitmap of block \"pc.ram\" has 24 bytes, must be 16");
}

TEST_F(QemuReturnPathTest, RefusesBitmapWithWrongEndMark) {
  ByteBuffer bytes;
  append_received_bitmap(bytes, "rom", ByteBuffer(8, std::byte{0}));
  bytes.back() = std::byte{0};
  EXPECT_NE(error_of(bytes).find("ends with 0x0123456789abcd00"), std::string::npos);
}

}  // namespace
}  // namespace pageferry::qemu_stream

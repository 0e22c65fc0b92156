// The hook's protocol: what is encoded is decoded again, and nothing else is taken.
#include "vmstate/hook_protocol.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

namespace pageferry::hook_protocol {
namespace {

using testing::HasSubstr;

SlotReply slot(const std::string& name, std::uint64_t guest, std::uint64_t host,
               std::uint64_t pages = 4) {
  return {.name = name,
          .guest_address = guest,
          .size_bytes = bytes_of_pages(pages),
          .host_address = host};
}
std::vector<std::byte> payload_of(const std::vector<std::byte>& packet) {
  return {packet.begin() + kHeaderBytes, packet.end()};
}
template <typename Value>
void expect_invalid(const Result<Value>& result, const std::string& words) {
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, Errc::invalid);
  EXPECT_THAT(result.error().message, HasSubstr(words));
}

TEST(HookProtocolTest, EveryRequestIsDecodedAsItWasMeant) {
  const std::vector<Request> requests = {
      {.type = Type::hello,
       .serial = 7,
       .version_min = 1,
       .version_max = 3,
       .role = HookRole::restorer},
      {.type = Type::get_slot, .serial = 8, .slot = 1023},
      {.type = Type::track, .serial = 13},
      {.type = Type::track, .serial = 14, .attempt_id = "0123abcd"},
      {.type = Type::pause, .serial = 9, .limit_ms = kPauseLimitMsMax},
      {.type = Type::commit, .serial = 10, .epoch = ~std::uint64_t{0}},
      {.type = Type::load_state, .serial = 11, .state_bytes = 5, .attempt_id = "a-1"},
      {.type = Type::resident, .serial = 12}};
  for (const Request& request : requests) {
    const auto decoded = decode_request(encode(request));
    ASSERT_TRUE(decoded) << decoded.error().message;
    EXPECT_EQ(*decoded, request);
  }
}

TEST(HookProtocolTest, APacketCutAnywhereIsRefused) {
  const auto packet =
      encode({.type = Type::load_state, .serial = 1, .state_bytes = 5, .attempt_id = "attempt"});
  for (std::size_t bytes = 0; bytes < packet.size(); ++bytes) {
    EXPECT_FALSE(decode_request(std::span(packet).first(bytes))) << bytes;
  }
}

TEST(HookProtocolTest, ATypeThatIsUnknown) {
  auto packet = encode({.type = Type::track});
  packet[4] = std::byte{99};
  expect_invalid(decode_request(packet), "request type 99 is unknown");
}

TEST(HookProtocolTest, APauseOfDays) {
  expect_invalid(decode_request(encode({.type = Type::pause, .limit_ms = kPauseLimitMsMax + 1})),
                 "a pause of 3600001 ms");
}

TEST(HookProtocolTest, AnAttemptWithoutAName) {
  expect_invalid(decode_request(encode({.type = Type::load_state})), "attempt id has 0 bytes");
}

TEST(HookProtocolTest, AnAttemptWithALineBreak) {
  expect_invalid(decode_request(encode({.type = Type::load_state, .attempt_id = "a\nb"})),
                 "control character 0x0a at 1");
}

TEST(HookProtocolTest, HelloIsDecodedAsItWasMeant) {
  const HelloReply reply{
      .slots = 2,
      .command_words = 3,
      .pages = 128,
      .segment_bytes = 12288,
      .guest = {.state = HookState::committed, .has_epoch = true, .epoch = 9, .attempt_id = "x"},
      .vm_name = "vm",
      .machine = "m"};
  const auto decoded = decode_hello(payload_of(encode_reply({}, reply)));
  ASSERT_TRUE(decoded) << decoded.error().message;
  EXPECT_EQ(*decoded, reply);
}

TEST(HookProtocolTest, ASlotIsDecodedAsItWasMeant) {
  SlotReply reply = slot("ram", 4096, 8192);
  reply.has_memory = true;
  reply.memory_offset_bytes = 4096;
  const auto decoded = decode_slot(payload_of(encode_reply({}, reply)));
  ASSERT_TRUE(decoded) << decoded.error().message;
  EXPECT_EQ(*decoded, reply);
}

TEST(HookProtocolTest, ACommandIsDecodedAsItWasMeant) {
  const std::vector<std::string> words = {"vmm", "--socket", "{socket}", ""};
  const auto decoded = decode_command(payload_of(encode_reply({}, words)));
  ASSERT_TRUE(decoded) << decoded.error().message;
  EXPECT_EQ(*decoded, words);
}

TEST(HookProtocolTest, AnErrorKeepsItsClassAndIsOneLine) {
  const auto packet = encode_error(5, fail(Errc::busy, "no\nnever").value());
  const auto reply = decode_reply({.type = Type::pause, .serial = 5}, packet);
  ASSERT_FALSE(reply);
  EXPECT_EQ(reply.error().code, Errc::busy);
  EXPECT_EQ(reply.error().message, "no?never");
}

TEST(HookProtocolTest, AnAnswerToAnotherRequestIsRefused) {
  const auto packet = encode_reply({.type = Type::pause, .serial = 5});
  EXPECT_TRUE(decode_reply({.type = Type::pause, .serial = 5}, packet));
  EXPECT_FALSE(decode_reply({.type = Type::pause, .serial = 6}, packet));
  EXPECT_FALSE(decode_reply({.type = Type::commit, .serial = 5}, packet));
}

TEST(HookProtocolTest, SlotsBecomeALayout) {
  const std::vector<SlotReply> slots = {slot("a", 0, 4096), slot("b", 16384, 20480)};
  const auto layout = check_slots(slots);
  ASSERT_TRUE(layout) << layout.error().message;
  EXPECT_EQ(layout->pages(), 8U);
}

TEST(HookProtocolTest, SlotsThatOverlapByAPage) {
  const std::vector<SlotReply> guest = {slot("a", 0, 4096), slot("b", 12288, 1 << 20)};
  expect_invalid(check_slots(guest), "'a' and 'b' overlap at guest address 0x3000");
  const std::vector<SlotReply> host = {slot("a", 0, 4096), slot("b", 1 << 20, 16384)};
  expect_invalid(check_slots(host), "'a' and 'b' overlap at host address 0x4000");
}

TEST(HookProtocolTest, ASlotThatGoesRoundTheEndOfTheAddresses) {
  const std::uint64_t last = std::numeric_limits<std::uint64_t>::max() - 4095;
  expect_invalid(check_slots(std::vector{slot("a", last, 4096)}), "out of range");
  expect_invalid(check_slots(std::vector{slot("a", 0, last)}), "out of range");
}

TEST(HookProtocolTest, ASlotOfHugePagesAtASmallAddress) {
  SlotReply huge = slot("a", 0, 4096, 512);
  huge.backing_page_bytes = std::uint64_t{2} << 20;
  expect_invalid(check_slots(std::vector{huge}), "no multiple of 2097152");
}

TEST(HookProtocolTest, AnOffsetIntoNoMemory) {
  SlotReply anonymous = slot("a", 0, 4096);
  anonymous.memory_offset_bytes = 4096;
  expect_invalid(check_slots(std::vector{anonymous}), "of no memory");
}

}  // namespace
}  // namespace pageferry::hook_protocol

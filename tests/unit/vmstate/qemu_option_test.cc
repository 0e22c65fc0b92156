// QemuOption: both spellings are read alike, changed alike, and written back as they were.
#include "vmstate/qemu_option.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace pageferry {
namespace {

using testing::ElementsAre;

QemuOption parsed(std::string_view text, std::string implied_key = "") {
  auto option = QemuOption::parse(text, std::move(implied_key));
  if (!option) {
    ADD_FAILURE() << option.error().message;
    return {};
  }
  return *option;
}

class QemuOptionRoundTrip : public testing::TestWithParam<const char*> {};

TEST_P(QemuOptionRoundTrip, UnchangedTextComesBackAsItWas) {
  EXPECT_EQ(parsed(GetParam(), "backend").text(), GetParam());
}

INSTANTIATE_TEST_SUITE_P(
    Spellings, QemuOptionRoundTrip,
    testing::Values("", "null,id=a", "socket,id=c0,path=/run/a,,b/sock,server=on,wait=off",
                    "socket,id=c0,server,nowait", "backend=file,id=x,path=/a=b", "id=only,path=",
                    "user,id=n,hostfwd=tcp::1-:1,hostfwd=udp::2-:2", "guest=web,debug-threads=on",
                    "a,,b", R"({"driver":"virtio-net-pci","netdev":"n0","mq":true,"vectors":4})",
                    R"({"type":"stream","addr":{"type":"unix","path":"/x"}})"));

TEST(QemuOptionTest, FirstValueHasTheImpliedName) {
  const auto option = parsed("socket,id=c0", "backend");
  EXPECT_EQ(option.get("backend"), "socket");
  EXPECT_EQ(option.get("id"), "c0");
  EXPECT_EQ(option.get("path"), std::nullopt);
}

TEST(QemuOptionTest, FirstMemberWithAKeyIsNotImplied) {
  const auto option = parsed("type=q35,accel=kvm", "type");
  EXPECT_EQ(option.get("type"), "q35");
  EXPECT_EQ(option.get("accel"), "kvm");
}

TEST(QemuOptionTest, LastOfRepeatedMembersCounts) {
  EXPECT_EQ(parsed("a=1,a=2").get("a"), "2");
}

TEST(QemuOptionTest, BareFlagsAreOn) {
  const auto option = parsed("path=/x,server", "path");
  EXPECT_TRUE(option.is_on("server"));
  EXPECT_FALSE(option.is_on("wait"));
  EXPECT_FALSE(parsed("server=off").is_on("server"));
}

TEST(QemuOptionTest, SetReplacesAllMembersOfThatName) {
  auto option = parsed("a=1,b=2,a=3");
  option.set("a", "x,y");
  EXPECT_EQ(option.text(), "a=x,,y,b=2");
}

TEST(QemuOptionTest, SetAppendsANewMember) {
  auto option = parsed("file,id=a", "backend");
  option.set("append", "on");
  EXPECT_EQ(option.text(), "file,id=a,append=on");
}

TEST(QemuOptionTest, EraseDropsEveryMemberOfThatName) {
  auto option = parsed("user,hostfwd=a,id=n,hostfwd=b", "type");
  EXPECT_TRUE(option.erase("hostfwd"));
  EXPECT_FALSE(option.erase("hostfwd"));
  EXPECT_EQ(option.text(), "user,id=n");
}

TEST(QemuOptionTest, ImpliedValueWithAnEqualsSignIsWrittenWithItsName) {
  auto option = parsed("/plain", "path");
  option.set("path", "/a=b");
  EXPECT_EQ(option.text(), "path=/a=b");
}

TEST(QemuOptionTest, NestedJsonIsReachedByDots) {
  auto option =
      parsed(R"({"type":"stream","server":true,"addr":{"type":"unix","path":"/x"}})", "type");
  EXPECT_EQ(option.get("addr.path"), "/x");
  EXPECT_TRUE(option.is_on("server"));
  option.set("addr.path", "/y");
  option.set("server", "off");
  EXPECT_EQ(option.text(),
            R"({"type":"stream","server":false,"addr":{"type":"unix","path":"/y"}})");
  EXPECT_TRUE(option.erase("addr.type"));
  EXPECT_THAT(option.keys(), ElementsAre("type", "server", "addr.path"));
}

TEST(QemuOptionTest, BrokenJsonIsRefused) {
  const auto option = QemuOption::parse(R"({"driver":)", "driver");
  ASSERT_FALSE(option);
  EXPECT_EQ(option.error().code, Errc::invalid);
}

}  // namespace
}  // namespace pageferry

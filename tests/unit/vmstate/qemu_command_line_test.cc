// parse_command_line: values are found whatever they look like, and what is not known is refused.
#include "vmstate/qemu_command_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace pageferry {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

using Argv = std::vector<std::string>;

TEST(CommandLineTest, ValuesMayLookLikeOptions) {
  const auto command = parse_command_line({"qemu", "-append", "-v", "-S"});
  ASSERT_TRUE(command) << command.error().message;
  EXPECT_THAT(command->options,
              ElementsAre(CommandLineOption{"append", "-v"}, CommandLineOption{"S", std::nullopt}));
}

TEST(CommandLineTest, TwoDashesAreOne) {
  const auto command = parse_command_line({"qemu", "--only-migratable", "--m", "1G"});
  ASSERT_TRUE(command) << command.error().message;
  EXPECT_THAT(to_argv(*command), ElementsAre("qemu", "-only-migratable", "-m", "1G"));
}

TEST(CommandLineTest, BareArgumentIsAnImage) {
  const auto command = parse_command_line({"qemu", "disk.img", "-m", "1G"});
  ASSERT_TRUE(command) << command.error().message;
  EXPECT_EQ(command->options[0], (CommandLineOption{"", "disk.img"}));
  EXPECT_THAT(to_argv(*command), ElementsAre("qemu", "disk.img", "-m", "1G"));
}

TEST(CommandLineTest, UnknownOptionIsRefusedWithTheWayOut) {
  const auto command = parse_command_line({"qemu", "-frobnicate", "x"});
  ASSERT_FALSE(command);
  EXPECT_EQ(command.error().code, Errc::invalid);
  EXPECT_THAT(command.error().message, HasSubstr("-frobnicate is not known"));
  EXPECT_THAT(command.error().message, HasSubstr("--incoming-command"));
}

TEST(CommandLineTest, MissingValueIsRefused) {
  const auto command = parse_command_line({"qemu", "-m"});
  ASSERT_FALSE(command);
  EXPECT_THAT(command.error().message, HasSubstr("-m has no value"));
}

TEST(CommandLineTest, EmptyCommandLineIsRefused) {
  EXPECT_FALSE(parse_command_line({}));
  EXPECT_FALSE(parse_command_line({""}));
}

}  // namespace
}  // namespace pageferry

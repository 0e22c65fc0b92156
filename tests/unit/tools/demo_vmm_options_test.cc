// The demo VMM's command line, and the command line of the VMM that shall take its guest.
#include "tools/demo_vmm/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace pageferry::demo {
namespace {

using testing::Contains;
using testing::HasSubstr;
using testing::Not;

tl::expected<Options, Answer> parsed(std::vector<const char*> words) {
  words.insert(words.begin(), "demo_vmm");
  return parse_options(static_cast<int>(words.size()), words.data());
}
std::string refusal(const std::vector<const char*>& words) {
  const auto options = parsed(words);
  if (options) return "";
  EXPECT_EQ(options.error().exit_code, 2);
  return options.error().text;
}

TEST(DemoVmmOptions, NumbersBecomeBytesAndPages) {
  const auto options =
      parsed({"--memory-mib", "64", "--memory-kind", "hugetlb", "--write-rate-mib-s", "10",
              "--give-back-rate-mib-s", "4", "--distribution", "zipf", "--working-set-mib", "8"});
  ASSERT_TRUE(options) << options.error().text;
  EXPECT_EQ(options->vm.guest.memory_bytes, std::uint64_t{64} << 20);
  EXPECT_EQ(options->vm.guest.working_set_bytes, std::uint64_t{8} << 20);
  EXPECT_EQ(options->vm.guest.distribution, Distribution::zipf);
  EXPECT_EQ(options->vm.memory_kind, MemoryKind::hugetlb);
  EXPECT_EQ(options->vm.rates.write_pages, 2'560U);
  EXPECT_EQ(options->vm.rates.give_backs, 2U) << "2 MiB at once";
  EXPECT_EQ(options->vm.guest.disk_bytes, 0U);
}

TEST(DemoVmmOptions, WhatIsWrongIsSaid) {
  EXPECT_THAT(refusal({"--memory-kind", "paper"}), HasSubstr("--memory-kind"));
  EXPECT_THAT(refusal({"--distribution", "even"}), HasSubstr("--distribution"));
  EXPECT_THAT(refusal({"--incoming"}), HasSubstr("--hook"));
  EXPECT_THAT(refusal({"--memory-mib", "18446744073709551615"}), HasSubstr("limit"));
  EXPECT_THAT(refusal({"--status-interval-ms", "0"}), HasSubstr("--status-interval-ms"));
  EXPECT_THAT(refusal({"--no-such"}), HasSubstr("--no-such"));
}

TEST(DemoVmmOptions, HelpIsNoError) {
  const auto options = parsed({"--help"});
  ASSERT_FALSE(options);
  EXPECT_EQ(options.error().exit_code, 0);
  EXPECT_THAT(options.error().text, HasSubstr("--write-rate-mib-s"));
}

TEST(DemoVmmOptions, TheIncomingCommandIsTheSameMachineWithoutTheGuestsOwn) {
  const auto source = parsed({"--hook", "/run/a", "--memory-mib", "64", "--memory-slots", "3",
                              "--vcpus", "4", "--threads", "--disk", "/tmp/disk", "--seed", "9"});
  ASSERT_TRUE(source);
  const std::vector<std::string>& command = source->hook.incoming_command;
  EXPECT_THAT(command, Contains("{socket}"));
  EXPECT_THAT(command, Not(Contains("--seed")));
  std::vector<const char*> words;
  for (std::size_t i = 1; i < command.size(); ++i) words.push_back(command[i].c_str());
  const auto taker = parsed(words);
  ASSERT_TRUE(taker) << taker.error().text;
  EXPECT_EQ(taker->hook.beginning, Beginning::incoming);
  EXPECT_EQ(taker->vm.guest.memory_bytes, source->vm.guest.memory_bytes);
  EXPECT_EQ(taker->vm.guest.ram_slots, 3U);
  EXPECT_EQ(taker->vm.guest.vcpus, 4U);
  EXPECT_EQ(taker->vm.guest.disk_bytes, source->vm.guest.disk_bytes);
  EXPECT_EQ(taker->vm.vcpu_kind, VcpuKind::threads);
  EXPECT_EQ(taker->hook.incoming_command, command) << "it can be moved on";
}

TEST(DemoVmmOptions, TheControlSocketIsBesideTheHooks) {
  EXPECT_EQ(parsed({"--hook", "/run/a"})->control_path, "/run/a.control");
  EXPECT_EQ(parsed({"--hook", "/run/a", "--control", "/run/b"})->control_path, "/run/b");
  EXPECT_EQ(parsed({})->control_path, "");
}

}  // namespace
}  // namespace pageferry::demo

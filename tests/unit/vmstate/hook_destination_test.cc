// What starts a destination of a VMM with a hook, and what speaks against it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmstate/hook_destination_vmm.h"
#include "vmstate/hook_machine.h"
#include "vmstate/vm_address.h"

namespace pageferry {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

TEST(HookCommandTest, TheManifestsWordsAreRunWithTheSocketFilledIn) {
  const auto command = make_hook_command({"vmm", "--hook={socket}", "{socket}"}, "", "/r/h.sock");
  ASSERT_TRUE(command) << command.error().message;
  EXPECT_EQ(command->kind, LaunchKind::qemu);
  EXPECT_THAT(command->argv, ElementsAre("vmm", "--hook=/r/h.sock", "/r/h.sock"));
}

TEST(HookCommandTest, TheUsersCommandIsRunByAShellInItsPlace) {
  const auto command = make_hook_command({"vmm", "{socket}"}, "exec other {socket}", "/r/h.sock");
  ASSERT_TRUE(command) << command.error().message;
  EXPECT_EQ(command->kind, LaunchKind::shell);
  EXPECT_THAT(command->argv, ElementsAre("/bin/sh", "-c", "exec other /r/h.sock"));
}

TEST(HookCommandTest, WithoutAPlaceForTheSocketItIsRefused) {
  const auto command = make_hook_command({}, "vmm", "/r/h.sock");
  ASSERT_FALSE(command);
  EXPECT_THAT(command.error().message, HasSubstr("{socket}"));
}

TEST(HookCommandTest, NoCommandAtAllIsRefusedWithTheWayOut) {
  const auto command = make_hook_command({}, "", "/r/h.sock");
  ASSERT_FALSE(command);
  EXPECT_THAT(command.error().message, HasSubstr("--incoming-command"));
}

TEST(HookCommandTest, APathThatAShellWouldTakeApartIsRefused) {
  EXPECT_FALSE(make_hook_command({}, "vmm {socket}", "/r/a b.sock"));
}

json machine(const std::string& text, std::uint64_t bytes) {
  return {{"machine", text},
          {"slots", json::array({{{"name", "ram"}, {"bytes", bytes}, {"guest-address", 0}}})}};
}

TEST(HookMachineTest, EqualMachinesFit) {
  EXPECT_THAT(compare_hook_machines(machine("a", 4096), machine("a", 4096)), testing::IsEmpty());
}

TEST(HookMachineTest, AnotherTextIsADifferenceThatNamesBoth) {
  EXPECT_THAT(compare_hook_machines(machine("a", 4096), machine("b", 4096)),
              ElementsAre(testing::AllOf(HasSubstr("\"a\""), HasSubstr("\"b\""))));
}

TEST(HookMachineTest, AnotherSizeOfASlotIsADifference) {
  EXPECT_THAT(compare_hook_machines(machine("a", 4096), machine("a", 8192)),
              ElementsAre(HasSubstr("8192")));
}

TEST(HookMachineTest, WhatIsNoDescriptionDiffers) {
  EXPECT_FALSE(compare_hook_machines(machine("a", 4096), json(7)).empty());
}

TEST(VmAddressTest, BothKindsAreUnderstood) {
  EXPECT_EQ(*parse_vm_address("qemu:/q"), (VmAddress{VmmKind::qemu, "/q"}));
  EXPECT_EQ(*parse_vm_address("hook:/h:1"), (VmAddress{VmmKind::hook, "/h:1"}));
}

TEST(VmAddressTest, AnythingElseIsRefused) {
  for (const char* text : {"", "hook:", "qemu:", "/run/x", "xen:/x"}) {
    EXPECT_FALSE(parse_vm_address(text)) << text;
  }
}

}  // namespace
}  // namespace pageferry

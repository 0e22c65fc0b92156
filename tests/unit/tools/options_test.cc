// The command line: what is accepted, what is refused, and that CLI11's exit codes never get out.
#include "tools/pageferry/options.h"

#include <gtest/gtest.h>

#include <initializer_list>
#include <vector>

#include "tools/pageferry/option_names.h"

namespace pageferry {
namespace {

tl::expected<Command, UsageAnswer> parse(std::initializer_list<const char*> words) {
  std::vector<const char*> argv = {"pageferry"};
  argv.insert(argv.end(), words);
  return parse_command_line(static_cast<int>(argv.size()), argv.data());
}

MigrateCommand migrate_with(std::initializer_list<const char*> more) {
  std::vector<const char*> argv = {"pageferry", "migrate", "qemu:/q", "--store",
                                   "/s",        "--to",    "local"};
  argv.insert(argv.end(), more);
  auto command = parse_command_line(static_cast<int>(argv.size()), argv.data());
  EXPECT_TRUE(command) << command.error().text;
  return command ? std::get<MigrateCommand>(*command) : MigrateCommand{};
}

TEST(Options, MigrateNeedsTheFormOfTheVm) {
  auto command = parse({"migrate", "/run/qmp", "--store", "/s", "--to", "local"});
  ASSERT_FALSE(command);
  EXPECT_EQ(command.error().code, ExitCode::usage);
  EXPECT_NE(command.error().text.find("qemu:QMP_SOCKET"), std::string::npos);
}

TEST(Options, MigrateTakesTheSocketOutOfTheVm) {
  EXPECT_EQ(migrate_with({}).source.vm.socket, "/q");
}

TEST(Options, AVmmWithAHookIsNamedByItsSocket) {
  auto command = parse({"migrate", "hook:/h", "--store", "/s", "--to", "local"});
  ASSERT_TRUE(command) << command.error().text;
  EXPECT_EQ(std::get<MigrateCommand>(*command).source.vm, (VmAddress{VmmKind::hook, "/h"}));
}

TEST(Options, StatusIsAskedOnceUnlessItIsWatched) {
  auto once = parse({"status", "--store", "/s", "--name", "n"});
  ASSERT_TRUE(once) << once.error().text;
  EXPECT_EQ(std::get<StatusCommand>(*once).mode, StatusCommand::Mode::once);
  auto watch = parse({"status", "--store", "/s", "--name", "n", "--watch"});
  ASSERT_TRUE(watch) << watch.error().text;
  EXPECT_EQ(std::get<StatusCommand>(*watch).mode, StatusCommand::Mode::watch);
}

TEST(Options, BandwidthIsInMebibytes) {
  EXPECT_EQ(migrate_with({"--bandwidth", "3"}).source.bandwidth_bytes_per_s, 3U << 20);
}

TEST(Options, DowntimeIsInMilliseconds) {
  EXPECT_EQ(migrate_with({"--max-downtime", "45"}).source.max_downtime, Milliseconds(45));
}

TEST(Options, TimeoutIsAbsentUnlessGiven) {
  EXPECT_FALSE(migrate_with({}).source.timeout);
}

TEST(Options, TimeoutActionSwitchIsUnderstood) {
  EXPECT_EQ(migrate_with({"--timeout-action", "switch"}).source.timeout_action,
            TimeoutAction::switch_now);
}

TEST(Options, UnknownTimeoutActionIsUsage) {
  auto command = parse(
      {"migrate", "qemu:/q", "--store", "/s", "--to", "local", "--timeout-action", "suspend"});
  ASSERT_FALSE(command);
  EXPECT_EQ(command.error().code, ExitCode::usage);
}

TEST(Options, UnknownFlagIsUsageAndNotCli11sCode) {
  auto command = parse({"send", "qemu:/q", "--store", "/s", "--frobnicate"});
  ASSERT_FALSE(command);
  EXPECT_EQ(command.error().code, ExitCode::usage);
}

TEST(Options, StoreFaultsAreParsedAndKeptForTheAgent) {
  const MigrateCommand command = migrate_with({"--inject-store", "write:after=3:eio,sync:hang"});
  EXPECT_EQ(command.common.store_faults.size(), 2U);
  EXPECT_EQ(command.common.store_fault_spec, "write:after=3:eio,sync:hang");
}

TEST(Options, WrongStoreFaultIsUsage) {
  auto command = parse({"send", "qemu:/q", "--store", "/s", "--inject-store", "write:often"});
  ASSERT_FALSE(command);
  EXPECT_EQ(command.error().code, ExitCode::usage);
  EXPECT_NE(command.error().text.find("write:often"), std::string::npos);
}

TEST(Options, MissingSubcommandIsUsage) {
  auto command = parse({});
  ASSERT_FALSE(command);
  EXPECT_EQ(command.error().code, ExitCode::usage);
}

TEST(Options, HelpIsNoError) {
  auto command = parse({"--help"});
  ASSERT_FALSE(command);
  EXPECT_EQ(command.error().code, ExitCode::done);
}

TEST(Options, NameMayNotLeaveTheStore) {
  EXPECT_FALSE(parse({"receive", "--store", "/s", "--name", "../other"}));
  EXPECT_FALSE(parse({"receive", "--store", "/s", "--name", ".hidden"}));
}

TEST(Options, RunDirMustBeAbsolute) {
  EXPECT_FALSE(parse({"receive", "--store", "/s", "--name", "vm", "--run-dir", "here"}));
}

TEST(Options, DestinationOtherThanLocalIsRefusedWithItsName) {
  auto command = parse({"migrate", "qemu:/q", "--store", "/s", "--to", "ssh:other"});
  ASSERT_FALSE(command);
  EXPECT_NE(command.error().text.find("ssh:other"), std::string::npos);
}

TEST(Options, JsonAndQuietExcludeEachOther) {
  EXPECT_FALSE(parse({"status", "--store", "/s", "--name", "vm", "--json", "--quiet"}));
}

TEST(Options, PrefetchOrderIsUnderstood) {
  EXPECT_EQ(migrate_with({"--prefetch", "linear"}).destination.order, PrefetchOrder::linear);
}

TEST(Options, TheRecordedOrderIsForVmsOnAStoreOnly) {
  EXPECT_EQ(migrate_with({"--prefetch", "recorded"}).destination.order, PrefetchOrder::recorded);
  EXPECT_FALSE(parse({"receive", "--firecracker", "/s/uffd", "--page-file", "/s/pages",
                      "--prefetch", "recorded"}));
}

TEST(Options, PlacementIsAutomaticUnlessGiven) {
  EXPECT_EQ(migrate_with({}).destination.placement, PagePlacement::automatic);
}

TEST(Options, EachPlacementIsUnderstood) {
  EXPECT_EQ(migrate_with({"--placement", "auto"}).destination.placement, PagePlacement::automatic);
  EXPECT_EQ(migrate_with({"--placement", "direct"}).destination.placement, PagePlacement::direct);
  EXPECT_EQ(migrate_with({"--placement", "stream"}).destination.placement, PagePlacement::stream);
}

TEST(Options, ReceiveTakesAPlacement) {
  auto command = parse({"receive", "--store", "/s", "--name", "vm", "--placement", "stream"});
  ASSERT_TRUE(command) << command.error().text;
  EXPECT_EQ(std::get<ReceiveCommand>(*command).destination.placement, PagePlacement::stream);
}

TEST(Options, ReceiveNeedsAStoreAndAName) {
  for (const auto& words : {std::initializer_list<const char*>{"receive", "--name", "vm"},
                            std::initializer_list<const char*>{"receive", "--store", "/s"}}) {
    auto command = parse(words);
    ASSERT_FALSE(command);
    EXPECT_EQ(command.error().code, ExitCode::usage);
    EXPECT_NE(command.error().text.find("is required"), std::string::npos);
  }
}

TEST(Options, ReceiveTakesAFirecrackerAndAMemoryFile) {
  auto command = parse({"receive", "--firecracker", "/s/uffd", "--memory-file", "/s/mem"});
  ASSERT_TRUE(command) << command.error().text;
  const auto& firecracker = std::get<FirecrackerCommand>(*command);
  EXPECT_EQ(firecracker.socket, "/s/uffd");
  EXPECT_EQ(firecracker.file, "/s/mem");
  EXPECT_EQ(firecracker.kind, MemoryFileKind::plain);
  EXPECT_EQ(firecracker.order, PrefetchOrder::hot);
}

TEST(Options, ReceiveTakesAFirecrackerAndAPageFile) {
  auto command = parse(
      {"receive", "--firecracker", "/s/uffd", "--page-file", "/s/pages", "--prefetch", "none"});
  ASSERT_TRUE(command) << command.error().text;
  const auto& firecracker = std::get<FirecrackerCommand>(*command);
  EXPECT_EQ(firecracker.file, "/s/pages");
  EXPECT_EQ(firecracker.kind, MemoryFileKind::page_file);
  EXPECT_EQ(firecracker.order, PrefetchOrder::none);
}

TEST(Options, AFirecrackerHasOneFileAndNothingOfAStore) {
  EXPECT_FALSE(parse({"receive", "--firecracker", "/s/uffd"}));
  EXPECT_FALSE(parse({"receive", "--memory-file", "/m", "--store", "/s", "--name", "vm"}));
  EXPECT_FALSE(parse({"receive", "--page-file", "/m", "--store", "/s", "--name", "vm"}));
  const std::vector<std::vector<const char*>> others = {
      {"--page-file", "/p"},   {"--store", "/s"},          {"--name", "vm"}, {"--keep"},
      {"--placement", "auto"}, {"--incoming-command", "x"}};
  for (const auto& other : others) {
    std::vector<const char*> argv = {"pageferry", "receive",       "--firecracker",
                                     "/s/uffd",   "--memory-file", "/m"};
    argv.insert(argv.end(), other.begin(), other.end());
    auto command = parse_command_line(static_cast<int>(argv.size()), argv.data());
    ASSERT_FALSE(command) << other[0];
    EXPECT_EQ(command.error().code, ExitCode::usage) << other[0];
  }
}

TEST(Options, UnknownPlacementIsUsage) {
  auto command =
      parse({"migrate", "qemu:/q", "--store", "/s", "--to", "local", "--placement", "uffd"});
  ASSERT_FALSE(command);
  EXPECT_EQ(command.error().code, ExitCode::usage);
  EXPECT_NE(command.error().text.find("uffd"), std::string::npos);
}

TEST(Options, TheNamesOfPlacementsAreReadBack) {
  for (const auto& [name, value] : kPlacementNames) {
    EXPECT_EQ(name_of(kPlacementNames, value), name);
    EXPECT_EQ(find_named(kPlacementNames, name), value);
  }
  EXPECT_FALSE(find_named(kPlacementNames, "uffd"));
}

TEST(Options, KeepSourceKeepsIt) {
  EXPECT_EQ(migrate_with({"--keep-source"}).source.source_end, SourceEnd::keep);
}

TEST(Options, BaseIsNoneUnlessGiven) {
  EXPECT_EQ(migrate_with({}).source.base.kind, BaseChoice::Kind::none);
}

TEST(Options, BaseIsAutoOrAnAttempt) {
  const char* attempt = "attempt.3.00112233445566778899aabbccddeeff";
  auto automatic = parse({"send", "hook:/h", "--store", "/s", "--base", "auto"});
  ASSERT_TRUE(automatic) << automatic.error().text;
  EXPECT_EQ(std::get<SendCommand>(*automatic).source.base.kind, BaseChoice::Kind::automatic);
  auto named = parse({"send", "hook:/h", "--store", "/s", "--base", attempt});
  ASSERT_TRUE(named) << named.error().text;
  EXPECT_EQ(std::get<SendCommand>(*named).source.base.kind, BaseChoice::Kind::named);
  EXPECT_EQ(std::get<SendCommand>(*named).source.base.attempt, attempt);
  auto other = parse({"send", "hook:/h", "--store", "/s", "--base", "../attempt"});
  ASSERT_FALSE(other);
  EXPECT_EQ(other.error().code, ExitCode::usage);
}

TEST(Options, BaseIsRefusedForQemu) {
  auto command = parse({"send", "qemu:/q", "--store", "/s", "--base", "auto"});
  ASSERT_FALSE(command);
  EXPECT_EQ(command.error().code, ExitCode::usage);
  EXPECT_NE(command.error().text.find("QEMU sends every page"), std::string::npos);
}

}  // namespace
}  // namespace pageferry

// CLI11 fills plain numbers; they become settings below. The command that starts a VMM for an incoming guest is made here too: the same
// machine, nothing of the guest's own, which it brings with it.
#include "tools/demo_vmm/options.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <map>

namespace pageferry::demo {
namespace {

constexpr std::uint64_t kMib = std::uint64_t{1} << 20;
constexpr std::uint64_t kPagesInMib = kMib / kGuestPageBytes;
constexpr std::uint64_t kMibMax = std::uint64_t{1} << 20;

const std::map<std::string, MemoryKind> kMemoryKinds{{"anonymous", MemoryKind::anonymous},
                                                     {"memfd", MemoryKind::memfd},
                                                     {"thp", MemoryKind::transparent_huge},
                                                     {"hugetlb", MemoryKind::hugetlb}};
const std::map<std::string, Distribution> kDistributions{{"uniform", Distribution::uniform},
                                                         {"zipf", Distribution::zipf},
                                                         {"sequential", Distribution::sequential}};
const std::map<std::string, pageferry_dirty_source> kDirtySources{
    {"auto", PAGEFERRY_DIRTY_AUTOMATIC},
    {"kvm-log", PAGEFERRY_DIRTY_KVM_LOG},
    {"wp-async", PAGEFERRY_DIRTY_WP_ASYNC},
    {"wp-sync", PAGEFERRY_DIRTY_WP_SYNC}};

struct Raw {
  std::string name = "demo";
  std::uint64_t memory_mib = 256;
  std::string memory_kind = "memfd";
  std::uint32_t memory_slots = 2;
  std::uint32_t vcpus = 2;
  bool threads = false;
  std::uint64_t working_set_mib = 0;
  std::uint64_t fill_mib = kMibMax;
  std::uint64_t write_rate_mib_s = 50;
  std::uint64_t read_rate_mib_s = 50;
  std::uint64_t give_back_rate_mib_s = 0;
  std::string distribution = "uniform";
  std::uint64_t seed = 1;
  std::string disk;
  std::uint64_t disk_mib = 16;
  std::uint64_t disk_rate_per_s = 100;
  std::string hook;
  bool incoming = false;
  std::string dirty_source = "auto";
  std::vector<std::string> pager_command;
  std::string control;
  std::string status_file;
  std::uint64_t status_interval_ms = 1'000;
  bool json = false;
};

template <typename Names>
std::vector<std::string> keys_of(const Names& names) {
  std::vector<std::string> keys;
  for (const auto& each : names) keys.push_back(each.first);
  return keys;
}

void declare_machine(CLI::App& app, Raw& raw) {
  app.add_option("--name", raw.name, "the VM's name on the store")->capture_default_str();
  app.add_option("--memory-mib", raw.memory_mib, "guest memory, MiB, even")->capture_default_str();
  app.add_option("--memory-kind", raw.memory_kind, "anonymous, memfd, thp or hugetlb (2 MiB)")
      ->check(CLI::IsMember(keys_of(kMemoryKinds)))
      ->capture_default_str();
  app.add_option("--memory-slots", raw.memory_slots, "in how many pieces")->capture_default_str();
  app.add_option("--vcpus", raw.vcpus, "number of vCPUs")->capture_default_str();
  app.add_flag("--threads", raw.threads, "threads play vCPUs: no KVM");
  app.add_option("--disk", raw.disk, "file of the toy disk, made if it is not there");
  app.add_option("--disk-mib", raw.disk_mib, "its size, MiB")
      ->check(CLI::Range(1, 1'024))
      ->capture_default_str();
}

void declare_guest(CLI::App& app, Raw& raw) {
  const auto rate = CLI::Range(std::uint64_t{0}, kMibMax);
  app.add_option("--fill-mib", raw.fill_mib, "written before the work begins, MiB (default: all)");
  app.add_option("--working-set-mib", raw.working_set_mib, "what the work is on, MiB (0: all)");
  app.add_option("--write-rate-mib-s", raw.write_rate_mib_s, "pages written, MiB/s")
      ->check(rate)
      ->capture_default_str();
  app.add_option("--read-rate-mib-s", raw.read_rate_mib_s, "pages verified besides, MiB/s")
      ->check(rate)
      ->capture_default_str();
  app.add_option("--give-back-rate-mib-s", raw.give_back_rate_mib_s, "to the balloon, MiB/s")
      ->check(rate)
      ->capture_default_str();
  app.add_option("--disk-rate-per-s", raw.disk_rate_per_s, "disk requests a second")
      ->check(rate)
      ->capture_default_str();
  app.add_option("--distribution", raw.distribution, "uniform, zipf or sequential")
      ->check(CLI::IsMember(keys_of(kDistributions)))
      ->capture_default_str();
  app.add_option("--seed", raw.seed, "of contents and choices")->capture_default_str();
}

void declare_rest(CLI::App& app, Raw& raw) {
  app.add_option("--hook", raw.hook, "socket on which pageferry finds this VMM");
  app.add_flag("--incoming", raw.incoming, "wait for a guest")->needs("--hook");
  app.add_option("--dirty-source", raw.dirty_source, "auto, kvm-log, wp-async or wp-sync")
      ->check(CLI::IsMember(keys_of(kDirtySources)))
      ->capture_default_str();
  app.add_option("--pager-command", raw.pager_command,
                 "words of the command that starts a new pager; {socket} is filled in");
  app.add_option("--control", raw.control, "control socket (default: that of --hook + .control)");
  app.add_option("--status-file", raw.status_file, "the newest status line, replaced as a whole");
  app.add_option("--status-interval-ms", raw.status_interval_ms, "how often, ms")
      ->check(CLI::Range(10, 3'600'000))
      ->capture_default_str();
  app.add_flag("--json", raw.json, "status lines on stdout");
}

VmSettings vm_settings(const Raw& raw) {
  VmSettings vm;
  vm.memory_kind = kMemoryKinds.at(raw.memory_kind);
  vm.vcpu_kind = raw.threads ? VcpuKind::threads : VcpuKind::kvm;
  vm.disk_path = raw.disk;
  vm.guest.memory_bytes = raw.memory_mib * kMib;
  vm.guest.ram_slots = raw.memory_slots;
  vm.guest.vcpus = raw.vcpus;
  vm.guest.disk_bytes = raw.disk.empty() ? 0 : raw.disk_mib * kMib;
  vm.guest.seed = raw.seed;
  vm.guest.distribution = kDistributions.at(raw.distribution);
  vm.guest.fill_bytes = raw.fill_mib * kMib;
  if (raw.working_set_mib != 0) vm.guest.working_set_bytes = raw.working_set_mib * kMib;
  vm.rates = {.write_pages = raw.write_rate_mib_s * kPagesInMib,
              .read_pages = raw.read_rate_mib_s * kPagesInMib,
              .disk_requests = raw.disk_rate_per_s,
              .give_backs = raw.give_back_rate_mib_s * kMib / give_back_bytes(vm.memory_kind)};
  return vm;
}

std::vector<std::string> incoming_command(const Raw& raw) {
  std::error_code ignored;
  std::vector<std::string> words{std::filesystem::read_symlink("/proc/self/exe", ignored).string(),
                                 "--incoming",
                                 "--hook",
                                 "{socket}",
                                 "--name",
                                 raw.name,
                                 "--memory-mib",
                                 fmt::to_string(raw.memory_mib),
                                 "--memory-kind",
                                 raw.memory_kind,
                                 "--memory-slots",
                                 fmt::to_string(raw.memory_slots),
                                 "--vcpus",
                                 fmt::to_string(raw.vcpus),
                                 "--dirty-source",
                                 raw.dirty_source};
  if (raw.threads) words.emplace_back("--threads");
  if (raw.disk.empty()) return words;
  const std::string disk = std::filesystem::absolute(raw.disk, ignored).string();
  for (const std::string& word :
       {std::string("--disk"), disk, std::string("--disk-mib"), fmt::to_string(raw.disk_mib)}) {
    words.push_back(word);
  }
  return words;
}

Options options_of(const Raw& raw) {
  Options options;
  options.vm = vm_settings(raw);
  options.hook.socket_path = raw.hook;
  options.hook.vm_name = raw.name;
  options.hook.beginning = raw.incoming ? Beginning::incoming : Beginning::own_guest;
  options.hook.dirty_source = kDirtySources.at(raw.dirty_source);
  options.hook.incoming_command = incoming_command(raw);
  options.hook.pager_command = raw.pager_command;
  options.control_path = raw.control;
  if (raw.control.empty() && !raw.hook.empty()) options.control_path = raw.hook + ".control";
  options.status_file = raw.status_file;
  options.status_interval = Milliseconds(raw.status_interval_ms);
  if (raw.json) options.status_lines = Options::StatusLines::on_stdout;
  return options;
}

}  // namespace

tl::expected<Options, Answer> parse_options(int argc, const char* const* argv) {
  constexpr int kUsage = 2;
  CLI::App app("A tiny VMM whose guest checks its own memory, and that pageferry can move.",
               "demo_vmm");
  Raw raw;
  declare_machine(app, raw);
  declare_guest(app, raw);
  declare_rest(app, raw);
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    return tl::make_unexpected(Answer{0, app.help()});
  } catch (const CLI::ParseError& error) {
    return tl::make_unexpected(Answer{kUsage, fmt::format("demo_vmm: {}\n", error.what())});
  }
  // A product that overflows is no valid size either, but it could look like one.
  for (const std::uint64_t mib : {raw.memory_mib, raw.working_set_mib, raw.fill_mib}) {
    if (mib > kMibMax) {
      return tl::make_unexpected(
          Answer{kUsage, fmt::format("demo_vmm: {} MiB, the limit is {} MiB\n", mib, kMibMax)});
    }
  }
  return options_of(raw);
}

}  // namespace pageferry::demo

// The entries are placed first, for as many pages as the whole memory has: a little more than needed, and no circle in the arithmetic.
#include "tools/demo_vmm/guest_plan.h"

#include <fmt/core.h>

#include <algorithm>

namespace pageferry::demo {
namespace {

constexpr std::uint64_t kHoleBytes = std::uint64_t{16} << 20;
constexpr std::uint64_t kMemoryBytesMax = std::uint64_t{64} << 30;
constexpr std::uint64_t kDiskBytesMax = std::uint64_t{1} << 30;

constexpr std::uint64_t rounded_up(std::uint64_t bytes, std::uint64_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

Result<void> check_numbers(const GuestNumbers& numbers) {
  const auto refuse = [](std::string_view what, std::uint64_t value, std::string_view limit) {
    return fail(Errc::invalid, fmt::format("{} is {}, must be {}", what, value, limit));
  };
  if (numbers.vcpus == 0 || numbers.vcpus > kVcpusMax) {
    return refuse("number of vCPUs", numbers.vcpus, fmt::format("1 to {}", kVcpusMax));
  }
  if (numbers.ram_slots == 0 || numbers.ram_slots > kRegionsMax) {
    return refuse("number of memory slots", numbers.ram_slots, fmt::format("1 to {}", kRegionsMax));
  }
  if (numbers.memory_bytes % kGuestHugeBytes != 0 || numbers.memory_bytes > kMemoryBytesMax) {
    return refuse("memory in bytes", numbers.memory_bytes, "a multiple of 2 MiB, at most 64 GiB");
  }
  if (numbers.disk_bytes % kGuestPageBytes != 0 || numbers.disk_bytes > kDiskBytesMax) {
    return refuse("disk in bytes", numbers.disk_bytes, "a multiple of 4 KiB, at most 1 GiB");
  }
  if (numbers.give_back_bytes != kGuestPageBytes && numbers.give_back_bytes != kGuestHugeBytes) {
    return refuse("unit of the balloon in bytes", numbers.give_back_bytes, "4 KiB or 2 MiB");
  }
  return {};
}

}  // namespace

Result<GuestPlan> plan_guest(const GuestNumbers& numbers) {
  PF_TRY(check_numbers(numbers));
  const std::uint64_t entries =
      numbers.memory_bytes / kGuestPageBytes + numbers.disk_bytes / kGuestPageBytes;
  const std::uint64_t boot_bytes =
      kEntriesAddress + rounded_up(entries * sizeof(Entry), kGuestHugeBytes);
  const std::uint64_t least = std::max(numbers.vcpus, numbers.ram_slots) * kGuestHugeBytes;
  if (numbers.memory_bytes < boot_bytes + least) {
    return fail(Errc::invalid,
                fmt::format("memory is {} MiB, must be at least {} MiB for {} vCPUs and {} slots",
                            numbers.memory_bytes >> 20, (boot_bytes + least) >> 20, numbers.vcpus,
                            numbers.ram_slots));
  }
  GuestPlan plan;
  Parameters& parameters = plan.parameters;
  plan.slots.push_back({"boot", 0, boot_bytes});
  std::uint64_t left = numbers.memory_bytes - boot_bytes;
  std::uint64_t address = boot_bytes;
  for (std::uint32_t i = 0; i < numbers.ram_slots; ++i) {
    const std::uint64_t bytes = left / (numbers.ram_slots - i) / kGuestHugeBytes * kGuestHugeBytes;
    plan.slots.push_back({fmt::format("ram{}", i), address, bytes});
    parameters.regions[i] = {address, bytes / kGuestPageBytes};
    address += bytes + kHoleBytes;
    left -= bytes;
  }
  parameters.magic = kParametersMagic;
  parameters.format = kParametersFormat;
  parameters.vcpus = numbers.vcpus;
  parameters.seed = numbers.seed;
  parameters.distribution = numbers.distribution;
  parameters.regions_used = numbers.ram_slots;
  parameters.data_pages = (numbers.memory_bytes - boot_bytes) / kGuestPageBytes;
  parameters.fill_pages = std::min(parameters.data_pages, numbers.fill_bytes / kGuestPageBytes);
  parameters.working_set_pages =
      std::min(parameters.data_pages, numbers.working_set_bytes / kGuestPageBytes);
  parameters.give_back_pages = numbers.give_back_bytes / kGuestPageBytes;
  parameters.disk_blocks = numbers.disk_bytes / kGuestPageBytes;
  return plan;
}

}  // namespace pageferry::demo

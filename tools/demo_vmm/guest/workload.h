// Workload: what one vCPU of the demo guest does, and the oracle of every test that moves it. It rewrites pages (verify what is there,
// then version + 1), reads and verifies others, gives pages back to the balloon, writes and reads back disk blocks, and checks all that it
// owns when asked. What each page must hold is kept apart from the pages, in Entries whose versions add up to a number that is not in
// memory at all but in the vCPU's registers: an old page, an old entry, and memory and registers of two different moments are all noticed.
//
// The same code runs in KVM, as a program without anything below it, and on threads that play vCPUs. What differs is the Machine:
//   T* at<T>(guest address)            the memory there
//   heartbeats(), set_heartbeats(n)    a register of the vCPU
//   ring_disk(), ring_give_back()      the doorbells
//
// Each vCPU owns a share of the pages and of the blocks, and touches no other's. Thread rule: one vCPU. Lifetime: the machine's is longer.
#pragma once

#include "tools/demo_vmm/guest/page_choice.h"

namespace pageferry::demo {

// What a vCPU knows outside guest memory: in KVM registers and stack, on a thread the VMM's memory. Whole 64-bit words only.
struct Registers {
  static constexpr std::uint64_t kNoCheck = ~std::uint64_t{0};

  ChoiceState writes;
  ChoiceState reads;
  ChoiceState devices;
  std::uint64_t version_sum = 0;  // of the entries of all pages that it owns
  std::uint64_t fill_cursor = 0;  // pages of its share filled
  std::uint64_t check_cursor = kNoCheck;
  std::uint64_t check_sum = 0;  // of the entries before check_cursor
  std::uint64_t disk_number = 0;
  std::uint64_t disk_block = 0;
  std::uint64_t disk_operation = 0;  // in flight; 0: none
  std::uint64_t read_address = 0;    // of the block that lies in the read buffer; 0: none
  std::uint64_t read_version = 0;
  std::uint64_t turn = 0;  // of the last answer
};

template <typename Machine>
class Workload {
 public:
  // Precondition: the parameters are in memory, and vcpu < parameters.vcpus. Reads them: may wait for their page.
  Workload(Machine& machine, std::uint32_t vcpu)
      : machine_(machine),
        parameters_(*machine.template at<const Parameters>(kParametersAddress)),
        own_(*machine.template at<VcpuPage>(kVcpuPagesAddress + vcpu * kGuestPageBytes)),
        write_buffer_(
            machine.template at<std::uint64_t>(kWriteBuffersAddress + vcpu * kGuestPageBytes)),
        read_buffer_(
            machine.template at<std::uint64_t>(kReadBuffersAddress + vcpu * kGuestPageBytes)) {
    const std::uint64_t share =
        parameters_.data_pages / parameters_.vcpus / kGuestHugePages * kGuestHugePages;
    const bool is_last = vcpu + 1 == parameters_.vcpus;
    first_page_ = vcpu * share;
    pages_ = is_last ? parameters_.data_pages - first_page_ : share;
    fill_pages_ = pages_ * parameters_.fill_pages / parameters_.data_pages;
    working_set_pages_ = pages_ * parameters_.working_set_pages / parameters_.data_pages;
    if (working_set_pages_ == 0) working_set_pages_ = 1;
    multiplier_ = strewing_multiplier(working_set_pages_);
    blocks_ = parameters_.disk_blocks / parameters_.vcpus;
    first_block_ = vcpu * blocks_;
  }

  // What the registers hold before the first instruction.
  static Registers first_registers(std::uint64_t seed, std::uint32_t vcpu) {
    Registers registers;
    const std::uint64_t first = seed + std::uint64_t{3} * vcpu;
    registers.writes.random = mixed(first);
    registers.reads.random = mixed(first + 1);
    registers.devices.random = mixed(first + 2);
    return registers;
  }

  // It has work of its own: ask at kPortBudgetNow.
  bool is_busy(const Registers& registers) const {
    return own_.report.filled == 0 || registers.check_cursor != Registers::kNoCheck;
  }

  void run(Registers& registers, const Budget& budget) {
    beat();
    if (budget.turn == registers.turn) bad(BadKind::answer, 0);
    registers.turn = budget.turn;
    if (budget.check != 0) {  // also in the middle of one: the answer shall be of now
      registers.check_cursor = 0;
      registers.check_sum = 0;
    }
    if (own_.report.filled == 0) {
      fill(registers);
      return;
    }
    for (std::uint32_t i = 0; i < budget.writes; ++i) {
      rewrite(registers, first_page_ + chosen(registers.writes));
    }
    for (std::uint32_t i = 0; i < budget.reads; ++i) verify(first_page_ + chosen(registers.reads));
    for (std::uint32_t i = 0; i < budget.give_back; ++i) give_back(registers);
    use_disk(registers, budget.disk);
    if (registers.check_cursor != Registers::kNoCheck) check(registers);
  }

 private:
  static constexpr std::uint64_t kPagesAtOnce = 256;  // of a fill or check, between two heartbeats

  void bad(BadKind kind, std::uint64_t address) {
    Report& report = own_.report;
    ++report.bad;
    if (report.first_bad_kind != BadKind::none) return;
    report.first_bad_address = address;
    report.first_bad_kind = kind;
  }

  void beat() {
    std::uint64_t& heartbeats = own_.report.heartbeats;
    if (heartbeats != machine_.heartbeats()) bad(BadKind::registers, 0);
    ++heartbeats;
    machine_.set_heartbeats(heartbeats);
  }

  // --- pages and entries ---

  std::uint64_t address_of(std::uint64_t page) const {
    for (std::uint32_t i = 0; i < parameters_.regions_used; ++i) {
      const Region& region = parameters_.regions[i];
      if (page < region.pages) return region.address + page * kGuestPageBytes;
      page -= region.pages;
    }
    return 0;
  }
  Entry& entry_of(std::uint64_t index) const {
    return *machine_.template at<Entry>(kEntriesAddress + index * sizeof(Entry));
  }
  std::uint64_t* memory_at(std::uint64_t address) const {
    return machine_.template at<std::uint64_t>(address);
  }
  std::uint64_t chosen(ChoiceState& state) const {
    return choose(state, parameters_.distribution, working_set_pages_, multiplier_);
  }

  // An entry of zeros is one that nobody has written yet: version 0.
  std::uint32_t proved_version(const Entry& entry, std::uint64_t address) {
    const std::uint32_t version = entry.version & ~kKnownBad;
    const bool is_untouched = version == 0 && entry.check == 0;
    if (!is_untouched && entry.check != entry_check(parameters_.seed, address, version)) {
      bad(BadKind::entry, address);
    }
    return version;
  }
  void set_entry(Entry& entry, std::uint64_t address, std::uint32_t version) const {
    entry.version = version;
    entry.check = entry_check(parameters_.seed, address, version);
  }
  void set_version(Registers& registers, std::uint64_t page, std::uint64_t address,
                   std::uint32_t version) {
    Entry& entry = entry_of(page);
    const std::uint64_t more = std::uint64_t{version} - (entry.version & ~kKnownBad);
    set_entry(entry, address, version);
    registers.version_sum += more;
    const bool is_checked = registers.check_cursor != Registers::kNoCheck &&
                            page - first_page_ < registers.check_cursor;
    if (is_checked) registers.check_sum += more;
  }

  // Each bad page is reported once, until it is written anew.
  std::uint32_t verify(std::uint64_t page) {
    const std::uint64_t address = address_of(page);
    Entry& entry = entry_of(page);
    const std::uint32_t version = proved_version(entry, address);
    ++own_.report.pages_verified;
    if ((entry.version & kKnownBad) != 0) return version;
    const BadKind kind = judge(memory_at(address), parameters_.seed, address, version);
    if (kind == BadKind::none) return version;
    bad(kind, address);
    entry.version |= kKnownBad;
    return version;
  }

  void rewrite(Registers& registers, std::uint64_t page) {
    const std::uint32_t version = (verify(page) + 1) & ~kKnownBad;
    const std::uint64_t address = address_of(page);
    set_version(registers, page, address, version);
    write_pattern(memory_at(address), parameters_.seed, address, version);
    ++own_.report.pages_written;
  }

  void fill(Registers& registers) {
    for (std::uint64_t i = 0; i < kPagesAtOnce; ++i) {
      if (registers.fill_cursor == fill_pages_) {
        own_.report.filled = 1;
        return;
      }
      rewrite(registers, first_page_ + registers.fill_cursor++);
    }
  }

  void check(Registers& registers) {
    for (std::uint64_t i = 0; i < kPagesAtOnce; ++i) {
      if (registers.check_cursor == pages_) {
        if (registers.check_sum != registers.version_sum) {
          bad(BadKind::version_sum, kEntriesAddress + first_page_ * sizeof(Entry));
        }
        registers.check_cursor = Registers::kNoCheck;
        ++own_.report.checks;
        return;
      }
      registers.check_sum += verify(first_page_ + registers.check_cursor++);
    }
  }

  // --- devices ---

  void give_back(Registers& registers) {
    const std::uint64_t units = pages_ / parameters_.give_back_pages;
    const std::uint64_t first =
        first_page_ + uniform_below(registers.devices, units) * parameters_.give_back_pages;
    for (std::uint64_t page = first; page < first + parameters_.give_back_pages; ++page) {
      set_version(registers, page, address_of(page), 0);
    }
    own_.give_back = {address_of(first), parameters_.give_back_pages * kGuestPageBytes};
    machine_.ring_give_back();
    own_.report.pages_given_back += parameters_.give_back_pages;
  }

  // One request is in flight at a time; a block is written and read in turns. More than one in a budget is a backlog.
  void use_disk(Registers& registers, std::uint32_t requests) {
    if (blocks_ == 0) return;
    if (registers.disk_operation != 0) {
      if (__atomic_load_n(&own_.completed, __ATOMIC_ACQUIRE) != registers.disk_number) return;
      finish_request(registers);
    }
    if (requests == 0) return;
    const bool is_write = uniform_below(registers.devices, 2) == 0;
    const std::uint64_t block = first_block_ + uniform_below(registers.devices, blocks_);
    const std::uint64_t address = kBlockAddress + block * kGuestPageBytes;
    Entry& entry = entry_of(parameters_.data_pages + block);
    if (is_write) {
      const std::uint32_t version = (proved_version(entry, address) + 1) & ~kKnownBad;
      set_entry(entry, address, version);
      write_pattern(write_buffer_, parameters_.seed, address, version);
    } else {
      // Long after it came: nobody but the disk writes there, so that a write of the disk that was lost is noticed now.
      verify_read_buffer(registers);
      registers.read_address = 0;
    }
    const DiskOperation operation = is_write ? DiskOperation::write : DiskOperation::read;
    registers.disk_number++;
    registers.disk_block = block;
    registers.disk_operation = static_cast<std::uint64_t>(operation);
    own_.request = {registers.disk_number, block, operation, 0};
    machine_.ring_disk();
  }

  void finish_request(Registers& registers) {
    const std::uint64_t address = kBlockAddress + registers.disk_block * kGuestPageBytes;
    const Entry& entry = entry_of(parameters_.data_pages + registers.disk_block);
    const bool is_write =
        registers.disk_operation == static_cast<std::uint64_t>(DiskOperation::write);
    registers.disk_operation = 0;
    if (own_.outcome != DiskOutcome::done) {
      bad(BadKind::disk, address);
      return;
    }
    if (is_write) {
      ++own_.report.blocks_written;
      return;
    }
    ++own_.report.blocks_verified;
    registers.read_address = address;
    registers.read_version = proved_version(entry, address);
    verify_read_buffer(registers);
  }

  void verify_read_buffer(const Registers& registers) {
    if (registers.read_address == 0) return;
    const auto version = static_cast<std::uint32_t>(registers.read_version);
    if (judge(read_buffer_, parameters_.seed, registers.read_address, version) != BadKind::none) {
      bad(BadKind::block, registers.read_address);
    }
  }

  Machine& machine_;
  const Parameters& parameters_;
  VcpuPage& own_;
  std::uint64_t* write_buffer_;
  const std::uint64_t* read_buffer_;
  std::uint64_t first_page_ = 0;
  std::uint64_t pages_ = 0;
  std::uint64_t fill_pages_ = 0;
  std::uint64_t working_set_pages_ = 0;
  std::uint64_t multiplier_ = 1;
  std::uint64_t blocks_ = 0;
  std::uint64_t first_block_ = 0;
};

}  // namespace pageferry::demo

// KvmGuest: a real guest in KVM without firmware or operating system. One vCPU in 64-bit mode runs ten bytes of our machine code,
// which writes a byte to each of a row of pages and halts. No interrupts, no devices.
//
//   block     pages  guest-physical  memory slots
//   pc.boot      16  0               0          page 1 to 3: page tables (1 GiB, mapped one to one); page 4: the code
//   pc.ram    2,048  2 MiB           1 (100 pages), and from 16 MiB on 2 (the rest), as around a PCI hole
//   pc.bios      70  32 MiB          3
//
// The accessed and dirty bits in its page tables are set already, so that running writes nothing but what it is told to.
//
// Thread rule: one thread, the test's, except where run() is called on another.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <functional>
#include <vector>

#include "fakes/page_content.h"
#include "fakes/userfault_memory.h"
#include "pager/kvm_dirty_ring_source.h"
#include "pager/kvm_memory_slot.h"
#include "transport/os/fd.h"

namespace pageferry::testing_support {

class KvmGuest {
 public:
  static constexpr std::uint64_t kBootPages = 16;
  static constexpr std::uint64_t kRamPages = 2'048;
  static constexpr std::uint64_t kBiosPages = 70;
  static constexpr std::uint64_t kPages = kBootPages + kRamPages + kBiosPages;
  static constexpr std::uint64_t kRamPagesInSlot1 = 100;

  // `ring_bytes`: of the dirty ring; 0: the VM has none.
  explicit KvmGuest(std::uint64_t ring_bytes = 0) {
    kvm_.reset(::open("/dev/kvm", O_RDWR | O_CLOEXEC));
    EXPECT_TRUE(kvm_.valid()) << "/dev/kvm: " << std::strerror(errno);
    vm_.reset(::ioctl(kvm_.get(), KVM_CREATE_VM, 0));
    EXPECT_TRUE(vm_.valid()) << "KVM_CREATE_VM: " << std::strerror(errno);
    if (ring_bytes != 0) {
      const auto enabled = enable_dirty_rings(vm_.get(), ring_bytes);
      EXPECT_TRUE(enabled) << enabled.error().message;
    }
    for (const KvmMemorySlot& slot : slots()) {
      const auto set = switch_log(vm_.get(), slot, KvmLog::off);
      EXPECT_TRUE(set) << set.error().message;
    }
    vcpu_.reset(::ioctl(vm_.get(), KVM_CREATE_VCPU, 0));
    EXPECT_TRUE(vcpu_.valid()) << "KVM_CREATE_VCPU: " << std::strerror(errno);
    run_bytes_ = static_cast<std::size_t>(::ioctl(kvm_.get(), KVM_GET_VCPU_MMAP_SIZE, 0));
    void* const at =
        ::mmap(nullptr, run_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu_.get(), 0);
    EXPECT_NE(at, MAP_FAILED) << std::strerror(errno);
    run_ = static_cast<kvm_run*>(at);
    load();
  }
  ~KvmGuest() { ::munmap(run_, run_bytes_); }
  KvmGuest(const KvmGuest&) = delete;
  KvmGuest& operator=(const KvmGuest&) = delete;

  int vm_fd() const { return vm_.get(); }
  int vcpu_fd() const { return vcpu_.get(); }
  const MemoryLayout& layout() const { return layout_; }
  std::vector<std::uint64_t> addresses() const {
    return {boot_.address(), ram_.address(), bios_.address()};
  }
  std::vector<KvmMemorySlot> slots() const {
    const std::uint64_t split_bytes = bytes_of_pages(kRamPagesInSlot1);
    return {
        slot(0, 0, boot_.address(), {PageIndex{0}, kBootPages}),
        slot(1, kRamPhysical, ram_.address(), {PageIndex{kBootPages}, kRamPagesInSlot1}),
        slot(2, kRamPhysical2, ram_.address() + split_bytes,
             {PageIndex{kBootPages + kRamPagesInSlot1}, kRamPages - kRamPagesInSlot1}),
        slot(3, kBiosPhysical, bios_.address(), {PageIndex{kBootPages + kRamPages}, kBiosPages})};
  }
  // In this process.
  std::byte* page(std::uint64_t index) const {
    if (index < kBootPages) return boot_.page(index);
    index -= kBootPages;
    return index < kRamPages ? ram_.page(index) : bios_.page(index - kRamPages);
  }

  // The guest writes `value` to the first byte of each page of the run. Precondition: they lie in one slot.
  // `on_full`: for KVM_EXIT_DIRTY_RING_FULL.
  void write(
      PageRun pages, std::byte value,
      const std::function<void()>& on_full = [] { ADD_FAILURE() << "a dirty ring is full"; }) {
    kvm_regs registers{};
    registers.rip = kCode;
    registers.rflags = 2;  // its one fixed bit
    registers.rdi = physical(raw(pages.first));
    registers.rsi = kPageSizeBytes;
    registers.rcx = pages.pages;
    registers.rax = std::to_integer<std::uint64_t>(value);
    ASSERT_EQ(::ioctl(vcpu_.get(), KVM_SET_REGS, &registers), 0) << std::strerror(errno);
    for (;;) {
      const int ran = ::ioctl(vcpu_.get(), KVM_RUN, 0);
      if (ran < 0 && errno == EINTR) continue;
      ASSERT_EQ(ran, 0) << "KVM_RUN: " << std::strerror(errno);
      if (run_->exit_reason == KVM_EXIT_HLT) return;
      ASSERT_EQ(run_->exit_reason, static_cast<std::uint32_t>(KVM_EXIT_DIRTY_RING_FULL));
      on_full();
      if (testing::Test::HasFatalFailure()) return;
    }
  }

 private:
  static constexpr std::uint64_t kTables = bytes_of_pages(1);
  static constexpr std::uint64_t kCode = bytes_of_pages(4);
  static constexpr std::uint64_t kRamPhysical = 2 << 20;
  static constexpr std::uint64_t kRamPhysical2 = 16 << 20;
  static constexpr std::uint64_t kBiosPhysical = 32 << 20;

  static KvmMemorySlot slot(std::uint32_t number, std::uint64_t physical, std::uint64_t address,
                            PageRun pages) {
    return {.slot = number,
            .flags = 0,
            .guest_physical = physical,
            .userspace = address,
            .pages = pages};
  }
  std::uint64_t physical(std::uint64_t page) const {
    for (const KvmMemorySlot& each : slots()) {
      const std::uint64_t first = raw(each.pages.first);
      if (page < first || page - first >= each.pages.pages) continue;
      return each.guest_physical + bytes_of_pages(page - first);
    }
    ADD_FAILURE() << "no page " << page;
    return 0;
  }
  void put(std::uint64_t at, std::uint64_t entry) const {
    std::memcpy(boot_.data() + at, &entry, sizeof entry);
  }
  void load() const {
    constexpr std::uint64_t kTable = 0x63;     // present, writable, accessed, dirty
    constexpr std::uint64_t kHugePage = 0xe3;  // and 2 MiB
    put(kTables, (kTables + kPageSizeBytes) | kTable);
    put(kTables + kPageSizeBytes, (kTables + 2 * kPageSizeBytes) | kTable);
    for (std::uint64_t i = 0; i < 512; ++i) {
      put(kTables + 2 * kPageSizeBytes + i * sizeof i, (i << 21) | kHugePage);
    }
    constexpr std::array<std::uint8_t, 11> kProgram = {
        0x88, 0x07,        // next: mov [rdi], al
        0x48, 0x01, 0xf7,  //       add rdi, rsi
        0x48, 0xff, 0xc9,  //       dec rcx
        0x75, 0xf6,        //       jnz next
        0xf4,              //       hlt
    };
    std::memcpy(boot_.data() + kCode, kProgram.data(), kProgram.size());
    kvm_sregs special{};
    ASSERT_EQ(::ioctl(vcpu_.get(), KVM_GET_SREGS, &special), 0) << std::strerror(errno);
    kvm_segment segment{};
    segment.limit = 0xffffffff;
    segment.selector = 0x10;
    segment.type = 3;  // data, writable, accessed
    segment.present = 1;
    segment.s = 1;
    segment.db = 1;
    segment.g = 1;
    special.ds = special.es = special.fs = special.gs = special.ss = segment;
    segment.selector = 8;
    segment.type = 11;  // code, readable, accessed
    segment.db = 0;
    segment.l = 1;
    special.cs = segment;
    special.cr3 = kTables;
    special.cr4 = 0x20;        // PAE
    special.cr0 = 0x80010033;  // PG, WP, NE, ET, MP, PE
    special.efer = 0x500;      // LMA, LME
    ASSERT_EQ(::ioctl(vcpu_.get(), KVM_SET_SREGS, &special), 0) << std::strerror(errno);
  }

  MemoryLayout layout_ =
      layout_of({{"pc.boot", kBootPages}, {"pc.ram", kRamPages}, {"pc.bios", kBiosPages}});
  UserfaultMemory boot_{bytes_of_pages(kBootPages)};
  UserfaultMemory ram_{bytes_of_pages(kRamPages)};
  UserfaultMemory bios_{bytes_of_pages(kBiosPages)};
  UniqueFd kvm_;
  UniqueFd vm_;
  UniqueFd vcpu_;
  kvm_run* run_ = nullptr;
  std::size_t run_bytes_ = 0;
};

}  // namespace pageferry::testing_support

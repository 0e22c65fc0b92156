// VmState: all that a demo guest is besides memory, and the bytes of it:
//
//   0   "PFDEMOVM"      8 bytes
//   8   version         u32, 1
//   12  length          u32, of everything, the checksum included
//   16  vCPU kind       u32: 1 KVM, 2 threads
//   20  vCPUs           u32, 1 to 16
//   24  disk requests   u32, 0 to 64
//   28  turns           u32, bit v: Budget.turn of the last answer to vCPU v; no bit of a vCPU that is not there
//   32  rates           4 x u64: pages written, pages verified, disk requests, give-backs a second
//   64  given back      u64, bytes since the guest began
//   72  disk requests   24 bytes each: u32 vCPU, u32 operation, u64 number, u64 block
//       vCPUs           each: u32 pieces (1 to 8), u32 zero; each piece: u32 kind, u32 bytes (1 to 65536), the bytes
//       checksum        u32, crc32c of all before
//
// Little-endian. What is in a KVM piece is the kernel's structure as it is on x86-64; its size is checked where it is loaded.
//
// Thread rule: values; pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "tools/demo_vmm/disk.h"
#include "tools/demo_vmm/pacer.h"
#include "tools/demo_vmm/vcpu.h"
#include "transport/os/error.h"

namespace pageferry::demo {

enum class VcpuKind : std::uint32_t { kvm = 1, threads = 2 };

struct VmState {
  VcpuKind kind = VcpuKind::kvm;
  Rates rates;
  std::uint64_t given_back_bytes = 0;
  std::uint32_t turns = 0;
  std::vector<QueuedRequest> disk_queue;
  std::vector<VcpuState> vcpus;
  friend bool operator==(const VmState&, const VmState&) = default;
};

std::vector<std::byte> encode_vm_state(const VmState& state);
// corrupt or version; the message names field, value and limit. What encode_vm_state() would not write is refused.
Result<VmState> decode_vm_state(std::span<const std::byte> bytes);

}  // namespace pageferry::demo

// Packets with at most one descriptor over a connected SOCK_SEQPACKET socket: what hook_protocol.h encodes, sent and received whole.
//
// Thread rule: functions without state.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "transport/os/error.h"
#include "transport/os/fd.h"

namespace pageferry {

struct HookPacket {
  std::vector<std::byte> bytes;
  std::vector<UniqueFd> descriptors;  // 0 or 1
};

// `descriptor`: -1 for none. Errors: gone (the other end is closed), busy (the socket's buffer is full: it does not read), io.
Result<void> send_hook_packet(int connection, std::span<const std::byte> packet, int descriptor);

// The packet that is there; never blocks. Errors: timeout (none is there), gone (closed), invalid (longer than kPacketBytesMax, or with
// more than one descriptor), io.
Result<HookPacket> receive_hook_packet(int connection);

}  // namespace pageferry

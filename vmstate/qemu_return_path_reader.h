// QemuReturnPathReader: the messages of a destination QEMU, read from the main channel's socket.
// One at a time with a bound while a restore is prepared; all that are there, without waiting, in
// the restore loop.
//
// Thread rule: one thread at a time. Lifetime: the socket and the layout outlive it.
#pragma once

#include <deque>
#include <vector>

#include "pager/memory_layout.h"
#include "transport/os/clock.h"
#include "transport/os/error.h"
#include "vmstate/qemu_return_path.h"

namespace pageferry {

class QemuReturnPathReader {
 public:
  QemuReturnPathReader(int fd, const MemoryLayout& layout) : fd_(fd), decoder_(layout) {}

  // The next message. Errors: gone (QEMU closed the channel), timeout, invalid (nonsense on the
  // return path), io.
  Result<qemu_stream::ReturnPathMessage> next(Deadline deadline);
  // Everything that has arrived; `closed` when QEMU closed its end behind it.
  enum class State : std::uint8_t { open, closed };
  Result<State> read_available(std::vector<qemu_stream::ReturnPathMessage>& messages);

 private:
  int fd_;
  qemu_stream::ReturnPathDecoder decoder_;
  std::deque<qemu_stream::ReturnPathMessage> waiting_;
};

}  // namespace pageferry

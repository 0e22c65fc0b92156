// Disk: a toy disk: a file, read and written by a thread of its own, which writes into guest memory by itself (DMA): what was read, and
// the word that says that a request is done. The vCPU goes on meanwhile.
//
// Thread rule: one thread controls (pause, resume, queue, set_queue); submit() from any. Lifetime: memory and `writes` are longer.
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "tools/demo_vmm/guest/guest_format.h"
#include "tools/demo_vmm/guest_writes.h"
#include "tools/demo_vmm/vm_memory.h"
#include "transport/os/error.h"
#include "transport/os/fd.h"

namespace pageferry::demo {

struct QueuedRequest {
  std::uint32_t vcpu = 0;
  std::uint64_t number = 0;
  std::uint64_t block = 0;
  std::uint32_t operation = 0;  // as the guest wrote it: perhaps none of DiskOperation
  friend bool operator==(const QueuedRequest&, const QueuedRequest&) = default;
};

class Disk {
 public:
  // Requests of a guest that does not wait are dropped beyond this.
  static constexpr std::size_t kQueueMax = 64;

  // Makes the file if it is not there, 0600; paused. `size_bytes`: a multiple of 4 KiB. Errors of the system; invalid: the file is
  // there with another size.
  static Result<std::unique_ptr<Disk>> open(const std::string& path, std::uint64_t size_bytes,
                                            const VmMemory& memory, GuestWrites& writes);
  ~Disk();
  Disk(const Disk&) = delete;
  Disk& operator=(const Disk&) = delete;

  void submit(const QueuedRequest& request);
  // Returns when nothing of it writes into guest memory any more and what was written to the file is durable. Requests that were not
  // begun stay in the queue.
  Result<void> pause();
  void resume();

  // While it is paused.
  std::vector<QueuedRequest> queue() const;
  void set_queue(const std::vector<QueuedRequest>& queue);

 private:
  Disk(UniqueFd file, std::uint64_t blocks, const VmMemory& memory, GuestWrites& writes);
  void serve();
  void handle(const QueuedRequest& request);
  DiskOutcome transfer(const QueuedRequest& request);
  void write_guest(std::uint64_t address, const void* bytes, std::size_t size);

  UniqueFd file_;
  const std::uint64_t blocks_;
  const VmMemory& memory_;
  GuestWrites& writes_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<QueuedRequest> queue_;
  bool paused_ = true;
  bool working_ = false;
  bool ending_ = false;
  std::thread thread_;  // last: it uses the rest
};

}  // namespace pageferry::demo

// One request at a time. The data goes through a buffer of ours and a plain copy: a system call that writes into guest memory directly
// would fail with EFAULT where that memory waits for pages by a userfaultfd of user mode only.
#include "tools/demo_vmm/disk.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>

#include "transport/os/signals_blocked.h"

namespace pageferry::demo {
namespace {

using Block = std::array<std::byte, kGuestPageBytes>;

bool read_block(int fd, Block& block, off_t offset) {
  for (;;) {
    const ssize_t got = ::pread(fd, block.data(), block.size(), offset);
    if (got < 0 && errno == EINTR) continue;
    return got == static_cast<ssize_t>(block.size());
  }
}
bool write_block(int fd, const Block& block, off_t offset) {
  for (;;) {
    const ssize_t put = ::pwrite(fd, block.data(), block.size(), offset);
    if (put < 0 && errno == EINTR) continue;
    return put == static_cast<ssize_t>(block.size());
  }
}

}  // namespace

Result<std::unique_ptr<Disk>> Disk::open(const std::string& path, std::uint64_t size_bytes,
                                         const VmMemory& memory, GuestWrites& writes) {
  UniqueFd file(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!file.valid()) return syscall_error("open", path);
  struct stat found {};
  if (::fstat(file.get(), &found) != 0) return syscall_error("fstat", path);
  if (found.st_size != 0 && static_cast<std::uint64_t>(found.st_size) != size_bytes) {
    return fail(Errc::invalid, fmt::format("disk {}: {} bytes, must be {} or new", path,
                                           found.st_size, size_bytes));
  }
  if (::ftruncate(file.get(), static_cast<off_t>(size_bytes)) != 0) {
    return syscall_error("ftruncate", path);
  }
  return std::unique_ptr<Disk>(
      new Disk(std::move(file), size_bytes / kGuestPageBytes, memory, writes));
}

Disk::Disk(UniqueFd file, std::uint64_t blocks, const VmMemory& memory, GuestWrites& writes)
    : file_(std::move(file)), blocks_(blocks), memory_(memory), writes_(writes) {
  const SignalsBlocked blocked;
  thread_ = std::thread([this] { serve(); });
}

Disk::~Disk() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Disk::submit(const QueuedRequest& request) {
  {
    const std::lock_guard lock(mutex_);
    if (queue_.size() < kQueueMax) queue_.push_back(request);
  }
  changed_.notify_all();
}

Result<void> Disk::pause() {
  std::unique_lock lock(mutex_);
  paused_ = true;
  changed_.wait(lock, [this] { return !working_; });
  if (::fdatasync(file_.get()) != 0) return syscall_error("fdatasync", "disk");
  return {};
}

void Disk::resume() {
  {
    const std::lock_guard lock(mutex_);
    paused_ = false;
  }
  changed_.notify_all();
}

std::vector<QueuedRequest> Disk::queue() const {
  const std::lock_guard lock(mutex_);
  return {queue_.begin(), queue_.end()};
}

void Disk::set_queue(const std::vector<QueuedRequest>& queue) {
  const std::lock_guard lock(mutex_);
  queue_.assign(queue.begin(), queue.end());
}

void Disk::serve() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return ending_ || (!paused_ && !queue_.empty()); });
    if (ending_) return;
    const QueuedRequest request = queue_.front();
    queue_.pop_front();
    working_ = true;
    lock.unlock();
    handle(request);
    lock.lock();
    working_ = false;
    changed_.notify_all();
  }
}

void Disk::handle(const QueuedRequest& request) {
  const DiskOutcome outcome = transfer(request);
  const std::uint64_t page = kVcpuPagesAddress + request.vcpu * kGuestPageBytes;
  write_guest(page + offsetof(VcpuPage, outcome), &outcome, sizeof outcome);
  const std::uint64_t done = page + offsetof(VcpuPage, completed);
  auto* const word = reinterpret_cast<std::uint64_t*>(memory_.at(done, sizeof(std::uint64_t)));
  __atomic_store_n(word, request.number, __ATOMIC_RELEASE);  // the guest looks at this one first
  writes_.written(done, sizeof(std::uint64_t));
}

DiskOutcome Disk::transfer(const QueuedRequest& request) {
  if (request.block >= blocks_) return DiskOutcome::failed;
  const std::uint64_t own_page = request.vcpu * kGuestPageBytes;
  const auto offset = static_cast<off_t>(request.block * kGuestPageBytes);
  Block block{};
  if (request.operation == static_cast<std::uint32_t>(DiskOperation::read)) {
    if (!read_block(file_.get(), block, offset)) return DiskOutcome::failed;
    write_guest(kReadBuffersAddress + own_page, block.data(), block.size());
    return DiskOutcome::done;
  }
  if (request.operation != static_cast<std::uint32_t>(DiskOperation::write)) {
    return DiskOutcome::failed;
  }
  std::memcpy(block.data(), memory_.at(kWriteBuffersAddress + own_page, block.size()),
              block.size());
  return write_block(file_.get(), block, offset) ? DiskOutcome::done : DiskOutcome::failed;
}

void Disk::write_guest(std::uint64_t address, const void* bytes, std::size_t size) {
  std::memcpy(memory_.at(address, size), bytes, size);
  writes_.written(address, size);
}

}  // namespace pageferry::demo

// CaptureChannel: the socket pair between a source QEMU (it writes its migration stream, it hears
// the return path) and us.
//
// One thing is decided here and nowhere else, in one atomic step: whether the migration ends by
// SHUT(0), after which QEMU never resumes the guest by itself, or by closing, after which it does.
// commit() and close() exclude each other for good.
//
// Thread rule: close() and closed() from any thread, at any time. receive() from one thread; send()
// and commit() from any, each message is one send(2) on a stream socket and does not mix with
// another. Lifetime: owns both descriptors; ours stays open until destruction, so a late close()
// can never hit a descriptor that was given to somebody else.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "transport/os/error.h"
#include "transport/os/fd.h"

namespace pageferry {

class CaptureChannel {
 public:
  static Result<std::unique_ptr<CaptureChannel>> create();

  // QEMU's end, to be passed with getfd; then close_vmm_end(), or the end of the stream would never
  // be seen.
  int vmm_end() const { return vmm_end_.get(); }
  void close_vmm_end() { vmm_end_.reset(); }

  // Reads what is there, at least one byte; blocks. 0: the stream ended (QEMU closed it, or we
  // did).
  Result<std::size_t> receive(std::span<std::byte> buffer);
  // A whole message of the return path. Errc::canceled after close().
  Result<void> send(std::span<const std::byte> message);

  // SHUT(0). Errc::canceled when close() was first. When this returns an error of another kind the
  // message may have gone out.
  Result<void> commit();
  // Ends the stream: QEMU fails the migration and resumes the guest. Never blocks. False: commit()
  // was first, nothing was done.
  bool close();
  bool closed() const { return end_.load() == End::closed; }
  bool committed() const { return end_.load() == End::committed; }

 private:
  enum class End : std::uint8_t { open, closed, committed };
  CaptureChannel(UniqueFd ours, UniqueFd vmm) : fd_(std::move(ours)), vmm_end_(std::move(vmm)) {}
  Result<void> send_all(std::span<const std::byte> message);

  UniqueFd fd_;
  UniqueFd vmm_end_;
  std::atomic<End> end_{End::open};
};

}  // namespace pageferry

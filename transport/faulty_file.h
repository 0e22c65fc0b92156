// FaultyFile: a StorageFile that wraps another one and lets chosen operations go wrong, as storage does. A product feature:
// a store's failure can be rehearsed on a real migration. docs/fault-injection.md has the grammar and examples.
//
// Thread rule: as StorageFile. Lifetime: the clock outlives the file.
#pragma once

#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "transport/io_buffer.h"
#include "transport/os/clock.h"
#include "transport/os/fd.h"
#include "transport/storage_file.h"

namespace pageferry {

enum class FaultEffect : std::uint8_t {
  eio,     // not done, reported as an I/O error
  enospc,  // not done, reported as a full store
  flip,    // one bit is wrong: in what is written, or in what is read; reported as success
  torn,    // the second half of a write is not done; reported as success
  lost,    // not done at all, reported as success
  hang,    // not done, never reported
  delay,   // done, reported later
};

struct StorageFault {
  enum class When : std::uint8_t { always, after, nth };
  IoKind kind = IoKind::write;
  When when = When::always;
  std::uint64_t count = 0;  // after: the first `count` are spared; nth: only this one, from 1
  FaultEffect effect = FaultEffect::eio;
  Milliseconds delay{0};
};
inline constexpr Milliseconds kFaultDelayMax{60'000};
inline constexpr std::size_t kStorageFaultsMax = 16;

// "write:after=100:eio,sync:nth=1:eio,read:delay-ms=20". Errc::invalid names the part that is wrong.
Result<std::vector<StorageFault>> parse_storage_faults(std::string_view spec);

class FaultyFile final : public StorageFile {
 public:
  // The first fault that applies to an operation is the one it suffers. Errc::io: no descriptor left.
  static Result<std::unique_ptr<FaultyFile>> over(std::unique_ptr<StorageFile> inner,
                                                  std::vector<StorageFault> faults,
                                                  const Clock& clock);
  ~FaultyFile() override;

 protected:
  Result<void> submit_read_impl(std::span<std::byte> to, std::uint64_t offset, std::uint64_t tag,
                                IoPriority priority) override;
  Result<void> submit_write_impl(std::span<const std::byte> from, std::uint64_t offset,
                                 std::uint64_t tag, IoPriority priority) override;
  Result<void> submit_sync_impl(std::uint64_t tag) override;
  Result<void> submit_allocate_impl(std::uint64_t offset, std::uint64_t length,
                                    std::uint64_t tag) override;
  void begin_batch_impl() override { inner_->begin_batch(); }
  void end_batch_impl() override { inner_->end_batch(); }
  void reap_impl(std::vector<IoDone>& done) override;
  int completion_fd_impl() const override;
  Result<std::uint64_t> size_impl() const override;

 private:
  struct Operation {
    std::uint64_t tag = 0;
    IoKind kind = IoKind::read;
    std::optional<StorageFault> fault;
    std::span<std::byte> read_to;
    AlignedMemory written;  // a copy with the flipped bit
  };
  struct Held {
    Nanoseconds due{0};
    IoDone done;
  };

  FaultyFile(std::unique_ptr<StorageFile> inner, std::vector<StorageFault> faults,
             const Clock& clock);
  Result<void> set_up();
  // Counts the operation and says what happens to it.
  std::optional<StorageFault> next_fault(IoKind kind);
  // Reports it without doing it, if its fault wants that; true when handled.
  bool pretend(IoKind kind, std::uint64_t tag, const std::optional<StorageFault>& fault);
  std::uint64_t begin(std::uint64_t tag, IoKind kind, const std::optional<StorageFault>& fault);
  Result<void> begun(std::uint64_t inner_tag, Result<void> submitted);
  void finish(IoDone done, const Operation& operation);
  void set_timer();

  std::unique_ptr<StorageFile> inner_;
  std::vector<StorageFault> faults_;
  const Clock& clock_;
  UniqueFd event_;
  UniqueFd timer_;
  UniqueFd completions_;  // epoll over inner, event and timer
  std::uint64_t counts_[4] = {};
  std::vector<Operation> operations_;
  std::vector<std::uint64_t> idle_;
  std::vector<Held> held_;
  std::vector<IoDone> inner_done_;
};

}  // namespace pageferry

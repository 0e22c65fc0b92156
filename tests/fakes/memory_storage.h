// MemoryDisk and MemoryStorage: a file in memory with two images. `live` is what a running program
// reads back; `durable` is what a power cut leaves for sure: the state of the last sync. Between
// the two lie the unsynced writes, of which a power cut may keep any. A disk can be told to lose
// power after a number of operations: everything later fails.
//
// Completions are immediate unless hold_completions() was called: then they wait for
// release_completions(), in the given order.
//
// Thread rule: one thread. Lifetime: the disk outlives its files.
#pragma once

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <utility>
#include <vector>

#include "transport/io_buffer.h"
#include "transport/os/fd.h"
#include "transport/storage_file.h"

namespace pageferry::testing_support {

struct UnsyncedWrite {
  std::uint64_t offset = 0;
  std::vector<std::byte> bytes;
};

class MemoryDisk {
 public:
  std::vector<std::byte> live;
  std::vector<std::byte> durable;
  std::vector<UnsyncedWrite> unsynced;
  std::uint64_t operations = 0;  // writes and syncs so far
  std::uint64_t power_lost_at = std::numeric_limits<std::uint64_t>::max();
  std::uint64_t bytes_max =
      std::numeric_limits<std::uint64_t>::max();  // a full disk: Errc::no_space beyond

  bool powered() const { return operations < power_lost_at; }

  // What is on the disk after a power cut: the durable image and those unsynced writes for which
  // keep(index) says yes.
  std::vector<std::byte> after_power_cut(const std::function<bool(std::size_t)>& keep) const {
    std::vector<std::byte> image = durable;
    for (std::size_t i = 0; i < unsynced.size(); ++i) {
      if (keep(i)) put(image, unsynced[i].offset, unsynced[i].bytes);
    }
    return image;
  }

  static void put(std::vector<std::byte>& image, std::uint64_t offset,
                  std::span<const std::byte> bytes) {
    if (image.size() < offset + bytes.size()) image.resize(offset + bytes.size());
    std::copy(bytes.begin(), bytes.end(), image.begin() + static_cast<std::ptrdiff_t>(offset));
  }
};

class MemoryStorage final : public StorageFile {
 public:
  explicit MemoryStorage(MemoryDisk& disk, unsigned queue_depth = 64)
      : StorageFile("memory", kIoAlignmentBytes, queue_depth),
        disk_(disk),
        event_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

  void hold_completions() { held_ = true; }
  // The oldest first.
  void release_completions() {
    held_ = false;
    ring();
  }

 protected:
  Result<void> submit_read_impl(std::span<std::byte> to, std::uint64_t offset, std::uint64_t tag,
                                IoPriority) override {
    if (!disk_.powered()) return finish(tag, IoKind::read, no_power());
    if (offset + to.size() > disk_.live.size()) {
      return finish(tag, IoKind::read, fail(Errc::corrupt, "memory: the file ends before that"));
    }
    std::copy_n(disk_.live.begin() + static_cast<std::ptrdiff_t>(offset), to.size(), to.begin());
    return finish(tag, IoKind::read, {});
  }
  Result<void> submit_write_impl(std::span<const std::byte> from, std::uint64_t offset,
                                 std::uint64_t tag, IoPriority) override {
    if (!disk_.powered()) return finish(tag, IoKind::write, no_power());
    ++disk_.operations;
    if (offset + from.size() > disk_.bytes_max) {
      return finish(tag, IoKind::write, fail(Errc::no_space, "memory: no space left"));
    }
    MemoryDisk::put(disk_.live, offset, from);
    disk_.unsynced.push_back({offset, {from.begin(), from.end()}});
    return finish(tag, IoKind::write, {});
  }
  Result<void> submit_sync_impl(std::uint64_t tag) override {
    if (!disk_.powered()) return finish(tag, IoKind::sync, no_power());
    ++disk_.operations;
    for (const UnsyncedWrite& write : disk_.unsynced) {
      MemoryDisk::put(disk_.durable, write.offset, write.bytes);
    }
    disk_.unsynced.clear();
    return finish(tag, IoKind::sync, {});
  }
  // Changes only the length: reserved space reads as zeros. The length of a file is metadata that a
  // journal keeps.
  Result<void> submit_allocate_impl(std::uint64_t offset, std::uint64_t length,
                                    std::uint64_t tag) override {
    if (!disk_.powered()) return finish(tag, IoKind::allocate, no_power());
    if (offset + length > disk_.bytes_max) {
      return finish(tag, IoKind::allocate, fail(Errc::no_space, "memory: no space left"));
    }
    const std::uint64_t size = std::max<std::uint64_t>(disk_.live.size(), offset + length);
    disk_.live.resize(size);
    disk_.durable.resize(std::max<std::uint64_t>(disk_.durable.size(), size));
    return finish(tag, IoKind::allocate, {});
  }
  void reap_impl(std::vector<IoDone>& done) override {
    std::uint64_t count = 0;
    [[maybe_unused]] const ssize_t got = ::read(event_.get(), &count, sizeof count);
    if (held_) return;
    std::move(finished_.begin(), finished_.end(), std::back_inserter(done));
    finished_.clear();
  }
  int completion_fd_impl() const override { return event_.get(); }
  Result<std::uint64_t> size_impl() const override { return disk_.live.size(); }

 private:
  static Unexpected no_power() { return fail(Errc::io, "memory: the power is off"); }
  Result<void> finish(std::uint64_t tag, IoKind kind, Result<void> outcome) {
    finished_.push_back({tag, kind, std::move(outcome)});
    if (!held_) ring();
    return {};
  }
  void ring() {
    const std::uint64_t one = 1;
    [[maybe_unused]] const ssize_t put = ::write(event_.get(), &one, sizeof one);
  }

  MemoryDisk& disk_;
  UniqueFd event_;
  std::vector<IoDone> finished_;
  bool held_ = false;
};

}  // namespace pageferry::testing_support

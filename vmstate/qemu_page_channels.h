// QemuPageChannels: the one or two sockets to a destination QEMU on which pages travel, as a
// PageOutlet. With postcopy-preempt the second, urgent channel carries the pages somebody waits
// for, so that they do not queue behind prefetched ones.
//
// Records are gathered (header, page, header, page, ...) and handed to the kernel in one call; a
// record that fits only in part is finished from a small buffer before anything else leaves. What
// the kernel may hold is bounded by a small SO_SNDBUF.
//
// Thread rule: one thread at a time: the preparing one, then the restore loop's.
// Lifetime: owns the sockets; the layout outlives it.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "pager/memory_layout.h"
#include "pager/page_in.h"
#include "pager/page_outlet.h"
#include "transport/os/clock.h"
#include "transport/os/error.h"
#include "transport/os/fd.h"
#include "vmstate/big_endian.h"
#include "vmstate/qemu_stream_writer.h"

namespace pageferry {

class QemuPageChannels final : public PageOutlet {
 public:
  // Connects the main channel to the socket on which QEMU listens. Errors: not_found, gone, invalid
  // (path too long), io.
  static Result<QemuPageChannels> connect(const std::string& socket_path,
                                          const MemoryLayout& layout);
  // Opens the urgent channel: the second connection to the same socket.
  Result<void> connect_urgent();

  ChannelCount count() const { return urgent_.fd.valid() ? ChannelCount::two : ChannelCount::one; }
  int main_fd() const { return main_.fd.get(); }
  int urgent_fd() const { return urgent_.fd.get(); }  // -1: there is none

  // Writes control records to the main channel, waiting for room. Errors: gone, timeout, io.
  Result<void> write(std::span<const std::byte> bytes, Deadline deadline);

  // Bounds what the kernel keeps for us; from now on pages may be put.
  Result<void> begin_pages();
  Result<std::uint64_t> put_pages(PageChannel channel, PageRun run,
                                  std::span<const std::byte> bytes) override;
  Result<std::uint64_t> put_zeros(PageChannel channel, PageRun run) override;

  // After the last page: the end marks of the stream and of the urgent channel. flush() until
  // nothing is pending.
  void end_pages();
  // Sends what is left of a record, or of the end marks. Never waits.
  Result<void> flush();
  // The channel could not take all: wait until its socket is writable, then flush() or put again.
  bool main_full() const { return main_.full; }
  bool urgent_full() const { return urgent_.full; }

 private:
  struct Channel {
    Channel(UniqueFd socket, const MemoryLayout& layout) : fd(std::move(socket)), records(layout) {}
    UniqueFd fd;
    qemu_stream::PageRecordWriter records;
    ByteBuffer pending;  // rest of a record, or control records; leaves before anything else
    bool full = false;
  };
  // One record of a batch: where it ends, counted in bytes from the batch's first.
  struct Batch;

  QemuPageChannels(UniqueFd main, std::string path, const MemoryLayout& layout)
      : path_(std::move(path)), main_(std::move(main), layout), urgent_(UniqueFd(), layout) {}

  Channel& channel_for(PageChannel channel);
  Result<std::uint64_t> send_batch(Channel& channel, const Batch& batch);
  Result<bool> flush_channel(Channel& channel);

  std::string path_;
  Channel main_;
  Channel urgent_;
  bool part_open_ = false;
  bool ended_ = false;
};

}  // namespace pageferry

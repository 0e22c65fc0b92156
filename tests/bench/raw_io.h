// What a store does without us, in its own terms, and small things that the benchmarks share. A benchmark that cannot go on says why
// and ends.
#pragma once

#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <type_traits>
#include <utility>
#include <vector>

#include "transport/aio_file.h"
#include "transport/io_buffer.h"
#include "transport/os/clock.h"
#include "transport/os/error.h"
#include "transport/storage_wait.h"

namespace pageferry::bench {

inline constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
inline constexpr std::size_t kRawWriteBytes = kMiB;
inline constexpr std::size_t kRawReadBytes = kMiB / 4;  // as the page file reader's
inline constexpr unsigned kRawInFlight = 8;

inline double seconds_since(Nanoseconds start) {
  return std::chrono::duration<double>(MonotonicClock().now() - start).count();
}

template <typename T>
T must(Result<T> result) {
  if (!result) {
    fmt::print(stderr, "{}\n", result.error().message);
    std::exit(1);
  }
  if constexpr (!std::is_void_v<T>) return std::move(*result);
}

enum class Direction { write, read };
enum class Threads { one, own_for_the_store };

// `pool`: in_flight buffers of the direction's size or more.
inline double raw_gb_per_s(AioFile& file, IoBufferPool& pool, std::uint64_t bytes,
                           Direction direction, unsigned in_flight = kRawInFlight) {
  std::vector<IoDone> done;
  std::vector<IoBuffer> buffers;
  for (unsigned i = 0; i < in_flight; ++i) buffers.push_back(pool.take());
  std::vector<std::size_t> idle;
  for (std::size_t i = 0; i < buffers.size(); ++i) idle.push_back(i);
  const std::size_t piece = direction == Direction::write ? kRawWriteBytes : kRawReadBytes;
  const Nanoseconds start = MonotonicClock().now();
  for (std::uint64_t at = 0; at < bytes || file.in_flight() > 0;) {
    while (at < bytes && !idle.empty()) {
      const std::span<std::byte> to = buffers[idle.back()].bytes().first(piece);
      must(direction == Direction::write
               ? file.submit_write(to, at, idle.back(), IoPriority::normal)
               : file.submit_read(to, at, idle.back(), IoPriority::normal));
      idle.pop_back();
      at += piece;
    }
    done.clear();
    must(wait_for_completions(file, {}, done));
    for (IoDone& one : done) {
      must(std::move(one.outcome));
      idle.push_back(one.tag);
    }
  }
  if (direction == Direction::write) must(sync_blocking(file, {}));
  return static_cast<double>(bytes) / 1e9 / seconds_since(start);
}

}  // namespace pageferry::bench

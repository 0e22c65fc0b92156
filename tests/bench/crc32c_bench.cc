// The checksum of every stored page: must be far above what any store delivers (> 5 GB/s a core).
#include <benchmark/benchmark.h>

#include <vector>

#include "pager/page.h"
#include "transport/crc32c.h"

namespace {

constexpr std::size_t kBytes = std::size_t{16} << 20;  // larger than a core's own caches

void crc32c_of_pages(benchmark::State& state) {
  std::vector<std::byte> bytes(kBytes, std::byte{0x5a});
  for (auto _ : state) {
    for (std::size_t at = 0; at < kBytes; at += pageferry::kPageSizeBytes) {
      benchmark::DoNotOptimize(
          pageferry::crc32c(std::span(bytes).subspan(at, pageferry::kPageSizeBytes)));
    }
  }
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(kBytes));
}
BENCHMARK(crc32c_of_pages);

void zero_check_of_zero_pages(benchmark::State& state) {
  const std::vector<std::byte> bytes(kBytes);
  for (auto _ : state) {
    for (std::size_t at = 0; at < kBytes; at += pageferry::kPageSizeBytes) {
      benchmark::DoNotOptimize(
          pageferry::is_zero_page(pageferry::PageBytes(&bytes[at], pageferry::kPageSizeBytes)));
    }
  }
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(kBytes));
}
BENCHMARK(zero_check_of_zero_pages);

}  // namespace

BENCHMARK_MAIN();

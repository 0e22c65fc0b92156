// SSE2, which every x86-64 has: wider stores measured no faster, as memory is the limit. The fence is
// part of the copy, because non-temporal stores are not ordered by the locks through which the page
// goes on to the thread that writes it out.
#include "pager/page_copy.h"

#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace pageferry {

void copy_page_past_caches(std::span<std::byte, kPageSizeBytes> to, PageBytes from) {
#if defined(__SSE2__)
  constexpr std::size_t kLineVectors = 4;  // of 64 bytes: a whole line at a time leaves at once
  static_assert(kPageSizeBytes % (kLineVectors * sizeof(__m128i)) == 0);
  auto* out = reinterpret_cast<__m128i*>(to.data());
  const auto* in = reinterpret_cast<const __m128i*>(from.data());
  for (std::size_t i = 0; i < kPageSizeBytes / sizeof(__m128i); i += kLineVectors) {
    const __m128i a = _mm_loadu_si128(in + i);
    const __m128i b = _mm_loadu_si128(in + i + 1);
    const __m128i c = _mm_loadu_si128(in + i + 2);
    const __m128i d = _mm_loadu_si128(in + i + 3);
    _mm_stream_si128(out + i, a);
    _mm_stream_si128(out + i + 1, b);
    _mm_stream_si128(out + i + 2, c);
    _mm_stream_si128(out + i + 3, d);
  }
  _mm_sfence();
#else
  std::memcpy(to.data(), from.data(), kPageSizeBytes);
#endif
}

void fetch_ahead(const std::byte* page) {
  constexpr std::size_t kLineBytes = 64;
  for (std::size_t at = 0; at < kPageSizeBytes; at += kLineBytes) __builtin_prefetch(page + at);
}

}  // namespace pageferry

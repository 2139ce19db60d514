// Work cut into chunks that the threads take one after the other.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "base/parallel.h"

namespace strop {

// Calls f(k) for every k in [0, n), each once, on all cores where `parallel` says that it pays. A thread that is done
// takes the next chunk, so uneven chunks (masked rows) and slow cores even out. Results do not depend on which thread
// computes a chunk as long as each chunk has a place of its own for what it finds.
template <class F>
void for_each_chunk(std::int64_t n, bool parallel, F&& f) {
  const std::int64_t threads = parallel ? std::min<std::int64_t>(n, num_threads()) : 1;
  if (threads <= 1) {
    for (std::int64_t k = 0; k < n; ++k) f(k);
    return;
  }
  std::atomic<std::int64_t> next{0};
  parallel_for(threads, [&](std::int64_t) {
    for (std::int64_t k; (k = next.fetch_add(1, std::memory_order_relaxed)) < n;) f(k);
  });
}

// Calls f(begin, end) for ranges that make up [0, n), each of `size` elements, of which nothing is summed. A range is
// worth what is done once for it, such as converting weights.
template <class F>
void for_each_range(std::int64_t n, std::int64_t size, F&& f) {
  constexpr std::int64_t kMaxChunks = 256;
  constexpr std::int64_t kParallelElements = 16384;  // fewer are not worth waking threads for
  constexpr std::int64_t kElements = 8192;           // of a range, about
  const std::int64_t chunks = std::min({n, kMaxChunks, std::max<std::int64_t>(1, n * size / kElements)});
  for_each_chunk(chunks, n * size > kParallelElements,
                 [&](std::int64_t chunk) { f(n * chunk / chunks, n * (chunk + 1) / chunks); });
}

}  // namespace strop

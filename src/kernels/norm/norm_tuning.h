// How a norm is cut over the chip: a pure function of the row's length. Not of the number of rows, so that a row's sums
// are the same bits whatever shares the batch.
#pragma once

#include <cstdint>

namespace strop::norm {

inline constexpr int kMaxFloats = 32;                // elements that a thread keeps in registers
inline constexpr int kMaxThreads = 1024;             // of a block
inline constexpr int kRowsABlock = 4;                // where a row has a warp
inline constexpr int kBlocksPerMultiprocessor = 64;  // more than run at once by far; beyond, blocks take more rows
inline constexpr std::int64_t kLongestHeldRow = std::int64_t{kMaxFloats} * kMaxThreads;

struct Tuning {
  int floats = 8;    // a thread: 8, 16 or 32
  int threads = 32;  // that share a row: a warp, or a block
  bool held = true;  // a row fits into registers; else it is read once a pass
  int block() const { return threads == 32 ? 32 * kRowsABlock : threads; }
};

inline Tuning tune(std::int64_t n) {
  Tuning t;
  // A warp for what it can hold, then blocks with as few elements a thread as leave no more than half of the largest
  // block's threads, while there is a choice.
  if (n <= 32 * kMaxFloats) {
    while (n > 32 * t.floats) t.floats *= 2;
    return t;
  }
  while (t.floats < kMaxFloats && n > std::int64_t{kMaxThreads} / 2 * t.floats) t.floats *= 2;
  t.held = n <= kLongestHeldRow;
  t.threads = t.held ? static_cast<int>((n + 32 * t.floats - 1) / (32 * t.floats)) * 32 : kMaxThreads;
  return t;
}

}  // namespace strop::norm

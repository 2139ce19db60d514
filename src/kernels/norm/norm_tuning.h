// How a norm is cut over the chip: a pure function of the row's length and of whether
// it can be moved in vectors. Not of the number of rows, so that a row's sums
// are the same bits whatever shares the batch.
#pragma once

#include <cstdint>

namespace strop::norm {

inline constexpr int kMaxFloats = 32;                // elements that a thread keeps in registers
inline constexpr int kMaxStridedFloats = 16;         // of single elements, which have an address each
inline constexpr int kMaxThreads = 512;              // of a block that holds its row
inline constexpr int kLongThreads = 1024;            // of one that does not
inline constexpr int kRowsABlock = 4;                // at most, where a row has a warp
inline constexpr int kBlocksPerMultiprocessor = 64;  // more than run at once by far; beyond, blocks take more rows

struct Tuning {
  int floats = 8;    // a thread: 8, 16 or, dense, 24 or 32
  int threads = 32;  // that share a row: a warp, or a block
  bool held = true;  // a row fits into registers; else it is read once a pass
};

// A warp for what it can hold, then blocks with as few elements a thread as will do.
inline Tuning tune(std::int64_t n, bool dense) {
  const int most = dense ? kMaxFloats : kMaxStridedFloats;
  const int threads = n <= 32 * most ? 32 : kMaxThreads;
  Tuning t;
  while (t.floats < most && n > threads * t.floats) t.floats += 8;
  t.held = n <= threads * t.floats;
  t.threads = !t.held ? kLongThreads : threads == 32 ? 32 : static_cast<int>((n - 1) / (32 * t.floats) + 1) * 32;
  return t;
}

// Rows of a block where a row has a warp: few rows have a multiprocessor each, or share one with few. It changes where
// rows are added up, not how.
inline int warps_a_block(std::int64_t rows, int multiprocessors) {
  int warps = 1;
  while (warps < kRowsABlock && rows > std::int64_t{2} * warps * multiprocessors) warps *= 2;
  return warps;
}

}  // namespace strop::norm

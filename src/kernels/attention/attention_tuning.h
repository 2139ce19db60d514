// How attention is cut over the machine: a pure function of dtype, head size, layout and what a block's shared memory
// holds. Not of batch and lengths: a sequence's sums are the same bits whatever shares the batch.
#pragma once

#include <cstddef>

namespace strop::attn {

inline constexpr int kCpuRows = 64, kCpuKeys = 64;  // of a tile on the CPU

inline constexpr int kThreads = 128;                // of a block
inline constexpr int kMmaRows = 64;                 // a warp has 16 of them
inline constexpr int kAnyRows = 32, kAnyKeys = 32;  // of the kernel for any layout
inline constexpr int kAnyDepth = 32;                // elements of a head that it has in shared memory at a time
inline constexpr int kStages = 2;                   // tiles of keys on their way or in use

// Keys a tile: as many as leave registers for the sums.
constexpr int mma_keys(int head) { return head > 128 ? 32 : 64; }
// Elements from row to row in shared memory: 16 bytes more than the row, so that the eight rows that ldmatrix takes at
// a time lie in different banks.
constexpr int mma_pitch(int head) { return head + 8; }
constexpr std::size_t mma_shared_bytes(int head) {
  return static_cast<std::size_t>(kMmaRows + 2 * kStages * mma_keys(head)) * static_cast<std::size_t>(mma_pitch(head)) *
         2;
}

struct Tuning {
  bool mma = false;     // on the tensor cores; else the kernel for any dtype and layout
  int head = 0;         // the kernel's, at least the problem's
  int rows = kAnyRows;  // a block
  std::size_t shared_bytes = 0;
};

// `dense`: 2-byte elements in rows that can be copied in 16 bytes at a time.
constexpr Tuning tune(int d, bool dense, std::size_t shared_bytes_per_block) {
  const int head = d <= 64 ? 64 : d <= 128 ? 128 : 256;
  if (dense && mma_shared_bytes(head) <= shared_bytes_per_block) return {true, head, kMmaRows, mma_shared_bytes(head)};
  return {false, d, kAnyRows, sizeof(float) * (kAnyRows + kAnyKeys) * (kAnyDepth + 1)};
}

}  // namespace strop::attn

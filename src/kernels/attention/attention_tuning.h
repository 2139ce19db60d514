// How attention is cut over the machine. The order of a row's sums is a pure function of dtype, head size, layout and
// what a block's shared memory holds, and not of batch and lengths: a sequence's are the same bits whatever shares the
// batch.
#pragma once

#include <cstddef>
#include <cstdint>

namespace strop::attn {

inline constexpr int kCpuRows = 64, kCpuKeys = 64;  // of a tile on the CPU

inline constexpr int kThreads = 128;                // of a block
inline constexpr int kAnyRows = 32, kAnyKeys = 32;  // of the kernel for any layout
inline constexpr int kAnyDepth = 32;                // elements of a head that it has in shared memory at a time

// Keys a tile: as many as leave registers for the sums.
constexpr int mma_keys(int head) { return head > 128 ? 32 : 64; }
// Elements from row to row in shared memory: 16 bytes more than the row, so that the eight rows that ldmatrix takes at
// a time lie in different banks.
constexpr int mma_pitch(int head) { return head + 8; }
constexpr int mma_step(int head) { return kThreads / (head / 8); }  // rows that the block copies at a time
// Tiles of keys on their way or in use, as many as leave room for a second block.
constexpr int mma_stages(int head) { return head > 64 ? 2 : 3; }
// A warp has 16 rows, or twice as many: a block 64 or 128.
constexpr int mma_rows(int tiles) { return kThreads / 32 * 16 * tiles; }
// Blocks at a time for which registers are kept.
constexpr int mma_blocks(int head, int tiles) { return head > 128 ? 1 : head > 64 || tiles > 1 ? 2 : 3; }
constexpr std::size_t mma_shared_bytes(int head, int tiles) {
  return static_cast<std::size_t>(mma_rows(tiles) + 2 * mma_stages(head) * mma_keys(head)) *
         static_cast<std::size_t>(mma_pitch(head)) * 2;
}

struct Tuning {
  bool mma = false;     // on the tensor cores; else the kernel for any dtype and layout
  int head = 0;         // the kernel's, at least the problem's
  int tiles = 1;        // of 16 rows a warp
  int rows = kAnyRows;  // a block
  std::size_t shared_bytes = 0;
};

// `dense`: 2-byte elements in rows that can be copied in 16 bytes at a time. `plain`: scores are scaled dots.
// `segments`: sequences times key heads, of at most `rows` rows each. They decide how many rows a block has, which
// changes no bit: a row meets the same tiles of keys in the same order.
constexpr Tuning tune(int d, bool dense, std::size_t shared_bytes_per_block, bool plain, std::int64_t segments,
                      std::int64_t rows, int multiprocessors) {
  const int head = d <= 32 ? 32 : d <= 64 ? 64 : d <= 128 ? 128 : 256;
  // Twice the rows use each fragment of k and v twice, where all multiprocessors have two such blocks.
  const bool many = head <= 64 && plain && rows > 64 && segments * ((rows + 127) / 128) >= 2 * multiprocessors;
  for (int tiles = many ? 2 : 1; dense && tiles > 0; --tiles) {
    if (mma_shared_bytes(head, tiles) <= shared_bytes_per_block)
      return {true, head, tiles, mma_rows(tiles), mma_shared_bytes(head, tiles)};
  }
  return {false, d, 1, kAnyRows, sizeof(float) * (kAnyRows + kAnyKeys) * (kAnyDepth + 1)};
}

}  // namespace strop::attn

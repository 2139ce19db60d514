// How linear layers are cut over the machine: a pure function of dtype, shape and what a block's shared memory holds.
// Along K the cut depends on N, K and the range that M is in, not on M and not on the layout: a row's sums are the same
// bits whatever shares the batch.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace strop::lin {

// ---- CPU ------------------------------------------------------------------------------------------------------------

inline constexpr std::int64_t kFewCpuRows = 8;  // up to which weights are read as they lie, as the time is theirs
inline constexpr std::int64_t kCpuRows = 240, kCpuColumns = 64, kCpuDepth = 256;  // of a tile of more
inline constexpr std::int64_t kFewCpuColumns = 32, kFewCpuDepth = 1024;           // of one of few

// ---- CUDA -----------------------------------------------------------------------------------------------------------

inline constexpr int kDepth = 64;    // elements of K a turn on the tensor cores: eight vectors of 16 bytes
inline constexpr int kColumns = 64;  // of a tile, where the problem may be cut along K
inline constexpr int kAnyThreads = 128, kAnyRows = 64, kAnyDepth = 16;  // of the kernel for any layout
inline constexpr int kAnyPitch = kAnyRows + 4;

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
// Tiles of `columns` columns of the products, of which the halves of a gate take one each.
constexpr std::int64_t column_tiles(std::int64_t n, bool gated, int columns) {
  return ceil_div(n, gated ? columns / 2 : columns);
}

// Few rows make few tiles; cut along K they keep more of the GPU busy.
inline constexpr std::int64_t kFewRows = 64, kSomeRows = 256;  // ends of M's ranges
inline constexpr std::int64_t kBusyBlocks = 264;               // two for each multiprocessor of an H100
inline constexpr std::int64_t kLeastTurns = 2, kMaxSplits = 32;
// What that comes to for M = 16 in fp16, and what to expect of an H100 (not measured): of the sum, about 2.2 us are a
// launch and the first trip to memory, 1.2 handing sums over, 0.3 each turn to L2 and back for eight parts' sums (four
// of 17 to 32 rows, two of more), 0.6 instructions, and what is left the weights at 3 TB/s. All of a block's turns but
// the fourth and later are in flight at once. One turn a block at (768, 768) would save 0.05 us of copying and cost
// another turn to L2: hence kLeastTurns.
//   N, K        turns, parts, blocks   KB in flight a multiprocessor   us at M = 16   64    128
//   768, 768      2      6      72     20 (on 72)                       4.6           5.4   5.0 (4 parts, 96 blocks)
//   2304, 768     2      6     216     33                               5.5           6.5   6.0 (1 part, 72 blocks)
//   3072, 768     3      4     192     45                               5.9           6.6   6.2 (1 part, 96 blocks)
//   768, 3072     3     16     192     45                               6.2           8.2   7.5 (5 parts, 120 blocks)

struct Split {
  std::int64_t depth = 0;  // elements of K a block, a multiple of kDepth
  int count = 1;
};
constexpr Split split(std::int64_t m, std::int64_t n, std::int64_t k, bool gated) {
  const std::int64_t turns = ceil_div(k, kDepth);
  if (m > kSomeRows) return {turns * kDepth, 1};
  const std::int64_t tiles = (m <= kFewRows ? 1 : kSomeRows / kFewRows) * column_tiles(n, gated, kColumns);
  const std::int64_t wanted = std::clamp<std::int64_t>(kBusyBlocks / tiles, 1, kMaxSplits);
  const std::int64_t own = std::max(kLeastTurns, ceil_div(turns, wanted));
  return {own * kDepth, static_cast<int>(ceil_div(turns, own))};
}

// Rows of a tile where the problem may be cut along K.
constexpr int few_rows(std::int64_t m) { return m <= 16 ? 16 : m <= 32 ? 32 : 64; }

// The workspace: a counter for each tile, then the sums of each tile's splits.
constexpr std::int64_t split_tiles(std::int64_t m, std::int64_t n, bool gated) {
  return ceil_div(m, few_rows(m)) * column_tiles(n, gated, kColumns);
}
constexpr std::size_t counter_bytes(std::int64_t tiles) { return static_cast<std::size_t>((tiles + 1) / 2 * 16); }
constexpr std::size_t workspace_bytes(std::int64_t m, std::int64_t n, std::int64_t k, bool gated) {
  const Split s = split(m, n, k, gated);
  if (s.count == 1) return 0;
  const std::int64_t tiles = split_tiles(m, n, gated);
  return counter_bytes(tiles) + static_cast<std::size_t>(tiles * s.count * few_rows(m) * kColumns) * sizeof(float);
}

struct Tuning {
  bool mma = false;  // on the tensor cores; else the kernel for any dtype and layout
  int rows = kAnyRows, columns = kColumns, threads = kAnyThreads;  // of a tile, a block
  std::size_t shared_bytes = sizeof(float) * 2 * kAnyDepth * kAnyPitch;
  Split along_k;
};

// A tile's stages, or the sums that take their place.
constexpr int mma_stages(int rows) { return rows <= 64 ? 4 : 3; }
constexpr int mma_sum_pitch(int columns) { return columns + 8; }  // so that a warp's rows lie in different banks
constexpr std::size_t mma_shared_bytes(int rows, int columns) {
  return std::max(static_cast<std::size_t>(mma_stages(rows) * (rows + columns) * kDepth) * 2,
                  static_cast<std::size_t>(rows * mma_sum_pitch(columns)) * sizeof(float));
}

// `dense`: 2-byte elements in rows that can be copied in 16 bytes at a time.
constexpr Tuning tune(std::int64_t m, std::int64_t n, std::int64_t k, bool gated, bool dense,
                      std::size_t shared_bytes_per_block) {
  Tuning t;
  t.along_k = split(m, n, k, gated);
  if (!dense) return t;
  const auto tiles = [&](int rows, int columns) { return ceil_div(m, rows) * column_tiles(n, gated, columns); };
  int rows = few_rows(m), columns = kColumns;
  // The largest tiles that still come to a block for each multiprocessor.
  if (m > kSomeRows && tiles(128, 64) >= kBusyBlocks / 2) rows = 128;
  if (m > kSomeRows && tiles(128, 128) >= kBusyBlocks / 2) columns = 128;
  if (mma_shared_bytes(rows, columns) > shared_bytes_per_block) return t;
  t.mma = true;
  t.rows = rows, t.columns = columns, t.threads = columns == 128 ? 256 : 128;
  t.shared_bytes = mma_shared_bytes(rows, columns);
  return t;
}

}  // namespace strop::lin

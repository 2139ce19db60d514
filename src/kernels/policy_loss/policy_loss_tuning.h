// How a policy loss is cut over the chip: a pure function of the problem's shape and the number of multiprocessors.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/policy_loss/policy_loss.h"

namespace strop::policy_loss {

inline constexpr int kMaxBlocks = 2048;  // what the workspace has room for

struct Tuning {
  int tokens_a_thread = 8;  // of a tile, held in registers; all loads of a tile are in flight at once
  int block = 128;          // threads
  int group = 128;          // threads that work on one tile: the block, or a power of two up to 32 for short rows
  int splits = 1;           // blocks that share a segment; 1: a group has whole segments for itself
  int grid = 1;             // blocks, all resident at once
  std::int64_t chunks = 1;  // tiles a row
  bool one_tile = false;    // dense, and each row has a block that holds it in one tile
};

inline int next_power_of_two(std::int64_t n) {
  int p = 1;
  while (p < n) p *= 2;
  return p;
}

// `tokens` are those of a row, and up to 3 more where its vectors do not start with it. `dense`: tiles are of vectors.
inline Tuning tune(Reduction reduction, std::int64_t batch, std::int64_t tokens, int multiprocessors, bool dense) {
  Tuning t;
  if (dense && batch > 0 && batch <= multiprocessors && tokens > 0 && tokens <= 8 * 1024) {
    // One vector a thread where a block of them holds a row: 0.2 us less on an H100 than two.
    t.tokens_a_thread = tokens <= 4 * 1024 ? 4 : 8;
    const auto threads = (tokens + t.tokens_a_thread - 1) / t.tokens_a_thread;
    t.block = t.group = static_cast<int>(std::max<std::int64_t>((threads + 31) / 32 * 32, 128));
    t.grid = static_cast<int>(batch);
    t.splits = reduction == Reduction::kTokenMean ? t.grid : 1;
    t.one_tile = true;
    return t;
  }
  const auto threads_a_row = std::max<std::int64_t>(1, (tokens + t.tokens_a_thread - 1) / t.tokens_a_thread);
  std::int64_t rows_a_block = 1;
  if (threads_a_row <= 32 && batch > multiprocessors) {
    // Many short rows: a few lanes each, so that a block has many of them in flight and no block-wide sum is needed.
    t.block = 256;
    t.group = std::max(4, next_power_of_two(threads_a_row));
    rows_a_block = t.block / t.group;
  } else {
    t.block = t.group = static_cast<int>(std::clamp<std::int64_t>((threads_a_row + 31) / 32 * 32, 128, 1024));
  }
  const std::int64_t tile = static_cast<std::int64_t>(t.group) * t.tokens_a_thread;
  t.chunks = std::max<std::int64_t>(1, (tokens + tile - 1) / tile);

  // The kernel is compiled for at most 64 registers a thread, so 1024 threads a multiprocessor always fit.
  const int resident = std::min(multiprocessors * (1024 / t.block), kMaxBlocks);
  if (reduction == Reduction::kTokenMean) {
    const std::int64_t blocks = (batch * t.chunks + rows_a_block - 1) / rows_a_block;
    t.grid = static_cast<int>(std::clamp<std::int64_t>(blocks, 1, resident));
    t.splits = t.grid;
    return t;
  }
  const std::int64_t spare = resident / std::max<std::int64_t>(batch, 1);
  if (spare >= 2 && t.chunks >= 2) {
    // Few long rows: several blocks a row, at the price of one more message.
    t.splits = static_cast<int>(std::min<std::int64_t>(spare, t.chunks));
    t.grid = static_cast<int>(batch) * t.splits;
    return t;
  }
  t.grid = static_cast<int>(std::clamp<std::int64_t>((batch + rows_a_block - 1) / rows_a_block, 1, resident));
  return t;
}

}  // namespace strop::policy_loss

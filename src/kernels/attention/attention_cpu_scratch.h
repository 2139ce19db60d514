// What a thread needs for one tile of attention on the CPU: one for all instruction sets, as it is large.
#pragma once

#include <cstdint>

#include "kernels/attention/attention_tuning.h"

namespace strop::attn {

// Everything float is fp32. Queries are columns where the scores are: a vector holds one key's scores of several rows.
// Pitches are those of the tile, not of the array, so that short rows lie close together: at a pitch of 1 KiB 64 rows
// would share a quarter of the first-level cache.
struct CpuScratch {
  static constexpr int kDepth = 256;
  alignas(64) float q[kDepth * kCpuRows];                        // [element][row]
  alignas(64) float k[kCpuKeys * kDepth], v[kCpuKeys * kDepth];  // [key][element]
  alignas(64) float x[kCpuKeys * kCpuRows];                      // [key][row]: scores, then weights
  alignas(64) float bias[kCpuKeys * kCpuRows], mask[kCpuKeys * kCpuRows];
  alignas(64) float sums[kCpuRows * kDepth];         // [row][element]
  alignas(64) float lines[4][kDepth];                // rows on their way to become columns
  alignas(64) float begin[kCpuRows], end[kCpuRows];  // keys of a row, from the tile's first one on
  alignas(64) float largest[kCpuRows], before[kCpuRows], added[kCpuRows];
  double weight[kCpuRows];
  std::uint8_t admitted[kCpuKeys];
  int keys[kCpuKeys];  // which of the tile's keys are there
};
static_assert(CpuScratch::kDepth >= kCpuKeys);

}  // namespace strop::attn

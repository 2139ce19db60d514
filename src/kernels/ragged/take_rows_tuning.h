// How taken rows are cut over the chip: a pure function of a row's size.
#pragma once

#include <algorithm>
#include <cstdint>

namespace strop::ragged {

inline constexpr int kTakeThreads = 256;              // of a block
inline constexpr int kUnitsAThread = 4;               // in flight at once
inline constexpr int kBlocksPerMultiprocessor = 64;   // more than run at once by far; beyond, blocks take more rows
inline constexpr std::int64_t kMaxUnits = 1LL << 30;  // of a row, so that those of a block's rows fit an int

struct TakeTuning {
  int rows_a_block = 1;  // at a time
};

// `units`: pieces of a row, one for a thread at a time.
inline TakeTuning tune_take(std::int64_t units) {
  return {static_cast<int>(std::max<std::int64_t>(1, kTakeThreads * kUnitsAThread / units))};
}

}  // namespace strop::ragged

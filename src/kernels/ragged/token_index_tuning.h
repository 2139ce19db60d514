// How positions are cut into parts, a block each: a pure function of their number and of how many blocks run at once.
// Results are integers and do not depend on it.
#pragma once

#include <algorithm>
#include <cstdint>

namespace strop::ragged {

inline constexpr int kPositionsAThread = 16;   // at a time: of bytes, a vector
inline constexpr int kMaxThreads = 1024;       // of a block
inline constexpr int kMaxParts = kMaxThreads;  // so that a block has a thread for each part's count
inline constexpr std::int64_t kOneBlock =
    64 * 1024;  // positions; above, two grid barriers (3 us) cost less than they save

struct Tuning {
  int block = 32;         // threads
  int parts = 1;          // blocks; with more than one the launch is cooperative
  std::int64_t part = 0;  // positions a part, but for the last: whole passes of a block
};

inline Tuning tune(std::int64_t positions, int resident_blocks) {
  Tuning t;
  constexpr std::int64_t kWarp = 32 * kPositionsAThread, kPass = std::int64_t{kMaxThreads} * kPositionsAThread;
  t.block = static_cast<int>(std::clamp<std::int64_t>((positions + kWarp - 1) / kWarp, 1, kMaxThreads / 32)) * 32;
  t.part = positions;
  if (positions <= kOneBlock || resident_blocks < 2) return t;
  const std::int64_t passes = (positions + kPass - 1) / kPass, most = std::min(resident_blocks, kMaxParts);
  t.part = (passes + most - 1) / most * kPass;
  t.parts = static_cast<int>((positions + t.part - 1) / t.part);
  return t;
}

}  // namespace strop::ragged

// A mask as words of bits: what token_index.cuh reads.
#pragma once

#include "base/mask.cuh"
#include "base/ptx/memory.cuh"
#include "base/reduce.cuh"
#include "kernels/ragged/token_index.h"
#include "kernels/ragged/token_index_tuning.h"

namespace strop::ragged {

inline constexpr int kWords = kPositionsAThread;  // of a warp
inline constexpr std::int64_t kWarpPositions = 32 * kWords;

struct Args {
  Problem p;
  MaskFormat format;
  bool vectors;  // a dense mask of bytes
  std::int64_t part;
};

// A position's sequence and place in it.
struct Place {
  std::uint32_t sequence, l;

  static __device__ __forceinline__ Place of(std::int64_t position, const Problem& p) {
    const auto at = static_cast<std::uint32_t>(position), length = static_cast<std::uint32_t>(p.length);
    return {at / length, at % length};
  }
  __device__ __forceinline__ void advance(std::uint32_t by, const Problem& p) {
    const auto length = static_cast<std::uint32_t>(p.length);
    l += by;
    if (l >= length) sequence += l / length, l %= length;
  }
};

// Bit i: byte i is not 0.
__device__ __forceinline__ std::uint32_t nonzero_bytes(std::uint32_t v) {
  const std::uint32_t high = (((v & 0x7f7f7f7fu) + 0x7f7f7f7fu) | v) & 0x80808080u;  // of each byte, the highest bit
  return (high >> 7) * 0x10204080u >> 28;
}

// Bit k: position at + 32 k is real. All loads are in flight at once.
template <class Raw>
__device__ __forceinline__ std::uint32_t load_elements(const Args& a, std::int64_t at) {
  const Raw* const mask = static_cast<const Raw*>(a.p.mask.data);
  const Raw bits = static_cast<Raw>(a.format.bits);
  const std::int64_t positions = a.p.positions();
  Place place = Place::of(at, a.p);
  Raw raw[kWords];
#pragma unroll
  for (int k = 0; k < kWords; ++k, place.advance(32, a.p)) {
    raw[k] = at + 32 * k < positions ? mask[place.sequence * a.p.mask.stride_sequence + place.l * a.p.mask.stride] : 0;
  }
  std::uint32_t real = 0;
#pragma unroll
  for (int k = 0; k < kWords; ++k) real |= static_cast<std::uint32_t>((raw[k] & bits) != 0) << k;
  return real;
}

// Lane k's bit i: position first + 32 k + i is real. Nothing in lanes from kWords on.
__device__ __forceinline__ std::uint32_t load_words(const Args& a, std::int64_t first) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  std::uint32_t real = 0, word = 0;
  if (a.vectors) {
    const std::int64_t at = first + lane * 16, positions = a.p.positions();
    const char* const mask = static_cast<const char*>(a.p.mask.data) + at;
    if (at + 16 <= positions) {
      const uint4 v = ptx::load_once_u128(mask);
      real = nonzero_bytes(v.x) | nonzero_bytes(v.y) << 4 | nonzero_bytes(v.z) << 8 | nonzero_bytes(v.w) << 12;
    } else {
      for (int i = 0; i < 16 && at + i < positions; ++i) real |= static_cast<std::uint32_t>(mask[i] != 0) << i;
    }
    const std::uint32_t low = __shfl_sync(kFullWarp, real, 2 * lane % 32);
    const std::uint32_t high = __shfl_sync(kFullWarp, real, (2 * lane + 1) % 32);
    return lane < kWords ? low | high << 16 : 0;
  }
  real = a.format.bytes == 1   ? load_elements<std::uint8_t>(a, first + lane)
         : a.format.bytes == 2 ? load_elements<std::uint16_t>(a, first + lane)
         : a.format.bytes == 4 ? load_elements<std::uint32_t>(a, first + lane)
                               : load_elements<std::uint64_t>(a, first + lane);
#pragma unroll
  for (int k = 0; k < kWords; ++k) {
    const std::uint32_t all = __ballot_sync(kFullWarp, static_cast<int>(real >> k & 1));
    if (lane == k) word = all;
  }
  return word;
}

}  // namespace strop::ragged

// A call's tokens where a CUDA graph reads them, and its results from there; the maths is in pack_tokens.h.
//
// Purpose   What fills the memory of a CUDA graph in one launch, and what empties it in another, where a launch a
// tensor
//           would be many.
// Design    A thread a number of cu; of parts a thread a unit, the largest power of two of bytes that rows consist of.
//           Each block is of one of them.
// Bytes     pack_tokens.h.
// Floor     A launch with two trips to memory, one after the other.
#pragma once

#include "base/ptx/grid.cuh"
#include "kernels/ragged/pack_tokens.h"
#include "strop/launch.h"

namespace strop::ragged {

inline constexpr int kPackThreads = 128;

struct PackArgs {
  MoveTokens p;
  int starts_blocks;
  int blocks[kMostParts];          // of each part
  int unit[kMostParts];            // bytes that are moved at once
  std::int64_t units[kMostParts];  // of a row
};

template <class Unit>
__device__ __forceinline__ void copy_rows(const PackArgs& a, int k, int block) {
  const TokenPart& part = a.p.part[k];
  const std::int64_t units = a.units[k], all = part.count * units;
  const bool narrow = all < (std::int64_t{1} << 31);  // a division of 32 bits is a fifth of one of 64
  for (std::int64_t i = std::int64_t{block} * kPackThreads + threadIdx.x; i < all;
       i += std::int64_t{a.blocks[k]} * kPackThreads) {
    const std::int64_t r = units == 1 ? i
                           : narrow   ? static_cast<std::uint32_t>(i) / static_cast<std::uint32_t>(units)
                                      : i / units;
    const std::int64_t u = i - r * units, row = a.p.row(part, r);
    Unit v = {};
    if (row >= 0 && row < part.x_rows) v = reinterpret_cast<const Unit*>(part.x + row * part.stride_row)[u];
    reinterpret_cast<Unit*>(part.out)[i] = v;
  }
}

__global__ void __launch_bounds__(kPackThreads) pack_tokens_kernel(const __grid_constant__ PackArgs a) {
  ptx::wait_for_previous_kernel();
  int block = static_cast<int>(blockIdx.x);
  if (block < a.starts_blocks) {
    const std::int64_t i = std::int64_t{block} * kPackThreads + threadIdx.x;
    if (i <= a.p.most) a.p.start(i);
    return;
  }
  block -= a.starts_blocks;
  int k = 0;
  while (block >= a.blocks[k]) block -= a.blocks[k++];
  switch (a.unit[k]) {
    case 16:
      return copy_rows<uint4>(a, k, block);
    case 8:
      return copy_rows<uint2>(a, k, block);
    case 4:
      return copy_rows<std::uint32_t>(a, k, block);
    case 2:
      return copy_rows<std::uint16_t>(a, k, block);
    default:
      return copy_rows<std::uint8_t>(a, k, block);
  }
}

}  // namespace strop::ragged

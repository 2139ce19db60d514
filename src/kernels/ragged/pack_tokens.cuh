// A call's tokens where a CUDA graph reads them; the maths is in pack_tokens.h.
//
// Purpose   What fills the memory of a CUDA graph in one launch, where a gather an input and two copies would be many.
// Design    A thread a number of cu; of inputs a thread a unit, the largest power of two of bytes that rows consist of.
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
  PackTokens p;
  int starts_blocks;
  int blocks[kMostInputs];          // of each input
  int unit[kMostInputs];            // bytes that are moved at once
  std::int64_t units[kMostInputs];  // of a row
};

template <class Unit>
__device__ __forceinline__ void copy_tokens(const PackArgs& a, int k, int block) {
  const TokenInput& in = a.p.input[k];
  const std::int64_t units = a.units[k], all = a.p.count * units;
  for (std::int64_t i = std::int64_t{block} * kPackThreads + threadIdx.x; i < all;
       i += std::int64_t{a.blocks[k]} * kPackThreads) {
    const std::int64_t t = units == 1 ? i : i / units, u = i - t * units, row = a.p.row(in, t);
    Unit v = {};
    if (row >= 0 && row < in.x_rows) v = reinterpret_cast<const Unit*>(in.x + row * in.stride_row)[u];
    reinterpret_cast<Unit*>(in.out)[i] = v;
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
      return copy_tokens<uint4>(a, k, block);
    case 8:
      return copy_tokens<uint2>(a, k, block);
    case 4:
      return copy_tokens<std::uint32_t>(a, k, block);
    case 2:
      return copy_tokens<std::uint16_t>(a, k, block);
    default:
      return copy_tokens<std::uint8_t>(a, k, block);
  }
}

}  // namespace strop::ragged

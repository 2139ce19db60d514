// Sums and maxima over a warp, part of one, and a block, always in the same order: results are bitwise repeatable.
#pragma once

#include <cstdint>

#include "base/ptx/math.cuh"

namespace strop {

inline constexpr unsigned kFullWarp = 0xffffffffu;

// Sum over `width` neighbouring lanes (a power of two up to 32, lanes aligned to it); all of them get it, and all
// lanes of the warp must call.
template <class T>
__device__ __forceinline__ T group_sum(T v, int width) {
  for (int d = width / 2; d > 0; d /= 2) v += __shfl_xor_sync(kFullWarp, v, d);
  return v;
}

template <class T>
__device__ __forceinline__ T warp_sum(T v) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(kFullWarp, v, d);
  return v;
}

__device__ __forceinline__ std::uint32_t warp_sum(std::uint32_t v) { return ptx::warp_sum_u32(v); }

// The largest of a warp's values, of which none is NaN; all lanes get it. Floats with the bits of negative ones turned
// over are in the order of integers.
__device__ __forceinline__ float warp_max(float v) {
  const auto ordered = [](int bits) { return bits < 0 ? bits ^ 0x7fffffff : bits; };
  return __int_as_float(ordered(__reduce_max_sync(kFullWarp, ordered(__float_as_int(v)))));
}

// Sum over the block (a multiple of 32 threads); every thread gets it. `scratch` is shared memory for 32 values.
template <class T>
__device__ __forceinline__ T block_sum(T v, T* scratch) {
  v = warp_sum(v);
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  __syncthreads();  // write after read: an earlier block_sum may still be reading the scratch
  if (lane == 0) scratch[warp] = v;
  __syncthreads();  // read after write: every warp's sum is there
  return warp_sum(lane < blockDim.x / 32 ? scratch[lane] : T(0));
}

// Two sums at once, for the price of one's barriers.
template <class T>
__device__ __forceinline__ void block_sum(float& x, T& n, float* x_scratch, T* n_scratch) {
  x = warp_sum(x), n = warp_sum(n);
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  __syncthreads();  // write after read: an earlier block_sum may still be reading the scratch
  if (lane == 0) x_scratch[warp] = x, n_scratch[warp] = n;
  __syncthreads();  // read after write: every warp's sums are there
  const bool used = lane < blockDim.x / 32;
  x = warp_sum(used ? x_scratch[lane] : 0.f), n = warp_sum(used ? n_scratch[lane] : T(0));
}

}  // namespace strop

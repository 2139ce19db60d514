// Attention on CUDA: what its kernels share; the maths is in attention.h. attention_mma.cuh has the kernel on the
// tensor cores, attention_any.cuh the one for any dtype and layout.
//
// A block goes over the keys of its rows (attention_unit.cuh) in tiles, with the sums of out in registers. Where a
// sequence's keys are cut into chunks each block leaves its sums in the workspace, and the one that comes last merges
// them in the chunks' order. No block waits for another.
#pragma once

#include <cmath>

#include "base/arrival.cuh"
#include "base/ptx/grid.cuh"
#include "base/ptx/math.cuh"
#include "kernels/attention/attention_unit.cuh"
#include "strop/launch.h"

namespace strop::attn {

inline constexpr float kLog2E = 1.44269504f;
// exp(x): 2 ulp and the rounding of the product, |x| units of 2^-24; 0 for -inf.
__device__ __forceinline__ float exp_of(float x) { return ptx::exp2_approx(x * kLog2E); }
// What is taken off a row's scores: its largest; nothing while it has no key.
__device__ __forceinline__ float offset_of(float largest) { return largest == nothing() ? 0.f : largest; }

__device__ __forceinline__ char* out_at(const Problem& p, const Unit& u, int r, int c) {
  return static_cast<char*>(p.out.data) + (u.row_of(p.out, r) + c * p.out.stride_d) * float_bytes(p.dtype);
}
__device__ __forceinline__ void store_out(const Problem& p, const Unit& u, int r, int c, float v) {
  char* const to = out_at(p, u, r, c);
  const std::uint32_t bits = from_float(v, p.dtype);
  if (p.dtype == DType::kFloat32) {
    *reinterpret_cast<std::uint32_t*>(to) = bits;
  } else {
    *reinterpret_cast<std::uint16_t*>(to) = static_cast<std::uint16_t>(bits);
  }
}
__device__ __forceinline__ float inverse_of(float weight) { return weight == 0.f ? 0.f : 1.f / weight; }

// Rows of no sequence become 0: those before the first and behind the last, a block each in turn. Elements are written
// kElements at a time.
template <class Vector, int kElements>
__device__ __forceinline__ void clear_rest(const Args& a, const Unit& u) {
  const Problem& p = a.p;
  const std::int64_t rest = p.packed ? u.before + (p.total_q - u.behind) : 0;
  if (blockIdx.x >= rest) return;
  const int vectors = p.d / kElements, all = static_cast<int>(p.heads) * vectors;
#pragma unroll 1
  for (std::int64_t i = blockIdx.x; i < rest; i += gridDim.x) {
    const std::int64_t row = i < u.before ? i : i - u.before + u.behind;
#pragma unroll 1
    for (int e = static_cast<int>(threadIdx.x); e < all; e += kThreads) {
      const std::int64_t c = e % vectors * kElements;
      const std::int64_t at = row * p.out.stride_l + e / vectors * p.out.stride_h + c * p.out.stride_d;
      static_cast<Vector*>(p.out.data)[at / kElements] = Vector{};
    }
  }
}

// All of a block, once its sums are in the workspace: the last one of the segment writes out.
__device__ __forceinline__ void merge(const Args& a, const Unit& u) {
  const Problem& p = a.p;
  unsigned& last = dynamic_shared<unsigned>();  // in place of q, which is not read any more
  __syncthreads();  // the block's sums are in the workspace before one thread hands them over; q has been read
  if (threadIdx.x == 0)
    last = last_to_arrive(static_cast<std::uint64_t*>(p.workspace) + u.segment, a.tag, static_cast<unsigned>(u.chunks));
  __syncthreads();  // read after write: `last`, and with it what the other blocks handed over
  if (last == 0) return;
  for (int e = static_cast<int>(threadIdx.x); e < u.rows * p.d; e += kThreads) {
    const int r = e / p.d, c = e % p.d;
    float largest = nothing(), weight = 0, sum = 0;
    for (int k = 0; k < u.chunks; ++k) largest = fmaxf(largest, u.partial(p, k, r)[p.d]);
    const float off = offset_of(largest);
    for (int k = 0; k < u.chunks; ++k) {
      const float* const part = u.partial(p, k, r);
      const float w = exp_of(part[p.d] - off);
      weight = fmaf(w, part[p.d + 1], weight), sum = fmaf(w, part[c], sum);
    }
    store_out(p, u, r, c, sum * inverse_of(weight));
  }
}

}  // namespace strop::attn

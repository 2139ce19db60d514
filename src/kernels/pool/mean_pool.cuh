// Mean pooling on CUDA; the maths is in mean_pool.h.
//
// Purpose   One pass over the tokens, padded or packed, of which those of weight 0 are left out.
// Design    A block has some columns of a sequence, 128 bytes of each token (mean_pool_tuning.h). Its tokens go in turn
//           to strands: 8 lanes with a vector each, four tokens ahead. A strand's sum is a chain of fused multiply-adds
//           in the tokens' order; a warp's strands are added up by shuffles, warps in order through shared memory. So
//           the order is the same for every sequence, wherever it lies and whatever its weights.
// Bytes     mean_pool.h; the mask once a block, from L2 but for the first.
// Floor     Bytes over the read rate, and a launch with a trip for the weights and one for tokens. A sequence by itself
//           has n / 64 blocks of halves: one of 8192 tokens is bound by what so few multiprocessors read.
#pragma once

#include "base/ptx/grid.cuh"
#include "base/reduce.cuh"
#include "base/row_vector.cuh"
#include "kernels/pool/mean_pool_tuning.h"
#include "kernels/pool/mean_pool_weights.cuh"
#include "strop/launch.h"

namespace strop::pool {

struct Args {
  Problem p;
  std::int64_t tiles;  // of columns, a sequence
};

template <int kE>
struct Shared {
  float sums[kWarps][lanes_a_token(kE) * kE];
  float weights[kWarps];
};

// kE elements of one token from `at` on; zeros where the weight is.
template <int kE, int kBytes>
__device__ __forceinline__ Vector<kE, kBytes> load_vector(const Problem& p, std::int64_t at, bool wanted) {
  Vector<kE, kBytes> v = {};
  if (wanted) v.load(static_cast<const char*>(p.x) + at * kBytes);
  return v;
}

template <int kBytes>
__device__ __forceinline__ std::uint32_t load_element(const Problem& p, std::int64_t at, bool wanted) {
  const char* const from = static_cast<const char*>(p.x) + at * kBytes;
  return !wanted ? 0 : kBytes == 4 ? ptx::load_once_u32(from) : ptx::load_once_u16(from);
}

// A strand's sums of w x and of w: tokens t, t + strands, … of the kE columns from `column` on.
template <int kE, int kBytes>
__device__ __forceinline__ void sum_strand(const Problem& p, std::int64_t sequence, const Span& span, std::int64_t t,
                                           std::int64_t column, float (&sum)[kE], float& weights) {
  constexpr int kStep = strands(kE);
  const bool inside = column < p.n;
  for (; t < span.n; t += kStep * kTokensAhead) {
    float w[kTokensAhead];
    load_weights(p, sequence, t, kStep, span.n, w);
    const std::int64_t at = span.first + t * p.stride_token + column * p.stride, step = kStep * p.stride_token;
    float x[kTokensAhead][kE];
    if constexpr (kE == 1) {
      std::uint32_t raw[kTokensAhead];
#pragma unroll
      for (int k = 0; k < kTokensAhead; ++k) raw[k] = load_element<kBytes>(p, at + k * step, inside && w[k] != 0);
#pragma unroll
      for (int k = 0; k < kTokensAhead; ++k) x[k][0] = to_float(raw[k], p.dtype);
    } else {
      Vector<kE, kBytes> raw[kTokensAhead];
#pragma unroll
      for (int k = 0; k < kTokensAhead; ++k) raw[k] = load_vector<kE, kBytes>(p, at + k * step, inside && w[k] != 0);
#pragma unroll
      for (int k = 0; k < kTokensAhead; ++k) raw[k].to_floats(x[k], p.dtype);
    }
#pragma unroll
    for (int k = 0; k < kTokensAhead; ++k) {
#pragma unroll
      for (int e = 0; e < kE; ++e) sum[e] = fmaf(w[k], x[k][e], sum[e]);
      weights += w[k];
    }
  }
}

template <int kE, int kBytes>
__global__ void __launch_bounds__(32 * kWarps) mean_pool_kernel(const __grid_constant__ Args a) {
  ptx::wait_for_previous_kernel();
  constexpr int kLanes = lanes_a_token(kE), kColumns = kLanes * kE;
  Shared<kE>& shared = dynamic_shared<Shared<kE>>();
  const Problem& p = a.p;
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  for (std::int64_t i = blockIdx.x; i < p.sequences * a.tiles; i += gridDim.x) {
    const std::int64_t sequence = i / a.tiles, first = i % a.tiles * kColumns;
    const Span span = span_of(p, sequence);
    float sum[kE] = {}, weights = 0;
    sum_strand<kE, kBytes>(p, sequence, span, warp * (32 / kLanes) + lane / kLanes, first + lane % kLanes * kE, sum,
                           weights);
#pragma unroll
    for (int d = kLanes; d < 32; d *= 2) {
#pragma unroll
      for (int e = 0; e < kE; ++e) sum[e] += __shfl_xor_sync(kFullWarp, sum[e], d);
      weights += __shfl_xor_sync(kFullWarp, weights, d);
    }
    __syncthreads();  // write after read: the sums of the tile before may still be read
    if (lane < kLanes) {
#pragma unroll
      for (int e = 0; e < kE; ++e) shared.sums[warp][lane * kE + e] = sum[e];
    }
    if (lane == 0) shared.weights[warp] = weights;
    __syncthreads();  // read after write: every warp's sums are there
    const std::int64_t column = first + threadIdx.x;
    if (threadIdx.x >= kColumns || column >= p.n) continue;
    float total = 0, divisor = 0;
    for (int k = 0; k < kWarps; ++k) total += shared.sums[k][threadIdx.x], divisor += shared.weights[k];
    float mean = total / (divisor < p.least ? p.least : divisor);
    if (p.cu.data != nullptr && span.n <= 0) mean = span.n == 0 ? 0.f : NAN;
    char* const to = static_cast<char*>(p.out) + (sequence * p.out_stride_row + column * p.out_stride) * kBytes;
    const std::uint32_t bits = from_float(mean, p.dtype);
    if constexpr (kBytes == 4) {
      *reinterpret_cast<std::uint32_t*>(to) = bits;
    } else {
      *reinterpret_cast<std::uint16_t*>(to) = static_cast<std::uint16_t>(bits);
    }
  }
}

}  // namespace strop::pool

// Rotary position embedding on CUDA; the maths is in rotary.h.
//
// Purpose   One pass over queries or keys, in place or not.
// Design    A slot is kE pairs of one head, or kE elements that are copied: a thread's work at a time. Dense, kE fill
// 16
//           bytes and pairs are halves, so that both elements of neighbouring pairs are vectors; else kE is 1. A block
//           takes some tokens at a time. An element is read and written by one thread, the read first, so out may be x.
// Bytes     rotary.h: x read and written once; a token's cosines and sines come from L1 for all heads but the first.
// Floor     bytes over the copy rate, and a launch.
#pragma once

#include <cmath>

#include "base/ptx/grid.cuh"
#include "base/row_vector.cuh"
#include "kernels/rotary/rotary.h"
#include "kernels/rotary/rotary_tuning.h"
#include "strop/launch.h"

namespace strop::rotary {

struct Args {
  Problem p;
  Tuning tuning;
  int pair_slots, slots;  // of a head: those of pairs, and with those that are copied; of the token slots * heads
};

// kE neighbouring elements, or one: floats of any of the three dtypes.
template <int kE>
__device__ __forceinline__ void load(const char* p, DType dtype, float (&f)[kE]) {
  if constexpr (kE == 1) {
    f[0] = to_float(dtype == DType::kFloat32 ? *reinterpret_cast<const std::uint32_t*>(p)
                                             : *reinterpret_cast<const std::uint16_t*>(p),
                    dtype);
  } else if (dtype == DType::kFloat32) {
#pragma unroll
    for (int e = 0; e < kE; e += 4) {
      const float4 v = *reinterpret_cast<const float4*>(p + 4 * e);
      f[e] = v.x, f[e + 1] = v.y, f[e + 2] = v.z, f[e + 3] = v.w;
    }
  } else {
#pragma unroll
    for (int e = 0; e < kE; e += 4) {
      const uint2 v = *reinterpret_cast<const uint2*>(p + 2 * e);
      const float2 low = to_float2(v.x, dtype), high = to_float2(v.y, dtype);
      f[e] = low.x, f[e + 1] = low.y, f[e + 2] = high.x, f[e + 3] = high.y;
    }
  }
}

template <int kE>
__device__ __forceinline__ void store(char* p, DType dtype, const float (&f)[kE]) {
  if constexpr (kE == 1) {
    const std::uint32_t bits = from_float(f[0], dtype);
    if (dtype == DType::kFloat32) {
      *reinterpret_cast<std::uint32_t*>(p) = bits;
    } else {
      *reinterpret_cast<std::uint16_t*>(p) = static_cast<std::uint16_t>(bits);
    }
  } else if constexpr (kE == 4) {  // of 4 bytes
    *reinterpret_cast<float4*>(p) = make_float4(f[0], f[1], f[2], f[3]);
  } else {
    *reinterpret_cast<uint4*>(p) = make_uint4(from_float2({f[0], f[1]}, dtype), from_float2({f[2], f[3]}, dtype),
                                              from_float2({f[4], f[5]}, dtype), from_float2({f[6], f[7]}, dtype));
  }
}

__device__ __forceinline__ char* element(const Args& a, const Heads& m, std::int64_t token, int head, std::int64_t i) {
  return static_cast<char*>(m.data) +
         (token * m.stride_token + head * m.stride_head + i * m.stride) * float_bytes(a.p.dtype);
}

// Which row of cos and sin a token has; -1 for none.
__device__ __forceinline__ std::int64_t row_of(const Problem& p, std::int64_t token) {
  if (p.positions.data == nullptr) {
    if (p.rows == p.tokens) return token;
    if (p.tokens > UINT32_MAX) return token % p.rows;  // rare, and slow
    return static_cast<std::uint32_t>(token) % static_cast<std::uint32_t>(p.rows);
  }
  const std::int64_t row = p.positions.at(token);
  return row >= 0 && row < p.rows ? row : -1;
}

template <int kE>
__device__ __forceinline__ void load_table(const Table& t, std::int64_t row, std::int64_t column, float (&f)[kE]) {
  if (row < 0) {
#pragma unroll
    for (int e = 0; e < kE; ++e) f[e] = NAN;
  } else {
    const char* const data = static_cast<const char*>(t.data);
    load(data + (row * t.stride_row + column * t.stride) * float_bytes(t.dtype), t.dtype, f);
  }
}

template <int kE>
__device__ __forceinline__ void turn(const Args& a, std::int64_t token, int head, int slot) {
  const Problem& p = a.p;
  if (slot >= a.pair_slots) {
    const std::int64_t i = p.r + static_cast<std::int64_t>(slot - a.pair_slots) * kE;
    float x[kE];
    load(element(a, p.x, token, head, i), p.dtype, x);
    store(element(a, p.out, token, head, i), p.dtype, x);
    return;
  }
  const Pair pair = pair_of(p, static_cast<std::int64_t>(slot) * kE);
  const std::int64_t row = row_of(p, token);
  float x[kE], y[kE], cos_a[kE], sin_a[kE], cos_b[kE], sin_b[kE], turned_a[kE], turned_b[kE];
  load(element(a, p.x, token, head, pair.a), p.dtype, x);
  load(element(a, p.x, token, head, pair.b), p.dtype, y);
  load_table(p.cos, row, pair.column_a, cos_a), load_table(p.sin, row, pair.column_a, sin_a);
  load_table(p.cos, row, pair.column_b, cos_b), load_table(p.sin, row, pair.column_b, sin_b);
#pragma unroll
  for (int e = 0; e < kE; ++e) {
    turned_a[e] = fmaf(-y[e], sin_a[e], x[e] * cos_a[e]);
    turned_b[e] = fmaf(x[e], sin_b[e], y[e] * cos_b[e]);
  }
  store(element(a, p.out, token, head, pair.a), p.dtype, turned_a);
  store(element(a, p.out, token, head, pair.b), p.dtype, turned_b);
}

template <int kE>
__global__ void __launch_bounds__(256) rotary_kernel(const __grid_constant__ Args a) {
  ptx::wait_for_previous_kernel();
  const int tokens = a.tuning.tokens_a_block, of_token = a.slots * static_cast<int>(a.p.heads);
  for (std::int64_t first = std::int64_t{blockIdx.x} * tokens; first < a.p.tokens;
       first += std::int64_t{gridDim.x} * tokens) {
    for (int i = static_cast<int>(threadIdx.x); i < tokens * of_token; i += static_cast<int>(blockDim.x)) {
      const int in_block = i / of_token, rest = i % of_token;
      if (first + in_block < a.p.tokens) turn<kE>(a, first + in_block, rest / a.slots, rest % a.slots);
    }
  }
}

}  // namespace strop::rotary

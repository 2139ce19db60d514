// Arithmetic that C++ has no name for.
#pragma once

#include <cstdint>

#include "base/ptx/emulated.cuh"

#if STROP_EMULATED
#include <cmath>
#endif

namespace strop::ptx {

// 2^x, at most 2 ulp off, results below 2^-126 flushed to 0; 2^-inf = 0, 2^inf = inf, NaN stays NaN.
__device__ __forceinline__ float exp2_approx(float x) {
#if STROP_EMULATED
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0.f : y;  // NaN is not less
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// NaN where either is (C++'s fmin and fmax drop it); sm_80.
__device__ __forceinline__ float min_nan(float a, float b) {
#if STROP_EMULATED
  return a != a || b != b ? NAN : a < b ? a : b;
#else
  float m;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(m) : "f"(a), "f"(b));
  return m;
#endif
}
__device__ __forceinline__ float max_nan(float a, float b) {
#if STROP_EMULATED
  return a != a || b != b ? NAN : a > b ? a : b;
#else
  float m;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(m) : "f"(a), "f"(b));
  return m;
#endif
}

// Lanes' sum over a full warp, in one instruction (sm_80).
__device__ __forceinline__ std::uint32_t warp_sum_u32(std::uint32_t v) {
#if STROP_EMULATED
  return __reduce_add_sync(0xffffffffu, v);
#else
  std::uint32_t sum;
  asm volatile("redux.sync.add.u32 %0, %1, 0xffffffff;" : "=r"(sum) : "r"(v));
  return sum;
#endif
}

}  // namespace strop::ptx

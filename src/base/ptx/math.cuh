// Arithmetic that C++ has no name for.
#pragma once

#include <cstdint>

namespace strop::ptx {

// 2^x, at most 2 ulp off, results below 2^-126 flushed to 0; 2^-inf = 0, 2^inf = inf, NaN stays NaN.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// NaN where either is (C++'s fmin and fmax drop it); sm_80.
__device__ __forceinline__ float min_nan(float a, float b) {
  float m;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(m) : "f"(a), "f"(b));
  return m;
}
__device__ __forceinline__ float max_nan(float a, float b) {
  float m;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(m) : "f"(a), "f"(b));
  return m;
}

// Lanes' sum over a full warp, in one instruction (sm_80).
__device__ __forceinline__ std::uint32_t warp_sum_u32(std::uint32_t v) {
  std::uint32_t sum;
  asm volatile("redux.sync.add.u32 %0, %1, 0xffffffff;" : "=r"(sum) : "r"(v));
  return sum;
}

}  // namespace strop::ptx

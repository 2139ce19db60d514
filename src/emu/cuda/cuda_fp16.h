// __half and __half2. float16.h has what can be done with them.
#pragma once

#include <concepts>

#include "float16.h"
#include "float16_named.h"

struct __nv_bfloat16;

struct __align__(2) __half_raw {
  unsigned short x;
};
struct __align__(4) __half2_raw {
  unsigned short x, y;
};

struct __align__(2) __half : strop::emu::Float16<__half, 5> {
  __half() = default;
  __host__ __device__ __forceinline__ constexpr __half(const __half_raw& raw) : __x(raw.x) {}
  __host__ __device__ __forceinline__ __half(float f) : __half(strop::emu::float16_from<__half>(f)) {}
  __host__ __device__ __forceinline__ __half(double d) : __half(strop::emu::float16_from<__half>(d)) {}
  template <std::integral I>
  __host__ __device__ __forceinline__ __half(I i)
      : __half(strop::emu::float16_from<__half>(strop::emu::integer_to_odd(i))) {}
  __host__ __device__ explicit __half(__nv_bfloat16 b);  // in cuda_bf16.h

  __host__ __device__ __forceinline__ operator __half_raw() const { return {__x}; }
  __host__ __device__ __forceinline__ operator float() const { return strop::emu::float_from_half(__x); }
  __host__ __device__ __forceinline__ constexpr operator bool() const { return (__x & 0x7fff) != 0; }
  // Towards zero.
  template <std::integral I>
  __host__ __device__ __forceinline__ operator I() const {
    return strop::emu::to_integer<I>(static_cast<float>(*this), strop::emu::Rounding::kZero);
  }

 protected:
  unsigned short __x;
};

struct __align__(4) __half2 : strop::emu::Float16Pair<__half2, __half> {
  __half x, y;

  __half2() = default;
  __host__ __device__ __forceinline__ constexpr __half2(const __half& low, const __half& high) : x(low), y(high) {}
  __host__ __device__ __forceinline__ constexpr __half2(const __half2_raw& raw)
      : x(__half_raw{raw.x}), y(__half_raw{raw.y}) {}
  __host__ __device__ __forceinline__ operator __half2_raw() const {
    return {strop::emu::float16_bits(x), strop::emu::float16_bits(y)};
  }
};

STROP_EMU_FLOAT16_NAMED(__half, __half2, half)

using half = __half;
using half2 = __half2;
using nv_half = __half;
using nv_half2 = __half2;
using __nv_half = __half;
using __nv_half2 = __half2;
using __nv_half_raw = __half_raw;
using __nv_half2_raw = __half2_raw;

#define CUDART_INF_FP16 __ushort_as_half(static_cast<unsigned short>(0x7c00))
#define CUDART_NAN_FP16 __ushort_as_half(static_cast<unsigned short>(0x7fff))
#define CUDART_MIN_DENORM_FP16 __ushort_as_half(static_cast<unsigned short>(0x0001))
#define CUDART_MAX_NORMAL_FP16 __ushort_as_half(static_cast<unsigned short>(0x7bff))
#define CUDART_NEG_ZERO_FP16 __ushort_as_half(static_cast<unsigned short>(0x8000))
#define CUDART_ZERO_FP16 __ushort_as_half(static_cast<unsigned short>(0x0000))
#define CUDART_ONE_FP16 __ushort_as_half(static_cast<unsigned short>(0x3c00))

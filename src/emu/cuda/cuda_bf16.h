// __nv_bfloat16 and __nv_bfloat162. float16.h has what can be done with them, as with __half.
#pragma once

#include <concepts>

#include "cuda_fp16.h"
#include "float16.h"
#include "float16_named.h"

struct __align__(2) __nv_bfloat16_raw {
  unsigned short x;
};
struct __align__(4) __nv_bfloat162_raw {
  unsigned short x, y;
};

struct __align__(2) __nv_bfloat16 : strop::emu::Float16<__nv_bfloat16, 8> {
  __nv_bfloat16() = default;
  __host__ __device__ __forceinline__ constexpr __nv_bfloat16(const __nv_bfloat16_raw& raw) : __x(raw.x) {}
  __host__ __device__ __forceinline__ __nv_bfloat16(float f)
      : __nv_bfloat16(strop::emu::float16_from<__nv_bfloat16>(f)) {}
  __host__ __device__ __forceinline__ __nv_bfloat16(double d)
      : __nv_bfloat16(strop::emu::float16_from<__nv_bfloat16>(d)) {}
  template <std::integral I>
  __host__ __device__ __forceinline__ __nv_bfloat16(I i)
      : __nv_bfloat16(strop::emu::float16_from<__nv_bfloat16>(strop::emu::integer_to_odd(i))) {}
  __host__ __device__ __forceinline__ explicit __nv_bfloat16(__half h) : __nv_bfloat16(static_cast<float>(h)) {}

  __host__ __device__ __forceinline__ operator __nv_bfloat16_raw() const { return {__x}; }
  __host__ __device__ __forceinline__ operator float() const { return strop::emu::float_from_bfloat16(__x); }
  __host__ __device__ __forceinline__ constexpr operator bool() const { return (__x & 0x7fff) != 0; }
  // Towards zero.
  template <std::integral I>
  __host__ __device__ __forceinline__ operator I() const {
    return strop::emu::to_integer<I>(static_cast<float>(*this), strop::emu::Rounding::kZero);
  }

 protected:
  unsigned short __x;
};

struct __align__(4) __nv_bfloat162 : strop::emu::Float16Pair<__nv_bfloat162, __nv_bfloat16> {
  __nv_bfloat16 x, y;

  __nv_bfloat162() = default;
  __host__ __device__ __forceinline__ constexpr __nv_bfloat162(const __nv_bfloat16& low, const __nv_bfloat16& high)
      : x(low), y(high) {}
  __host__ __device__ __forceinline__ constexpr __nv_bfloat162(const __nv_bfloat162_raw& raw)
      : x(__nv_bfloat16_raw{raw.x}), y(__nv_bfloat16_raw{raw.y}) {}
  __host__ __device__ __forceinline__ operator __nv_bfloat162_raw() const {
    return {strop::emu::float16_bits(x), strop::emu::float16_bits(y)};
  }
};

STROP_EMU_FLOAT16_NAMED(__nv_bfloat16, __nv_bfloat162, bfloat16)

__host__ __device__ __forceinline__ __half::__half(__nv_bfloat16 b) : __half(static_cast<float>(b)) {}

using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

#define CUDART_INF_BF16 __ushort_as_bfloat16(static_cast<unsigned short>(0x7f80))
#define CUDART_NAN_BF16 __ushort_as_bfloat16(static_cast<unsigned short>(0x7fff))
#define CUDART_MIN_DENORM_BF16 __ushort_as_bfloat16(static_cast<unsigned short>(0x0001))
#define CUDART_MAX_NORMAL_BF16 __ushort_as_bfloat16(static_cast<unsigned short>(0x7f7f))
#define CUDART_NEG_ZERO_BF16 __ushort_as_bfloat16(static_cast<unsigned short>(0x8000))
#define CUDART_ZERO_BF16 __ushort_as_bfloat16(static_cast<unsigned short>(0x0000))
#define CUDART_ONE_BF16 __ushort_as_bfloat16(static_cast<unsigned short>(0x3f80))

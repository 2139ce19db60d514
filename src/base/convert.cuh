// fp16 and bf16 to fp32 and back, from raw bits, with the dtype known at run time.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "strop/tensor_view.h"

namespace strop {

// Bytes of a float32, float16 or bfloat16.
__host__ __device__ __forceinline__ int float_bytes(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

// A value of a 4- or 2-byte float in the low bits of `bits`.
__device__ __forceinline__ float to_float(std::uint32_t bits, DType dtype) {
  if (dtype == DType::kFloat32) return __uint_as_float(bits);
  if (dtype == DType::kBFloat16) return __uint_as_float(bits << 16);
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}

// Rounded to nearest even; the bits in the low half for the 2-byte dtypes.
__device__ __forceinline__ std::uint32_t from_float(float v, DType dtype) {
  if (dtype == DType::kFloat32) return __float_as_uint(v);
  if (dtype == DType::kBFloat16) return __bfloat16_as_ushort(__float2bfloat16_rn(v));
  return __half_as_ushort(__float2half_rn(v));
}

// Two neighbouring 2-byte values in one word, the first in the low half.
__device__ __forceinline__ float2 to_float2(std::uint32_t bits, DType dtype) {
  if (dtype == DType::kBFloat16) return {__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u)};
  return __half22float2(*reinterpret_cast<const __half2*>(&bits));
}
__device__ __forceinline__ std::uint32_t from_float2(float2 v, DType dtype) {
  if (dtype == DType::kBFloat16) {
    const __nv_bfloat162 h = __float22bfloat162_rn(v);
    return *reinterpret_cast<const std::uint32_t*>(&h);
  }
  const __half2 h = __float22half2_rn(v);
  return *reinterpret_cast<const std::uint32_t*>(&h);
}

}  // namespace strop

// Slots: the few neighbouring elements that a thread moves at once. Dense ones are 16-byte vectors, strided ones single
// elements at any stride and alignment. What a slot's end lies beyond (`left` elements are the row's) is not touched.
#pragma once

#include <cstdint>

#include "base/row_vector.cuh"
#include "kernels/norm/norm.h"

namespace strop::norm {

__device__ __forceinline__ void store_element(char* p, float f, DType dtype) {
  const std::uint32_t bits = from_float(f, dtype);
  if (dtype == DType::kFloat32) {
    *reinterpret_cast<std::uint32_t*>(p) = bits;
  } else {
    *reinterpret_cast<std::uint16_t*>(p) = static_cast<std::uint16_t>(bits);
  }
}

// Unit strides; every row of x, residual and the outputs starts at a multiple of 16 bytes (is_dense).
template <int kBytes>
struct DenseSlot {
  static constexpr int kE = 16 / kBytes;
  using V = Vector<kE, kBytes>;

  // Elements i, i + 1, … of the row at `data`, i a multiple of kE; 0 for those outside.
  static __device__ __forceinline__ void load(const char* data, std::int64_t, int i, int left, DType dtype,
                                              float (&f)[kE]) {
    Row row;
    row.data = const_cast<char*>(data), row.step = kBytes;
    if (left >= kE) {
      V v;
      v.load(row, i / kE);
      v.to_floats(f, dtype);
    } else {
#pragma unroll
      for (int e = 0; e < kE; ++e) f[e] = e < left ? V::load_element(row, i + e, dtype) : 0.f;
    }
  }

  // Not evict-first: who normalises reads the result next.
  static __device__ __forceinline__ void store(char* data, std::int64_t, int i, int left, DType dtype,
                                               const float (&f)[kE]) {
    char* p = data + std::int64_t{i} * kBytes;
    if (left >= kE) {
      V v;
      v.from_floats(f, dtype);
      *reinterpret_cast<uint4*>(p) = make_uint4(v.words[0], v.words[1], v.words[2], v.words[3]);
    } else {
#pragma unroll
      for (int e = 0; e < kE; ++e) {
        if (e < left) store_element(p + e * kBytes, f[e], kBytes == 4 ? DType::kFloat32 : dtype);
      }
    }
  }
};

// Neighbouring threads have neighbouring elements, so that a warp's load is a few lines where the stride is 1.
struct StridedSlot {
  static constexpr int kE = 1;

  static __device__ __forceinline__ void load(const char* data, std::int64_t stride, int i, int left, DType dtype,
                                              float (&f)[kE]) {
    f[0] = 0;
    if (left <= 0) return;
    const char* p = data + i * stride * float_bytes(dtype);
    f[0] = to_float(dtype == DType::kFloat32 ? ptx::load_once_u32(p) : ptx::load_once_u16(p), dtype);
  }
  static __device__ __forceinline__ void store(char* data, std::int64_t stride, int i, int left, DType dtype,
                                               const float (&f)[kE]) {
    if (left > 0) store_element(data + i * stride * float_bytes(dtype), f[0], dtype);
  }
};

// Elements i, i + 1, … of weight or bias, which other rows read as well: through L1. `vectors`: unit stride, and the
// elements of a slot start at a multiple of their size, or of 16 bytes where that is less.
template <int kE>
__device__ __forceinline__ void load_parameter(const Parameter& v, bool vectors, int i, int left, float (&f)[kE]) {
  const int bytes = float_bytes(v.dtype);
  const char* p = static_cast<const char*>(v.data) + i * v.stride * bytes;
  if constexpr (kE > 1) {
    if (vectors && left >= kE) {
      if (bytes == 4) {
#pragma unroll
        for (int e = 0; e < kE; e += 4) {
          const float4 w = *reinterpret_cast<const float4*>(p + 4 * e);
          f[e] = w.x, f[e + 1] = w.y, f[e + 2] = w.z, f[e + 3] = w.w;
        }
      } else {
#pragma unroll
        for (int e = 0; e < kE; e += 4) {
          const uint2 w = *reinterpret_cast<const uint2*>(p + 2 * e);
          const float2 low = to_float2(w.x, v.dtype), high = to_float2(w.y, v.dtype);
          f[e] = low.x, f[e + 1] = low.y, f[e + 2] = high.x, f[e + 3] = high.y;
        }
      }
      return;
    }
  }
#pragma unroll
  for (int e = 0; e < kE; ++e, p += v.stride * bytes) {
    if (e >= left) continue;
    f[e] = to_float(
        bytes == 4 ? *reinterpret_cast<const std::uint32_t*>(p) : *reinterpret_cast<const std::uint16_t*>(p), v.dtype);
  }
}

}  // namespace strop::norm

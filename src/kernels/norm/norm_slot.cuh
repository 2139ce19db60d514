// Slots: the few neighbouring elements that a thread moves at once. Dense ones are 16-byte vectors, strided ones single
// elements at any stride and alignment. `left` elements from the slot's first on are the row's; no other is touched.
#pragma once

#include <cstdint>

#include "base/row_vector.cuh"
#include "kernels/norm/norm.h"

namespace strop::norm {

__device__ __forceinline__ float load_element(const char* p, DType dtype) {
  return to_float(dtype == DType::kFloat32 ? ptx::load_once_u32(p) : ptx::load_once_u16(p), dtype);
}
__device__ __forceinline__ void store_element(char* p, float f, DType dtype) {
  const std::uint32_t bits = from_float(f, dtype);
  if (dtype == DType::kFloat32) {
    *reinterpret_cast<std::uint32_t*>(p) = bits;
  } else {
    *reinterpret_cast<std::uint16_t*>(p) = static_cast<std::uint16_t>(bits);
  }
}

// The vector that a row's end cuts, at p, element by element. Rare, and kept out of the way of the usual path's
// registers and instructions; by value, so that the caller's values stay in registers.
template <int kE>
struct Floats {
  float f[kE];
};
template <int kE>
__device__ __noinline__ Floats<kE> load_cut(const char* p, DType dtype, int left) {
  Floats<kE> v = {};
#pragma unroll
  for (int e = 0; e < kE; ++e) {
    if (e < left) v.f[e] = load_element(p + e * float_bytes(dtype), dtype);
  }
  return v;
}
template <int kE>
__device__ __noinline__ void store_cut(char* p, Floats<kE> v, DType dtype, int left) {
#pragma unroll
  for (int e = 0; e < kE; ++e) {
    if (e < left) store_element(p + e * float_bytes(dtype), v.f[e], dtype);
  }
}

// Unit strides; rows start at multiples of 16 bytes, weight and bias at multiples of a slot of theirs (is_dense).
template <int kBytes>
struct DenseSlot {
  static constexpr int kE = 16 / kBytes;
  using V = Vector<kE, kBytes>;
  using Values = Floats<kE>;

  // Elements i, i + 1, … of the row at `data`, i a multiple of kE; 0 for those outside.
  static __device__ __forceinline__ Values load(const char* data, std::int64_t, int i, int left, DType dtype) {
    const char* p = data + std::int64_t{i} * kBytes;
    Values values = {};
    if (left >= kE) {
      const uint4 w = ptx::load_once_u128(p);
      const V v = {w.x, w.y, w.z, w.w};
      v.to_floats(values.f, dtype);
    } else if (left > 0) {
      values = load_cut<kE>(p, dtype, left);
    }
    return values;
  }

  // Not evict-first: what comes next reads the result.
  static __device__ __forceinline__ void store(char* data, std::int64_t, int i, int left, DType dtype,
                                               const Values& values) {
    char* p = data + std::int64_t{i} * kBytes;
    if (left >= kE) {
      V v;
      v.from_floats(values.f, dtype);
      *reinterpret_cast<uint4*>(p) = make_uint4(v.words[0], v.words[1], v.words[2], v.words[3]);
    } else if (left > 0) {
      store_cut<kE>(p, values, dtype, left);
    }
  }

  // Elements i, i + 1, … of weight or bias, which other rows read as well: through L1.
  static __device__ __forceinline__ Values load_parameter(const Parameter& parameter, int i, int left) {
    const int bytes = float_bytes(parameter.dtype);
    const char* p = static_cast<const char*>(parameter.data) + std::int64_t{i} * bytes;
    Values v = {};
    if (left < kE) {
      if (left > 0) v = load_cut<kE>(p, parameter.dtype, left);
    } else if (bytes == 4) {
#pragma unroll
      for (int e = 0; e < kE; e += 4) {
        const float4 w = *reinterpret_cast<const float4*>(p + 4 * e);
        v.f[e] = w.x, v.f[e + 1] = w.y, v.f[e + 2] = w.z, v.f[e + 3] = w.w;
      }
    } else {
      std::uint32_t words[kE / 2];
      if constexpr (kE == 8) {
        const uint4 w = *reinterpret_cast<const uint4*>(p);
        words[0] = w.x, words[1] = w.y, words[2] = w.z, words[3] = w.w;
      } else {
        const uint2 w = *reinterpret_cast<const uint2*>(p);
        words[0] = w.x, words[1] = w.y;
      }
#pragma unroll
      for (int e = 0; e < kE; e += 2) {
        const float2 pair = to_float2(words[e / 2], parameter.dtype);
        v.f[e] = pair.x, v.f[e + 1] = pair.y;
      }
    }
    return v;
  }
};

// Neighbouring threads have neighbouring elements, so that a warp's load is a few lines where the stride is 1.
struct StridedSlot {
  static constexpr int kE = 1;
  using Values = Floats<kE>;

  static __device__ __forceinline__ Values load(const char* data, std::int64_t stride, int i, int left, DType dtype) {
    return {left > 0 ? load_element(data + i * stride * float_bytes(dtype), dtype) : 0.f};
  }
  static __device__ __forceinline__ void store(char* data, std::int64_t stride, int i, int left, DType dtype,
                                               const Values& v) {
    if (left > 0) store_element(data + i * stride * float_bytes(dtype), v.f[0], dtype);
  }
  static __device__ __forceinline__ Values load_parameter(const Parameter& v, int i, int left) {
    return load(static_cast<const char*>(v.data), v.stride, i, left, v.dtype);
  }
};

}  // namespace strop::norm

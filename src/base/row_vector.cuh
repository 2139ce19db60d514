// Rows of 4- or 2-byte floats in vectors of up to 16 bytes a thread.
#pragma once

#include <cmath>
#include <cstdint>

#include "base/convert.cuh"
#include "base/ptx/memory.cuh"

namespace strop {

// A row of a tensor. Vector v of kElements is elements v * kElements and following; the last may be short.
struct Row {
  char* data;
  std::int64_t step;      // bytes from element to element
  std::int64_t elements;  // of the row
  bool aligned;           // dense and every vector aligned to its size; else elements are moved one by one
};

// kElements raw elements of kBytes each.
template <int kElements, int kBytes>
struct alignas(kElements* kBytes) Vector {
  static constexpr int kWords = kElements * kBytes / 4;
  static_assert(kWords == 2 || kWords == 4);
  std::uint32_t words[kWords];

  __device__ __forceinline__ void fill_negative_infinity(DType dtype) {
    const std::uint32_t w = kBytes == 4 ? 0xff800000u : dtype == DType::kBFloat16 ? 0xff80ff80u : 0xfc00fc00u;
#pragma unroll
    for (int i = 0; i < kWords; ++i) words[i] = w;
  }

  // Reads what exists of vector v, once (past L1); the rest stays.
  __device__ __forceinline__ void load(const Row& row, std::int64_t v) {
    const char* p = row.data + v * kElements * row.step;
    if (row.aligned && (v + 1) * kElements <= row.elements) {
      if constexpr (kWords == 4) {
        const uint4 w = ptx::load_once_u128(p);
        words[0] = w.x, words[1] = w.y, words[2] = w.z, words[3] = w.w;
      } else {
        const uint2 w = ptx::load_once_u64(p);
        words[0] = w.x, words[1] = w.y;
      }
      return;
    }
#pragma unroll
    for (int e = 0; e < kElements; ++e, p += row.step) {
      if (v * kElements + e >= row.elements) break;
      if constexpr (kBytes == 4) {
        words[e] = ptx::load_once_u32(p);
      } else {
        const std::uint32_t bits = ptx::load_once_u16(p);
        words[e / 2] = e % 2 ? (words[e / 2] & 0xffffu) | bits << 16 : (words[e / 2] & 0xffff0000u) | bits;
      }
    }
  }

  __device__ __forceinline__ void store(const Row& row, std::int64_t v) const {
    char* p = row.data + v * kElements * row.step;
    if (row.aligned && (v + 1) * kElements <= row.elements) {
      if constexpr (kWords == 4) {
        ptx::store_streaming_u128(p, {words[0], words[1], words[2], words[3]});
      } else {
        ptx::store_streaming_u64(p, {words[0], words[1]});
      }
      return;
    }
#pragma unroll
    for (int e = 0; e < kElements; ++e, p += row.step) {
      if (v * kElements + e >= row.elements) break;
      if constexpr (kBytes == 4) {
        ptx::store_streaming_u32(p, words[e]);
      } else {
        ptx::store_streaming_u16(p, e % 2 ? words[e / 2] >> 16 : words[e / 2]);
      }
    }
  }

  __device__ __forceinline__ void to_floats(float (&f)[kElements], DType dtype) const {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      if constexpr (kBytes == 4) {
        f[i] = __uint_as_float(words[i]);
      } else {
        const float2 pair = to_float2(words[i], dtype);
        f[2 * i] = pair.x, f[2 * i + 1] = pair.y;
      }
    }
  }

  __device__ __forceinline__ void from_floats(const float (&f)[kElements], DType dtype) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      if constexpr (kBytes == 4) {
        words[i] = __float_as_uint(f[i]);
      } else {
        words[i] = from_float2({f[2 * i], f[2 * i + 1]}, dtype);
      }
    }
  }

  // The largest element that is not NaN; two at a time for the 2-byte dtypes.
  __device__ __forceinline__ float max(DType dtype) const {
    if constexpr (kBytes == 4) {
      float m = __uint_as_float(words[0]);
#pragma unroll
      for (int i = 1; i < kWords; ++i) m = fmaxf(m, __uint_as_float(words[i]));
      return m;
    } else if (dtype == DType::kBFloat16) {
      return max_as<__nv_bfloat162>(dtype);
    } else {
      return max_as<__half2>(dtype);
    }
  }

 private:
  template <class Pair>
  __device__ __forceinline__ float max_as(DType dtype) const {
    Pair m = *reinterpret_cast<const Pair*>(&words[0]);
#pragma unroll
    for (int i = 1; i < kWords; ++i) m = __hmax2(m, *reinterpret_cast<const Pair*>(&words[i]));
    const float2 f = to_float2(*reinterpret_cast<const std::uint32_t*>(&m), dtype);
    return fmaxf(f.x, f.y);
  }
};

}  // namespace strop

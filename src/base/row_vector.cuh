// Rows of 4- or 2-byte floats, in vectors of up to 16 bytes a thread and single elements at the ends.
#pragma once

#include <cmath>
#include <cstdint>

#include "base/convert.cuh"
#include "base/ptx/memory.cuh"

namespace strop {

// A row of a tensor, cut into vectors of kE elements at addresses that are multiples of a vector's size. Vector v holds
// elements v * kE - shift and following. Those from full_begin to full_end lie in the row whole; what is left, at most
// one short vector at either end, or everything where the row is not dense, is moved by single elements.
struct Row {
  char* data = nullptr;
  std::int64_t step = 0;      // bytes from element to element
  std::int64_t elements = 0;  // of the row
  int shift = 0;
  int full_begin = 0, full_end = 0;

  template <int kE>
  static __device__ __forceinline__ Row make(char* data, std::int64_t step, std::int64_t elements, int bytes,
                                             bool dense) {
    Row r{data, step, elements, 0, 0, 0};
    if (dense) {
      r.shift = static_cast<int>(reinterpret_cast<std::uintptr_t>(data) / bytes % kE);
      r.full_begin = r.shift > 0;
      r.full_end = static_cast<int>((elements + r.shift) / kE);
    }
    return r;
  }
  __device__ __forceinline__ char* element(std::int64_t e) const { return data + e * step; }
  __device__ __forceinline__ bool has(std::int64_t e) const { return e >= 0 && e < elements; }
  // The first element of vector v of kE elements.
  template <int kE>
  __device__ __forceinline__ std::int64_t first_of(int v) const {
    return static_cast<std::int64_t>(v) * kE - shift;
  }
};

// kElements raw elements of kBytes each. kDType is their dtype, or kOther where it is known at run time alone.
template <int kElements, int kBytes, DType kDType = DType::kOther>
struct alignas(kElements* kBytes) Vector {
  static constexpr int kE = kElements, kSize = kBytes;
  static constexpr int kWords = kElements * kBytes / 4;
  static_assert(kWords == 2 || kWords == 4);
  std::uint32_t words[kWords];

  static __device__ __forceinline__ DType dtype(DType at_run_time) {
    return kBytes == 4 ? DType::kFloat32 : kDType == DType::kOther ? at_run_time : kDType;
  }

  // f in every element, exact of a small integer.
  static __device__ __forceinline__ Vector all(float f) {
    Vector v;
    float floats[kElements];
#pragma unroll
    for (float& e : floats) e = f;
    v.from_floats(floats, kDType);
    return v;
  }

  // At a multiple of its size; past L1.
  __device__ __forceinline__ void load(const char* p) {
    if constexpr (kWords == 4) {
      const uint4 w = ptx::load_once_u128(p);
      words[0] = w.x, words[1] = w.y, words[2] = w.z, words[3] = w.w;
    } else {
      const uint2 w = ptx::load_once_u64(p);
      words[0] = w.x, words[1] = w.y;
    }
  }
  __device__ __forceinline__ void store(char* p) const {
    if constexpr (kWords == 4) {
      ptx::store_streaming_u128(p, {words[0], words[1], words[2], words[3]});
    } else {
      ptx::store_streaming_u64(p, {words[0], words[1]});
    }
  }

  // Vector v of a row, one of the full ones.
  __device__ __forceinline__ void store(const Row& row, int v) const {
    store(row.data + static_cast<std::int64_t>(v) * sizeof(Vector) - row.shift * kBytes);
  }

  // A single element of the same dtype.
  static __device__ __forceinline__ float load_element(const Row& row, std::int64_t e, DType at_run_time) {
    const char* p = row.element(e);
    return to_float(kBytes == 4 ? ptx::load_once_u32(p) : ptx::load_once_u16(p), dtype(at_run_time));
  }
  static __device__ __forceinline__ void store_element(const Row& row, std::int64_t e, float f, DType at_run_time) {
    const std::uint32_t bits = from_float(f, dtype(at_run_time));
    if constexpr (kBytes == 4) {
      ptx::store_streaming_u32(row.element(e), bits);
    } else {
      ptx::store_streaming_u16(row.element(e), bits);
    }
  }

  __device__ __forceinline__ void fill_negative_infinity(DType at_run_time) {
    const DType d = dtype(at_run_time);
    const std::uint32_t w = kBytes == 4 ? 0xff800000u : d == DType::kBFloat16 ? 0xff80ff80u : 0xfc00fc00u;
#pragma unroll
    for (int i = 0; i < kWords; ++i) words[i] = w;
  }

  __device__ __forceinline__ void to_floats(float (&f)[kElements], DType at_run_time) const {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      if constexpr (kBytes == 4) {
        f[i] = __uint_as_float(words[i]);
      } else {
        const float2 pair = to_float2(words[i], dtype(at_run_time));
        f[2 * i] = pair.x, f[2 * i + 1] = pair.y;
      }
    }
  }

  __device__ __forceinline__ void from_floats(const float (&f)[kElements], DType at_run_time) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      if constexpr (kBytes == 4) {
        words[i] = __float_as_uint(f[i]);
      } else {
        words[i] = from_float2({f[2 * i], f[2 * i + 1]}, dtype(at_run_time));
      }
    }
  }

  // The largest element of kN vectors that is not NaN; two at a time for the 2-byte dtypes.
  template <int kN>
  static __device__ __forceinline__ float max(const Vector (&v)[kN], DType at_run_time) {
    if constexpr (kBytes == 4) {
      float m = __uint_as_float(v[0].words[0]);
#pragma unroll
      for (int i = 1; i < kN * kWords; ++i) m = fmaxf(m, __uint_as_float(v[i / kWords].words[i % kWords]));
      return m;
    } else if (dtype(at_run_time) == DType::kBFloat16) {
      return max_as<__nv_bfloat162>(v, DType::kBFloat16);
    } else {
      return max_as<__half2>(v, DType::kFloat16);
    }
  }

 private:
  template <class Pair, int kN>
  static __device__ __forceinline__ float max_as(const Vector (&v)[kN], DType d) {
    Pair m = *reinterpret_cast<const Pair*>(&v[0].words[0]);
#pragma unroll
    for (int i = 1; i < kN * kWords; ++i) {
      m = __hmax2(m, *reinterpret_cast<const Pair*>(&v[i / kWords].words[i % kWords]));
    }
    const float2 f = to_float2(*reinterpret_cast<const std::uint32_t*>(&m), d);
    return fmaxf(f.x, f.y);
  }
};

// Vectors that an end of a row cuts, or whose elements are not neighbours: elements first, first + 1, … one by one, as
// far as they are the row's. Rare, and kept out of the way: the usual path's instructions come from memory, too. All go
// by value, so that the caller's stay in registers.
template <class V>
__device__ __noinline__ V load_elements(Row row, std::int64_t first, DType dtype, float outside) {
  float f[V::kE];
#pragma unroll
  for (int e = 0; e < V::kE; ++e) {
    f[e] = row.has(first + e) ? V::load_element(row, first + e, dtype) : outside;
  }
  V v;
  v.from_floats(f, dtype);
  return v;
}
template <class V>
__device__ __noinline__ void store_elements(V v, Row row, std::int64_t first, DType dtype) {
  float f[V::kE];
  v.to_floats(f, dtype);
#pragma unroll
  for (int e = 0; e < V::kE; ++e) {
    if (row.has(first + e)) V::store_element(row, first + e, f[e], dtype);
  }
}

}  // namespace strop

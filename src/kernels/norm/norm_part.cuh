// What a thread holds of a row of s, the sum of its terms, and does with it.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/norm/norm_slot.cuh"
#include "kernels/norm/norm_tuning.h"

namespace strop::norm {

struct Args {
  Problem p;
  Tuning tuning;
  float inverse_n = 1;
};

struct Shared {
  float first[32], second[32];  // a warp's sums each
};

// What the sums of t and t^2 over a row say; LayerNorm's offset d, and 1 / sqrt(var + eps).
__device__ __forceinline__ void statistics(Kind kind, float inverse_n, float eps, float first, float second,
                                           float& offset, float& scale) {
  offset = kind == Kind::kLayer ? first * inverse_n : 0.f;
  const float variance = fmaf(-offset, offset, second * inverse_n);
  scale = rsqrtf((variance < 0.f ? 0.f : variance) + eps);  // NaN is not below 0
}

// The row that a number names; -1 for none.
__device__ __forceinline__ std::int64_t row_in(const Index& i, std::int64_t r) { return r >= 0 && r < i.rows ? r : -1; }

// The elements of one row that a thread holds: kFloats of them, from the row's element `base` on. Slot j of the thread
// is the (j * threads + rank)-th.
template <class Slot, int kFloats>
struct Part {
  static constexpr int kE = Slot::kE, kSlots = kFloats / kE;
  const Args& a;
  std::int64_t row;
  int base, rank;
  typename Slot::Values v[kSlots];

  __device__ __forceinline__ int index(int j) const { return base + (j * a.tuning.threads + rank) * kE; }
  __device__ __forceinline__ int left(int j) const { return static_cast<int>(a.p.n) - index(j); }
  __device__ __forceinline__ char* start(const Matrix& m, std::int64_t r) const {
    return static_cast<char*>(m.data) + r * m.stride_row * float_bytes(a.p.dtype);
  }
  // Which row of a term belongs to this one; -1 for none.
  __device__ __forceinline__ std::int64_t row_of(const Index& i) const {
    return i.numbers.data == nullptr ? row : row_in(i, i.numbers.at(row));
  }

  // s; 0 beyond the row's end.
  __device__ __forceinline__ void load() {
    const Term& x = a.p.terms[0];
    std::int64_t from = row_of(x.index);
    const char* data = start(x, from);
#pragma unroll
    for (int j = 0; j < kSlots; ++j) v[j] = Slot::load(data, x.stride, index(j), from < 0 ? 0 : left(j), a.p.dtype);
    bool none = from < 0;
#pragma unroll 1
    for (int k = 1; k < kMaxTerms && a.p.terms[k].data != nullptr; ++k) {
      const Term& y = a.p.terms[k];
      from = row_of(y.index);
      none |= from < 0;
      data = start(y, from);
#pragma unroll
      for (int j = 0; j < kSlots; ++j) {
        const auto r = Slot::load(data, y.stride, index(j), from < 0 ? 0 : left(j), a.p.dtype);
#pragma unroll
        for (int e = 0; e < kE; ++e) v[j].f[e] += r.f[e];
      }
    }
    if (none) {
#pragma unroll
      for (int j = 0; j < kSlots; ++j) {
#pragma unroll
        for (int e = 0; e < kE; ++e) v[j].f[e] = e < left(j) ? NAN : 0.f;
      }
    }
  }

  __device__ __forceinline__ void store(const Matrix& m) const {
#pragma unroll
    for (int j = 0; j < kSlots; ++j) Slot::store(start(m, row), m.stride, index(j), left(j), a.p.dtype, v[j]);
  }

  __device__ __forceinline__ float sum() const {
    float sum = 0;
#pragma unroll
    for (int j = 0; j < kSlots; ++j) {
#pragma unroll
      for (int e = 0; e < kE; ++e) sum += v[j].f[e];
    }
    return sum;
  }

  // From s to t = s - shift, adding up t and t^2; nothing beyond the row's end.
  __device__ __forceinline__ void shift(float shift, float& first, float& second) {
#pragma unroll
    for (int j = 0; j < kSlots; ++j) {
#pragma unroll
      for (int e = 0; e < kE; ++e) {
        const float t = e < left(j) ? v[j].f[e] - shift : 0.f;
        first += t, second = fmaf(t, t, second);
        v[j].f[e] = t;
      }
    }
  }

  // From t to out.
  __device__ __forceinline__ void normalize(float offset, float scale) {
#pragma unroll
    for (int j = 0; j < kSlots; ++j) {
      typename Slot::Values weight, bias = {};
#pragma unroll
      for (int e = 0; e < kE; ++e) weight.f[e] = 1;
      if (a.p.weight.data != nullptr) weight = Slot::load_parameter(a.p.weight, index(j), left(j));
      if (a.p.bias.data != nullptr) bias = Slot::load_parameter(a.p.bias, index(j), left(j));
#pragma unroll
      for (int e = 0; e < kE; ++e) v[j].f[e] = fmaf((v[j].f[e] - offset) * scale, weight.f[e], bias.f[e]);
    }
  }
};

}  // namespace strop::norm

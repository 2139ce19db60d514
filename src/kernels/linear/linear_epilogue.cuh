// What follows a product, on CUDA: bias, activation, gate and residual of a few columns in a thread's registers, shared
// by the kernels of the product and the one for products that a library made (linear_epilogue_kernel.cuh).
#pragma once

#include "base/convert.cuh"
#include "base/ptx/math.cuh"
#include "base/row_vector.cuh"
#include "base/strided_load.cuh"
#include "kernels/linear/linear.h"

namespace strop::lin {

// exp(x): 2 ulp and the rounding of the product, |x| units of 2^-24.
__device__ __forceinline__ float exp_of(float x) { return ptx::exp2_approx(x * 1.44269504f); }

// x Phi(x) = max(x, 0) - |x| Phi(-|x|), log2 Phi(-a) by a polynomial: Phi is off by at most 2.4e-7 for any a, and by
// 1.5e-4 of itself at a = 4, so 2-byte results are those of erf, for ten instructions instead of some 25. NaN stays;
// -inf gives -0, which is the limit.
__device__ __forceinline__ float gelu_of(float x) {
  const float a = fminf(fabsf(x), 12.f);  // the polynomial falls up to there
  float p = 3.14225181e-05f;
  p = fmaf(p, a, -7.43411365e-04f);
  p = fmaf(p, a, 7.96011928e-03f);
  p = fmaf(p, a, -5.31796142e-02f);
  p = fmaf(p, a, -4.58966762e-01f);
  p = fmaf(p, a, -1.15113580f);
  p = fmaf(p, a, -9.99999404e-01f);
  return fmaf(-a, ptx::exp2_approx(p), ptx::max_nan(x, 0.f));
}

// kShort: of 2-byte elements.
template <bool kShort, int kE>
__device__ __forceinline__ void activate(Activation activation, float (&x)[kE]) {
  switch (activation) {
    case Activation::kNone:
      return;
    case Activation::kRelu:
#pragma unroll
      for (float& v : x) v = v < 0.f ? 0.f : v;  // NaN stays
      return;
    case Activation::kGelu:
#pragma unroll
      for (float& v : x) v = kShort ? gelu_of(v) : 0.5f * v * (1.f + erff(v * 0.707106781f));
      return;
    case Activation::kGeluTanh:  // x (1 + tanh(z)) / 2 = x sigmoid(2 z), z = sqrt(2 / pi) (x + 0.044715 x^3)
#pragma unroll
      for (float& v : x) v = __fdividef(v, 1.f + exp_of(-v * fmaf(v * v, 0.0713548163f, 1.59576912f)));
      return;
    case Activation::kSilu:
#pragma unroll
      for (float& v : x) v = __fdividef(v, 1.f + exp_of(-v));
      return;
    case Activation::kTanh:
#pragma unroll
      for (float& v : x) v = tanhf(v);
      return;
  }
}

// What cannot be moved at once, element by element, `step` bytes apart: kept out of the way of the usual path's
// registers and instructions; by value, so that the caller's values stay in registers.
template <int kE>
struct Floats {
  float f[kE];
};
template <int kE>
__device__ __noinline__ Floats<kE> load_elements(const char* p, std::int64_t step, DType dtype, unsigned inside) {
  Floats<kE> v = {};
#pragma unroll
  for (int i = 0; i < kE; ++i, p += step) {
    if ((inside >> i & 1) == 0) continue;
    v.f[i] = dtype == DType::kFloat32 ? *reinterpret_cast<const float*>(p)
                                      : to_float(*reinterpret_cast<const std::uint16_t*>(p), dtype);
  }
  return v;
}
template <int kE>
__device__ __noinline__ void store_elements(char* p, std::int64_t step, DType dtype, unsigned inside, Floats<kE> v) {
#pragma unroll
  for (int i = 0; i < kE; ++i, p += step) {
    if ((inside >> i & 1) == 0) continue;
    if (dtype == DType::kFloat32) {
      *reinterpret_cast<float*>(p) = v.f[i];
    } else {
      *reinterpret_cast<std::uint16_t*>(p) = static_cast<std::uint16_t>(from_float(v.f[i], dtype));
    }
  }
}

// kE columns that a thread has of some rows, `step` apart.
template <int kE>
struct Columns {
  static constexpr int kBytes = 16 / kE;  // of an element, where they make a vector
  std::int64_t first;
  int step;
  unsigned inside;  // a bit for each column that is there
  bool vector;      // all are, and are moved at once
  float bias[2][kE];

  Columns() = default;
  // `vectors`: matrices can be moved by 16 bytes, of columns from a multiple of kE on.
  __device__ __forceinline__ Columns(const Epilogue& e, std::int64_t first, int step, bool vectors)
      : first(first), step(step), inside(0) {
#pragma unroll
    for (int i = 0; i < kE; ++i) inside |= static_cast<unsigned>(first + i * step < e.n) << i;
    vector = vectors && inside == (1u << kE) - 1;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Vector& b = e.bias[half];
      const int bytes = float_bytes(b.dtype);
      std::uint32_t raw[kE] = {};
      if (b.data != nullptr) {
        load_strided<kE>(raw, static_cast<const char*>(b.data) + first * b.stride * bytes, step * b.stride * bytes,
                         bytes, inside);
      }
#pragma unroll
      for (int i = 0; i < kE; ++i) bias[half][i] = to_float(raw[i], b.dtype);  // 0 of any dtype's bits of 0
    }
  }

  __device__ __forceinline__ char* at(const Matrix& m, DType dtype, std::int64_t row) const {
    return static_cast<char*>(m.data) + (row * m.stride_row + first * m.stride) * float_bytes(dtype);
  }
  __device__ __forceinline__ std::int64_t step_of(const Matrix& m, DType dtype) const {
    return step * m.stride * float_bytes(dtype);
  }
  // Not through the read-only cache: the memory may be that of out.
  __device__ __forceinline__ void load(const Matrix& m, DType dtype, std::int64_t row, float (&f)[kE]) const {
    const char* const p = at(m, dtype, row);
    if (vector) {
      const uint4 w = *reinterpret_cast<const uint4*>(p);
      const strop::Vector<kE, kBytes> v = {w.x, w.y, w.z, w.w};
      v.to_floats(f, dtype);
    } else {
      const Floats<kE> v = load_elements<kE>(p, step_of(m, dtype), dtype, inside);
#pragma unroll
      for (int i = 0; i < kE; ++i) f[i] = v.f[i];
    }
  }
  __device__ __forceinline__ void store(const Matrix& m, DType dtype, std::int64_t row, const float (&f)[kE]) const {
    char* const p = at(m, dtype, row);
    if (vector) {
      strop::Vector<kE, kBytes> v;
      v.from_floats(f, dtype);
      *reinterpret_cast<uint4*>(p) = make_uint4(v.words[0], v.words[1], v.words[2], v.words[3]);
    } else {
      Floats<kE> v;
#pragma unroll
      for (int i = 0; i < kE; ++i) v.f[i] = f[i];
      store_elements<kE>(p, step_of(m, dtype), dtype, inside, v);
    }
  }

  // Of the products y0 and, gated, y1 of a row; y0 is changed.
  __device__ __forceinline__ void finish(const Epilogue& e, std::int64_t row, float (&y0)[kE],
                                         const float (&y1)[kE]) const {
#pragma unroll
    for (int i = 0; i < kE; ++i) y0[i] += bias[0][i];
    activate<kE == 8>(e.activation, y0);
    if (e.gated) {
#pragma unroll
      for (int i = 0; i < kE; ++i) y0[i] *= y1[i] + bias[1][i];
    }
    if (e.residual.data != nullptr) {
      float residual[kE];
      load(e.residual, e.dtype, row, residual);
#pragma unroll
      for (int i = 0; i < kE; ++i) y0[i] += residual[i];
    }
    store(e.out, e.dtype, row, y0);
  }
};

}  // namespace strop::lin

// What follows a product, on CUDA: bias, activation, gate and residual of a few columns in a thread's registers, shared
// by the kernels of the product; and a kernel of its own for products that a library made.
//
// Floor of the latter. y and out once, and the residual: 2 M N elements. 4096 x 3072 in fp16: 50 MB, 15 us on an H100
// (3.35 TB/s). A thread has one vector of columns of four rows, and their biases in registers.
#pragma once

#include "base/convert.cuh"
#include "base/ptx/grid.cuh"
#include "base/ptx/math.cuh"
#include "base/row_vector.cuh"
#include "base/strided_load.cuh"
#include "kernels/linear/linear.h"

namespace strop::lin {

// exp(x): 2 ulp and the rounding of the product, |x| units of 2^-24.
__device__ __forceinline__ float exp_of(float x) { return ptx::exp2_approx(x * 1.44269504f); }

template <int kE>
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
      for (float& v : x) v = 0.5f * v * (1.f + erff(v * 0.707106781f));
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
    activate(e.activation, y0);
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

// ---- The epilogue alone ---------------------------------------------------------------------------------------------

inline constexpr int kEpilogueThreads = 256, kEpilogueRows = 32;  // of a block; 32 vectors wide

struct EpilogueArgs {
  Epilogue e;
  Matrix y[2];
  bool vectors = false;
  unsigned column_blocks = 1;
};

// Where nothing can be moved in vectors, neighbouring lanes have neighbouring elements.
template <int kE>
__global__ void __launch_bounds__(kEpilogueThreads, 3) linear_epilogue_kernel(const __grid_constant__ EpilogueArgs a) {
  ptx::wait_for_previous_kernel();
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x % a.column_blocks) * 32 * kE;
  const Columns<kE> columns(a.e, column + (a.vectors ? lane * kE : lane), a.vectors ? 1 : 32, a.vectors);
  if (columns.inside == 0) return;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x / a.column_blocks) * kEpilogueRows;
#pragma unroll 1
  for (int i = warp; i < kEpilogueRows; i += kEpilogueThreads / 32) {
    if (first + i >= a.e.m) break;
    float y0[kE], y1[kE] = {};
    columns.load(a.y[0], a.e.dtype, first + i, y0);
    if (a.e.gated) columns.load(a.y[1], a.e.dtype, first + i, y1);
    columns.finish(a.e, first + i, y0, y1);
  }
}

}  // namespace strop::lin

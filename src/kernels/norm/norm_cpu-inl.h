// LayerNorm and RMSNorm on the CPU, the SIMD part: a range of rows. norm_cpu.cc cuts the work up and includes this
// once for each instruction set.
#if defined(STROP_NORM_CPU_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef STROP_NORM_CPU_INL_H_
#undef STROP_NORM_CPU_INL_H_
#else
#define STROP_NORM_CPU_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "base/simd-inl.h"
#include "base/stage-inl.h"
#include "kernels/norm/norm.h"
#include "kernels/norm/norm_dense_cpu-inl.h"
#include "kernels/norm/norm_sums_cpu-inl.h"

HWY_BEFORE_NAMESPACE();
namespace strop::norm {
namespace HWY_NAMESPACE {
using namespace strop::HWY_NAMESPACE;  // NOLINT(google-build-using-namespace)

// Elements handled at a time. A row of one tile is read once; of a longer one each pass reads all tiles again.
constexpr std::int64_t kTile = 4096;

// What follows the elements in a tile, so that the last vector is whole.
inline std::size_t padded(std::size_t n) {
  const std::size_t lanes = hn::Lanes(Float());
  return (n + lanes - 1) / lanes * lanes;
}

// A term of s of a tile in fp32.
HWY_INLINE void load_term(const Problem& p, const Term& t, std::int64_t row, std::int64_t begin, std::size_t n,
                          float* to) {
  if (t.index.numbers.data != nullptr) {
    row = t.index.numbers.at(row);
    if (row < 0 || row >= t.index.rows) {
      std::fill(to, to + n, std::numeric_limits<float>::quiet_NaN());
      return;
    }
  }
  stage(t.data, p.dtype, row * t.stride_row + begin * t.stride, t.stride, n, to);
}

// s of a tile in fp32; `rest` is scratch.
HWY_INLINE void load_sums(const Problem& p, std::int64_t row, std::int64_t begin, std::size_t n, float* s,
                          float* rest) {
  const Float f;
  load_term(p, p.terms[0], row, begin, n, s);
  for (int k = 1; k < kMaxTerms && p.terms[k].data != nullptr; ++k) {
    load_term(p, p.terms[k], row, begin, n, rest);
    for (std::size_t i = 0; i < n; i += hn::Lanes(f))
      hn::Store(hn::Add(hn::Load(f, s + i), hn::Load(f, rest + i)), f, s + i);
  }
}

// weight or bias of a tile in fp32.
HWY_INLINE void load_parameter(const Parameter& v, std::int64_t begin, std::size_t n, float none, float* to) {
  if (v.data == nullptr) {
    std::fill(to, to + n, none);
  } else {
    stage(v.data, v.dtype, begin * v.stride, v.stride, n, to);
  }
}

// A thread's own. Zeros, so that what follows a row's end in its last vector is a number.
struct Scratch {
  HWY_ALIGN float s[kTile + hn::MaxLanes(Float())] = {}, y[kTile + hn::MaxLanes(Float())] = {};
  HWY_ALIGN float weight[kTile + hn::MaxLanes(Float())] = {}, bias[kTile + hn::MaxLanes(Float())] = {};
};

// Rows [first, end) of any layout and length.
inline void norm_any(const Problem& p, std::int64_t first, std::int64_t end, Scratch& t) {
  const Float f;
  float *const s = t.s, *const y = t.y;
  const double inverse_n = 1.0 / static_cast<double>(p.n);
  const bool one_tile = p.n <= kTile;
  const auto tile_size = [&](std::int64_t begin) { return static_cast<std::size_t>(std::min(kTile, p.n - begin)); };
  const auto load_parameters = [&](std::int64_t begin) {
    load_parameter(p.weight, begin, tile_size(begin), 1, t.weight);
    load_parameter(p.bias, begin, tile_size(begin), 0, t.bias);
  };
  if (one_tile) load_parameters(0);
  for (std::int64_t row = first; row < end; ++row) {
    if (one_tile) load_sums(p, row, 0, tile_size(0), s, y);
    const auto sum_row = [&](float shift) {
      Sums sums;
      for (std::int64_t begin = 0; begin < p.n; begin += kTile) {
        if (!one_tile) load_sums(p, row, begin, tile_size(begin), s, y);
        const Sums tile = sum_differences(s, tile_size(begin), shift);
        sums.first += tile.first, sums.second += tile.second;
      }
      return sums;
    };
    const float mean = p.kind == Kind::kLayer ? static_cast<float>(sum_row(0).first * inverse_n) : 0.f;
    const Moments moments = moments_of(p, mean, sum_row);
    const auto m = hn::Set(f, mean), d = hn::Set(f, moments.offset), r = hn::Set(f, moments.scale);
    for (std::int64_t begin = 0; begin < p.n; begin += kTile) {
      const std::size_t n = tile_size(begin);
      if (!one_tile) {
        load_sums(p, row, begin, n, s, y);
        load_parameters(begin);
      }
      if (p.residual_out.data != nullptr) {
        const Matrix& to = p.residual_out;
        unstage(s, n, to.data, p.dtype, row * to.stride_row + begin * to.stride, to.stride);
      }
      for (std::size_t i = 0; i < padded(n); i += hn::Lanes(f)) {
        const auto z = hn::Mul(hn::Sub(hn::Sub(hn::Load(f, s + i), m), d), r);
        hn::Store(hn::MulAdd(z, hn::Load(f, t.weight + i), hn::Load(f, t.bias + i)), f, y + i);
      }
      unstage(y, n, p.out.data, p.dtype, row * p.out.stride_row + begin * p.out.stride, p.out.stride);
    }
  }
}

// A parameter of a row of one tile in fp32: where it lies, if it is that already, else in `to`.
inline const float* parameter_of(const Parameter& v, std::int64_t n, float none, float* to) {
  if (v.data != nullptr && v.dtype == DType::kFloat32 && v.stride == 1) return static_cast<const float*>(v.data);
  load_parameter(v, 0, static_cast<std::size_t>(n), none, to);
  return to;
}

template <class E>
inline void norm_dense_of(const Problem& p, std::int64_t first, std::int64_t end, Scratch& t) {
  const float *const weight = parameter_of(p.weight, p.n, 1, t.weight), *const bias =
                                                                            parameter_of(p.bias, p.n, 0, t.bias);
  const auto slow = [&](std::int64_t row) { norm_any(p, row, row + 1, t); };
  if (p.terms[1].data == nullptr) return norm_dense<E, 1>(p, first, end, weight, bias, t.s, slow);
  if (p.terms[2].data == nullptr) return norm_dense<E, 2>(p, first, end, weight, bias, t.s, slow);
  norm_dense<E, 3>(p, first, end, weight, bias, t.s, slow);
}

// Rows [first, end).
inline void norm_rows_of(const Problem& p, std::int64_t first, std::int64_t end) {
  static thread_local Scratch t;
  bool dense = p.n <= kTile && p.out.stride == 1 && (p.residual_out.data == nullptr || p.residual_out.stride == 1);
  for (const Term& term : p.terms) dense = dense && (term.data == nullptr || term.stride == 1);
  if (!dense) return norm_any(p, first, end, t);
  if (p.dtype == DType::kFloat32) return norm_dense_of<F32>(p, first, end, t);
  if (p.dtype == DType::kFloat16) return norm_dense_of<F16>(p, first, end, t);
  norm_dense_of<BF16>(p, first, end, t);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace strop::norm
HWY_AFTER_NAMESPACE();

#endif  // STROP_NORM_CPU_INL_H_

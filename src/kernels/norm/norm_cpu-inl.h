// LayerNorm and RMSNorm on the CPU, the SIMD part: a range of rows. norm_cpu.cc cuts the work up and includes this
// once for each instruction set.
#if defined(STROP_NORM_CPU_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef STROP_NORM_CPU_INL_H_
#undef STROP_NORM_CPU_INL_H_
#else
#define STROP_NORM_CPU_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "base/simd-inl.h"
#include "base/stage-inl.h"
#include "kernels/norm/norm.h"

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

// Sums of t = s - shift and of t^2 over a tile. A chain of fp32 additions is a quarter of the tile's vectors long, 256
// at most; the lanes meet in double.
struct Sums {
  double first = 0, second = 0;
};
HWY_INLINE Sums sum_differences(const float* s, std::size_t n, float shift) {
  const Float f;
  const std::size_t lanes = hn::Lanes(f);
  const auto m = hn::Set(f, shift);
  auto a0 = hn::Zero(f), a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0, b3 = a0;
  const auto add = [&](std::size_t i, auto& a, auto& b) HWY_ATTR {
    const auto t = hn::Sub(hn::Load(f, s + i), m);
    a = hn::Add(a, t);
    b = hn::MulAdd(t, t, b);
  };
  std::size_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    add(i, a0, b0);
    add(i + lanes, a1, b1);
    add(i + 2 * lanes, a2, b2);
    add(i + 3 * lanes, a3, b3);
  }
  for (; i + lanes <= n; i += lanes) add(i, a0, b0);
  if (i < n) {
    const auto inside = hn::FirstN(f, n - i);
    const auto t = hn::IfThenElseZero(inside, hn::Sub(hn::Load(f, s + i), m));
    a1 = hn::Add(a1, t);
    b1 = hn::MulAdd(t, t, b1);
  }
  return {sum_lanes(hn::Add(hn::Add(a0, a1), hn::Add(a2, a3))), sum_lanes(hn::Add(hn::Add(b0, b1), hn::Add(b2, b3)))};
}

// weight or bias of a tile in fp32.
HWY_INLINE void load_parameter(const Parameter& v, std::int64_t begin, std::size_t n, float none, float* to) {
  if (v.data == nullptr) {
    std::fill(to, to + n, none);
  } else {
    stage(v.data, v.dtype, begin * v.stride, v.stride, n, to);
  }
}

// Rows [first, end).
inline void norm_rows_of(const Problem& p, std::int64_t first, std::int64_t end) {
  const Float f;
  HWY_ALIGN float s[kTile + hn::MaxLanes(Float())], y[kTile + hn::MaxLanes(Float())];
  HWY_ALIGN float weight[kTile + hn::MaxLanes(Float())], bias[kTile + hn::MaxLanes(Float())];
  // Zeros, so that what follows a row's end in its last vector is a number. As far as a row reaches and no further: to
  // clear all 64 KiB takes longer than a short row.
  const auto used = static_cast<std::ptrdiff_t>(padded(static_cast<std::size_t>(std::min(kTile, p.n))));
  for (float* const tile : {s, y, weight, bias}) std::fill(tile, tile + used, 0.0F);
  const double inverse_n = 1.0 / static_cast<double>(p.n);
  const bool one_tile = p.n <= kTile;
  const auto tile_size = [&](std::int64_t begin) { return static_cast<std::size_t>(std::min(kTile, p.n - begin)); };
  const auto load_parameters = [&](std::int64_t begin) {
    load_parameter(p.weight, begin, tile_size(begin), 1, weight);
    load_parameter(p.bias, begin, tile_size(begin), 0, bias);
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
    float mean = 0, offset = 0;
    Sums sums = sum_row(0);
    if (p.kind == Kind::kLayer) {
      mean = static_cast<float>(sums.first * inverse_n);
      sums = sum_row(mean);
      const double d = sums.first * inverse_n;
      offset = static_cast<float>(d);
      const double variance = sums.second * inverse_n - d * d;
      sums.second = variance < 0 ? 0 : variance * static_cast<double>(p.n);  // not for NaN, which stays
    }
    const double scale = 1 / std::sqrt(sums.second * inverse_n + static_cast<double>(p.eps));
    const auto m = hn::Set(f, mean), d = hn::Set(f, offset), r = hn::Set(f, static_cast<float>(scale));
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
        hn::Store(hn::MulAdd(z, hn::Load(f, weight + i), hn::Load(f, bias + i)), f, y + i);
      }
      unstage(y, n, p.out.data, p.dtype, row * p.out.stride_row + begin * p.out.stride, p.out.stride);
    }
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace strop::norm
HWY_AFTER_NAMESPACE();

#endif  // STROP_NORM_CPU_INL_H_

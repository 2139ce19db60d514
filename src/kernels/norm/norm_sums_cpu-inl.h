// What normalisation on the CPU needs to know of a row: sums of differences, and mean and scale from them. Compiled
// once for each instruction set.
#if defined(STROP_NORM_SUMS_CPU_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef STROP_NORM_SUMS_CPU_INL_H_
#undef STROP_NORM_SUMS_CPU_INL_H_
#else
#define STROP_NORM_SUMS_CPU_INL_H_
#endif

#include <cmath>
#include <cstddef>

#include "base/simd-inl.h"
#include "kernels/norm/norm.h"

HWY_BEFORE_NAMESPACE();
namespace strop::norm {
namespace HWY_NAMESPACE {
using namespace strop::HWY_NAMESPACE;  // NOLINT(google-build-using-namespace)

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

// out = ((s - mean) - offset) scale.
struct Moments {
  float mean, offset, scale;
};

// `mean` is the first step's, 0 for RMSNorm; sums(shift) gives the row's Sums of s - shift.
template <class F>
HWY_INLINE Moments moments_of(const Problem& p, float mean, F&& sums) {
  const double inverse_n = 1.0 / static_cast<double>(p.n);
  const Sums of = sums(mean);
  double square = of.second * inverse_n;
  float offset = 0;
  if (p.kind == Kind::kLayer) {
    const double d = of.first * inverse_n;
    offset = static_cast<float>(d);
    square -= d * d;
    if (square < 0) square = 0;  // not NaN, which stays
  }
  return {mean, offset, static_cast<float>(1 / std::sqrt(square + static_cast<double>(p.eps)))};
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace strop::norm
HWY_AFTER_NAMESPACE();

#endif  // STROP_NORM_SUMS_CPU_INL_H_

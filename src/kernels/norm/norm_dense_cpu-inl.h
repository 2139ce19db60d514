// Normalisation on the CPU of rows that are dense and fit into one tile: what norm_cpu-inl.h does for any layout, in
// three passes over a row. The first reads the terms, stores their sum (to the scratch row, in the first-level cache,
// and to residual_out) and adds up for the mean; the second adds up differences; the third writes. Nothing is copied
// that can be read in place, and nothing is done for inputs that are not there. Compiled once for each instruction set.
#if defined(STROP_NORM_DENSE_CPU_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef STROP_NORM_DENSE_CPU_INL_H_
#undef STROP_NORM_DENSE_CPU_INL_H_
#else
#define STROP_NORM_DENSE_CPU_INL_H_
#endif

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "base/simd-inl.h"
#include "base/stage-inl.h"
#include "kernels/norm/norm.h"
#include "kernels/norm/norm_sums_cpu-inl.h"

HWY_BEFORE_NAMESPACE();
namespace strop::norm {
namespace HWY_NAMESPACE {
using namespace strop::HWY_NAMESPACE;  // NOLINT(google-build-using-namespace)

// One row's memory, element by element.
template <class E>
struct DenseRow {
  const typename E::Type* terms[kMaxTerms];
  typename E::Type *out, *sum;  // sum is null where it is not wanted
};

// s to `to`, zeros behind n up to a whole vector, and to row.sum; returns the sum of s.
template <class E, int kTerms>
HWY_INLINE double add_terms(const DenseRow<E>& row, std::size_t n, float* HWY_RESTRICT to) {
  const Float f;
  const E e;
  const std::size_t lanes = hn::Lanes(f);
  auto a0 = hn::Zero(f), a1 = a0, a2 = a0, a3 = a0;
  const auto add = [&](std::size_t i, FloatVec& a) HWY_ATTR {
    auto s = load(e, row.terms[0] + i);
    if constexpr (kTerms > 1) s = hn::Add(s, load(e, row.terms[1] + i));
    if constexpr (kTerms > 2) s = hn::Add(s, load(e, row.terms[2] + i));
    if (row.sum != nullptr) store(e, s, row.sum + i);
    hn::Store(s, f, to + i);
    a = hn::Add(a, s);
  };
  std::size_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes)
    add(i, a0), add(i + lanes, a1), add(i + 2 * lanes, a2), add(i + 3 * lanes, a3);
  for (; i + lanes <= n; i += lanes) add(i, a0);
  if (i < n) {
    hn::Store(hn::Zero(f), f, to + i);
    for (std::size_t k = i; k < n; ++k) {
      to[k] = to_float(e, row.terms[0][k]);
      for (int t = 1; t < kTerms; ++t) to[k] += to_float(e, row.terms[t][k]);
    }
    if (row.sum != nullptr) unstage(e, to + i, n - i, row.sum + i, 1);
    a1 = hn::Add(a1, hn::Load(f, to + i));
  }
  return sum_lanes(hn::Add(hn::Add(a0, a1), hn::Add(a2, a3)));
}

// Rows [first, end); weight and bias are of whole vectors, but for the last one where they are the caller's own.
// `slow(row)` is for rows of which an index names none.
template <class E, int kTerms, class Slow>
inline void norm_dense(const Problem& p, std::int64_t first, std::int64_t end, const float* weight, const float* bias,
                       float* HWY_RESTRICT s, Slow&& slow) {
  const Float f;
  const E e;
  const std::size_t lanes = hn::Lanes(f), n = static_cast<std::size_t>(p.n);
  const double inverse_n = 1.0 / static_cast<double>(p.n);
  for (std::int64_t r = first; r < end; ++r) {
    DenseRow<E> row;
    bool named = true;
    for (int k = 0; k < kTerms; ++k) {
      const Term& t = p.terms[k];
      std::int64_t at = r;
      if (t.index.numbers.data != nullptr) {
        at = t.index.numbers.at(r);
        named = named && at >= 0 && at < t.index.rows;
      }
      row.terms[k] = element<E>(static_cast<const void*>(t.data), named ? at * t.stride_row : 0);
    }
    if (!named) {
      slow(r);
      continue;
    }
    row.out = element<E>(p.out.data, r * p.out.stride_row);
    row.sum = p.residual_out.data == nullptr ? nullptr : element<E>(p.residual_out.data, r * p.residual_out.stride_row);
    const double total = add_terms<E, kTerms>(row, n, s);
    const bool layer = p.kind == Kind::kLayer;
    const Moments moments = moments_of(p, layer ? static_cast<float>(total * inverse_n) : 0.f,
                                       [&](float shift) { return sum_differences(s, n, shift); });
    const auto m = hn::Set(f, moments.mean), d = hn::Set(f, moments.offset), scale = hn::Set(f, moments.scale);
    const auto result = [&](std::size_t i, FloatVec w, FloatVec b) HWY_ATTR {
      return hn::MulAdd(hn::Mul(hn::Sub(hn::Sub(hn::Load(f, s + i), m), d), scale), w, b);
    };
    std::size_t i = 0;
    for (; i + lanes <= n; i += lanes)
      store(e, result(i, hn::LoadU(f, weight + i), hn::LoadU(f, bias + i)), row.out + i);
    if (i < n) {
      HWY_ALIGN float w[hn::MaxLanes(Float())] = {}, b[hn::MaxLanes(Float())] = {};
      for (std::size_t k = i; k < n; ++k) w[k - i] = weight[k], b[k - i] = bias[k];
      hn::Store(result(i, hn::Load(f, w), hn::Load(f, b)), f, s + i);
      unstage(e, s + i, n - i, row.out + i, 1);
    }
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace strop::norm
HWY_AFTER_NAMESPACE();

#endif  // STROP_NORM_DENSE_CPU_INL_H_

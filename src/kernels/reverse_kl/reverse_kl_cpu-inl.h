// Reverse KL on the CPU, the SIMD part: sums over, and gradients of, a range of one row's vocabulary.
// reverse_kl_cpu.cc cuts the work up and includes this once for each instruction set.
#if defined(STROP_REVERSE_KL_CPU_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef STROP_REVERSE_KL_CPU_INL_H_
#undef STROP_REVERSE_KL_CPU_INL_H_
#else
#define STROP_REVERSE_KL_CPU_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "base/simd-inl.h"
#include "base/stage-inl.h"
#include "kernels/reverse_kl/reverse_kl.h"
#include "kernels/reverse_kl/reverse_kl_row.h"

HWY_BEFORE_NAMESPACE();
namespace strop::reverse_kl {
namespace HWY_NAMESPACE {
using namespace strop::HWY_NAMESPACE;  // NOLINT(google-build-using-namespace)

// Logits handled at a time: both halves stay in the L1 cache between the search for the maxima and the sums.
constexpr std::size_t kTile = std::min<std::size_t>(1024, 256 * hn::MaxLanes(Float()));

// e = exp(x - x_reference) and d = (x - x_reference) - (y - y_reference), d set to 0 where e is: a term without mass
// is 0 even where its logits are infinite. (Eq, as Ne is false for NaN on some instruction sets.)
struct Term {
  FloatVec e, d;
};
HWY_INLINE Term term(FloatVec x, FloatVec y) {
  const auto e = exp_nonpositive(x);
  return {e, hn::IfThenZeroElse(hn::Eq(e, hn::Zero(Float())), hn::Sub(x, y))};
}

// Sums over the logits seen so far, relative to the largest of them; rescaled when a larger one comes.
class Accumulator {
 public:
  // Written out: compilers do not apply the instruction set to member initializers.
  HWY_INLINE Accumulator() {
    x_sum_ = hn::Zero(Float());
    y_sum_ = hn::Zero(Float());
    product_ = hn::Zero(Float());
  }

  template <class E>
  HWY_INLINE void add(E e, const typename E::Type* x, const typename E::Type* y, std::size_t n) {
    const Float f;
    const std::size_t lanes = hn::Lanes(f);
    auto x_max = hn::Set(f, kNone), y_max = x_max;
    for (std::size_t i = 0; i < n; i += lanes) {
      x_max = hn::Max(x_max, load(e, x + i));
      y_max = hn::Max(y_max, load(e, y + i));
    }
    raise(hn::GetLane(hn::MaxOfLanes(f, x_max)), hn::GetLane(hn::MaxOfLanes(f, y_max)));
    const auto x_reference = hn::Set(f, reference(x_max_)), y_reference = hn::Set(f, reference(y_max_));
    // A tile's own sums first: fewer roundings than one long chain.
    auto x_sum = hn::Zero(f), y_sum = x_sum, product = x_sum;
    for (std::size_t i = 0; i < n; i += lanes) {
      const auto a = hn::Sub(load(e, x + i), x_reference), b = hn::Sub(load(e, y + i), y_reference);
      const Term t = term(a, b);
      x_sum = hn::Add(x_sum, t.e);
      y_sum = hn::Add(y_sum, exp_nonpositive(b));
      product = hn::MulAdd(t.e, t.d, product);
    }
    x_sum_ = hn::Add(x_sum_, x_sum);
    y_sum_ = hn::Add(y_sum_, y_sum);
    product_ = hn::Add(product_, product);
  }

  HWY_INLINE Sums sums() const { return {x_max_, y_max_, sum_lanes(x_sum_), sum_lanes(y_sum_), sum_lanes(product_)}; }

 private:
  // NaN raises nothing; the sums become NaN by themselves.
  HWY_INLINE void raise(float x_max, float y_max) {
    const Float f;
    if (x_max > x_max_) {
      const float scale = x_max_ == kNone ? 0.0F : std::exp(x_max_ - x_max);
      // All mass so far may have become nothing; infinite terms go with it.
      product_ = scale == 0
                     ? hn::Zero(f)
                     : hn::Mul(hn::Set(f, scale), hn::MulAdd(x_sum_, hn::Set(f, reference(x_max_) - x_max), product_));
      x_sum_ = hn::Mul(x_sum_, hn::Set(f, scale));
      x_max_ = x_max;
    }
    if (y_max > y_max_) {
      const float scale = y_max_ == kNone ? 0.0F : std::exp(y_max_ - y_max);
      product_ = hn::MulAdd(x_sum_, hn::Set(f, y_max - reference(y_max_)), product_);
      y_sum_ = hn::Mul(y_sum_, hn::Set(f, scale));
      y_max_ = y_max;
    }
  }

  float x_max_ = kNone, y_max_ = kNone;
  FloatVec x_sum_, y_sum_, product_;
};

// grad = weight e / x_sum (d - mean), where mean = kl + log x_sum - log y_sum
template <class E>
HWY_INLINE void gradients(E e, const typename E::Type* x, const typename E::Type* y, std::size_t n,
                          const RowGradient& row, typename E::Type* grad) {
  const Float f;
  const auto x_reference = hn::Set(f, row.x_reference), y_reference = hn::Set(f, row.y_reference);
  const auto scale = hn::Set(f, row.scale), mean = hn::Set(f, row.mean);
  for (std::size_t i = 0; i < n; i += hn::Lanes(f)) {
    const Term t = term(hn::Sub(load(e, x + i), x_reference), hn::Sub(load(e, y + i), y_reference));
    const auto g = hn::Mul(hn::Mul(t.e, scale), hn::Sub(t.d, mean));
    store(e, hn::IfThenZeroElse(hn::Eq(t.e, hn::Zero(f)), g), grad + i);
  }
}

constexpr float minus_infinity(F32) { return kNone; }
constexpr std::uint16_t minus_infinity(F16) { return 0xfc00; }
constexpr std::uint16_t minus_infinity(BF16) { return 0xff80; }

// Calls f(x, y, padded, v, n) over [begin, end) of a row: logits v … v + n - 1 side by side, followed by -inf up to
// `padded`, a multiple of the lanes. With kStaged, E is F32 and they are copies.
template <class E, bool kStaged, class F>
HWY_INLINE void for_each_tile(const Logits& student, const Logits& teacher, std::int64_t x_row, std::int64_t y_row,
                              std::int64_t begin, std::int64_t end, F&& f) {
  using T = typename E::Type;
  const std::size_t lanes = hn::Lanes(Float());
  constexpr std::size_t kCopies = kStaged ? kTile : hn::MaxLanes(Float());
  HWY_ALIGN T x[kCopies], y[kCopies];
  for (std::int64_t v = begin; v < end;) {
    auto n = static_cast<std::size_t>(std::min<std::int64_t>(kTile, end - v));
    if constexpr (kStaged) {
      stage(student.data, student.dtype, x_row + v * student.stride_vocab, student.stride_vocab, n, x);
      stage(teacher.data, teacher.dtype, y_row + v * teacher.stride_vocab, teacher.stride_vocab, n, y);
    } else if (n >= lanes) {
      n -= n % lanes;
      f(element<E>(student.data, x_row + v), element<E>(teacher.data, y_row + v), n, v, n);
      v += static_cast<std::int64_t>(n);
      continue;
    } else {
      std::memcpy(x, element<E>(student.data, x_row + v), n * sizeof(T));
      std::memcpy(y, element<E>(teacher.data, y_row + v), n * sizeof(T));
    }
    const std::size_t padded = (n + lanes - 1) / lanes * lanes;
    std::fill(x + n, x + padded, minus_infinity(E()));
    std::fill(y + n, y + padded, minus_infinity(E()));
    f(x, y, padded, v, n);
    v += static_cast<std::int64_t>(n);
  }
}

inline std::int64_t offset_of(const Logits& logits, std::int64_t o, std::int64_t i) {
  return o * logits.stride_outer + i * logits.stride_inner;
}

template <class E, bool kStaged>
Sums sums_of_range(const Problem& p, std::int64_t o, std::int64_t i, std::int64_t begin, std::int64_t end) {
  Accumulator accumulator;
  for_each_tile<E, kStaged>(p.student, p.teacher, offset_of(p.student, o, i), offset_of(p.teacher, o, i), begin, end,
                            [&](const auto* x, const auto* y, std::size_t n, std::int64_t, std::size_t)
                                HWY_ATTR { accumulator.add(E(), x, y, n); });
  return accumulator.sums();
}

template <class E, bool kStaged>
void gradients_of_range(const Problem& p, std::int64_t o, std::int64_t i, std::int64_t begin, std::int64_t end,
                        const RowGradient& row) {
  using T = typename E::Type;
  HWY_ALIGN T out[kTile];
  const std::int64_t grad_row = offset_of(p.grad, o, i), stride = p.grad.stride_vocab;
  for_each_tile<E, kStaged>(p.student, p.teacher, offset_of(p.student, o, i), offset_of(p.teacher, o, i), begin, end,
                            [&](const T* x, const T* y, std::size_t padded, std::int64_t v, std::size_t n) HWY_ATTR {
                              if (!kStaged && padded == n && stride == 1) {
                                return gradients(E(), x, y, n, row, element<E>(p.grad.data, grad_row + v));
                              }
                              gradients(E(), x, y, padded, row, out);
                              if constexpr (kStaged) {
                                unstage(out, n, p.grad.data, p.grad.dtype, grad_row + v * stride, stride);
                              } else {
                                for (std::size_t k = 0; k < n; ++k) {
                                  *element<E>(p.grad.data, grad_row + (v + static_cast<std::int64_t>(k)) * stride) =
                                      out[k];
                                }
                              }
                            });
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace strop::reverse_kl
HWY_AFTER_NAMESPACE();

#endif  // STROP_REVERSE_KL_CPU_INL_H_

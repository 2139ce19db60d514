// SIMD helpers of the CPU kernels: floats of any supported dtype in and out of fp32 vectors, exponentials, a sum in a
// fixed order. Compiled once for each instruction set, so it has Highway's kind of include guard.
#if defined(STROP_BASE_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef STROP_BASE_SIMD_INL_H_
#undef STROP_BASE_SIMD_INL_H_
#else
#define STROP_BASE_SIMD_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <limits>

#include "base/simd_target.h"
#include "hwy/highway.h"
#include "strop/tensor_view.h"

HWY_BEFORE_NAMESPACE();
namespace strop {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Float = hn::ScalableTag<float>;
using Int = hn::RebindToSigned<Float>;
using Half16 = hn::Rebind<std::uint16_t, Float>;  // as many 16-bit lanes as Float has lanes
using FloatVec = hn::Vec<Float>;
using FloatMask = hn::Mask<Float>;

// Element kinds: how a dtype lies in memory.
struct F32 {
  using Type = float;
  static constexpr DType kDType = DType::kFloat32;
};
struct F16 {
  using Type = std::uint16_t;
  static constexpr DType kDType = DType::kFloat16;
};
struct BF16 {
  using Type = std::uint16_t;
  static constexpr DType kDType = DType::kBFloat16;
};

#undef STROP_NATIVE_F16
// Highway 1.0.3 converts float16 as IEEE 754 says only where the processor does it.
#if HWY_ARCH_X86 && (HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3)
#define STROP_NATIVE_F16 1
#else
#define STROP_NATIVE_F16 0
#endif

// Real x86 instructions: neither of Highway's emulations.
#undef STROP_X86_VECTORS
#if HWY_ARCH_X86 && HWY_TARGET != HWY_SCALAR && HWY_TARGET != HWY_EMU128
#define STROP_X86_VECTORS 1
#else
#define STROP_X86_VECTORS 0
#endif

// ------------------------------------------------------------------------------------------ Conversions

HWY_INLINE FloatVec load(F32, const float* p) { return hn::LoadU(Float(), p); }

HWY_INLINE FloatVec load(BF16, const std::uint16_t* p) {
  return hn::BitCast(Float(), hn::ShiftLeft<16>(hn::PromoteTo(Int(), hn::LoadU(Half16(), p))));
}

HWY_INLINE FloatVec load(F16, const std::uint16_t* p) {
#if STROP_NATIVE_F16
  return hn::PromoteTo(Float(), hn::BitCast(hn::Rebind<hwy::float16_t, Float>(), hn::LoadU(Half16(), p)));
#else
  const Int i;
  const auto bits = hn::PromoteTo(i, hn::LoadU(Half16(), p));
  const auto magnitude = hn::And(bits, hn::Set(i, 0x7fff));
  // Mantissa and exponent in place; the product puts the exponent's bias right, subnormals included.
  auto value = hn::Mul(hn::BitCast(Float(), hn::ShiftLeft<13>(magnitude)), hn::Set(Float(), 0x1p112F));
  const auto special = hn::Gt(magnitude, hn::Set(i, 0x7bff));
  const auto infinite = hn::Or(hn::BitCast(i, value), hn::Set(i, 0x7f800000));
  const auto sign = hn::ShiftLeft<16>(hn::Sub(bits, magnitude));
  return hn::BitCast(Float(), hn::Or(hn::IfThenElse(special, infinite, hn::BitCast(i, value)), sign));
#endif
}

HWY_INLINE void store(F32, FloatVec v, float* p) { hn::StoreU(v, Float(), p); }

// Rounds to nearest, ties to even; NaN stays NaN.
HWY_INLINE void store(BF16, FloatVec v, std::uint16_t* p) {
  const hn::RebindToUnsigned<Float> u;
  const auto bits = hn::BitCast(u, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(u, 1));
  const auto rounded = hn::ShiftRight<16>(hn::Add(hn::Add(bits, hn::Set(u, 0x7fff)), odd));
  const auto nan = hn::RebindMask(u, hn::IsNaN(v));
  const auto result = hn::IfThenElse(nan, hn::Set(u, 0x7fc0), rounded);
  hn::StoreU(hn::DemoteTo(Half16(), hn::BitCast(Int(), result)), Half16(), p);
}

// Rounds to nearest, ties to even; overflow gives infinity, NaN stays NaN.
HWY_INLINE void store(F16, FloatVec v, std::uint16_t* p) {
#if STROP_NATIVE_F16
  const hn::Rebind<hwy::float16_t, Float> half;
  hn::StoreU(hn::BitCast(Half16(), hn::DemoteTo(half, v)), Half16(), p);
#else
  // Adding a power of two that depends on the exponent makes the fp32 addition round at float16's last bit
  // (the method of Marat Dukhan's FP16 library).
  const Float f;
  const Int i;
  const auto sign = hn::And(hn::BitCast(i, v), hn::Set(i, std::numeric_limits<std::int32_t>::min()));
  const auto magnitude = hn::Xor(hn::BitCast(i, v), sign);
  const auto exponent = hn::And(magnitude, hn::Set(i, 0x7f800000));
  const auto bias = hn::Max(exponent, hn::Set(i, 0x38800000));
  const auto saturating = hn::Mul(hn::Mul(hn::BitCast(f, magnitude), hn::Set(f, 0x1p112F)), hn::Set(f, 0x1p-110F));
  const auto base = hn::Add(hn::BitCast(f, hn::Add(bias, hn::Set(i, 0x07800000))), saturating);
  const auto bits = hn::BitCast(i, base);
  const auto value = hn::Add(hn::And(hn::ShiftRight<13>(bits), hn::Set(i, 0x7c00)), hn::And(bits, hn::Set(i, 0x0fff)));
  const auto nan = hn::Gt(magnitude, hn::Set(i, 0x7f800000));
  const auto result = hn::IfThenElse(nan, hn::Set(i, 0x7e00), value);
  const auto signed16 = hn::Or(result, hn::And(hn::ShiftRight<16>(sign), hn::Set(i, 0x8000)));
  hn::StoreU(hn::DemoteTo(Half16(), signed16), Half16(), p);
#endif
}

// ------------------------------------------------------------------------------------------ Comparisons and sums

// max(v, bound) and min(v, bound), NaN in v kept.
HWY_INLINE FloatVec at_least(FloatVec v, FloatVec bound) {
#if STROP_X86_VECTORS
  return hn::Max(bound, v);  // x86 gives the second operand where one is NaN
#else
  return hn::IfThenElse(hn::Lt(v, bound), bound, v);
#endif
}
HWY_INLINE FloatVec at_most(FloatVec v, FloatVec bound) {
#if STROP_X86_VECTORS
  return hn::Min(bound, v);
#else
  return hn::IfThenElse(hn::Gt(v, bound), bound, v);
#endif
}

// Numbers that may be summed in fp32, lane by lane, before the sum goes to a double: 256 in a row.
HWY_INLINE std::size_t max_chain() { return 256 * hn::Lanes(Float()); }

// Sum of the lanes in double, always in the same order.
HWY_INLINE double sum_lanes(FloatVec v) {
#if HWY_TARGET == HWY_SCALAR
  return static_cast<double>(hn::GetLane(v));
#else
  const hn::Half<Float> half;
  const hn::Repartition<double, Float> d;
  const auto halves = hn::Add(hn::PromoteTo(d, hn::LowerHalf(half, v)), hn::PromoteTo(d, hn::UpperHalf(half, v)));
  return hn::GetLane(hn::SumOfLanes(d, halves));
#endif
}

// ------------------------------------------------------------------------------------------ Exponentials

namespace detail {

constexpr float kRound = 0x1.8p23F;  // adding it rounds to an integer, which is then in the low bits

// 2^(n - 1) where `rounded` is n + kRound, for n in [-125, 128].
HWY_INLINE FloatVec half_power_of_two(FloatVec rounded) {
  const Int i;
  return hn::BitCast(Float(), hn::Add(hn::ShiftLeft<23>(hn::BitCast(i, rounded)), hn::Set(i, 126 << 23)));
}

}  // namespace detail

// exp(x) for x <= 0, within 2.5 ulp (2.5 + |x| without fused multiply-add); 0 below -87 and for -inf; NaN for NaN.
HWY_INLINE FloatVec exp_nonpositive(FloatVec x) {
  const Float f;
  const Int i;
  const auto log2e = hn::Set(f, 1.44269504F);
  const auto rounded = hn::MulAdd(x, log2e, hn::Set(f, detail::kRound));
  const auto n = hn::Sub(rounded, hn::Set(f, detail::kRound));
  // In [-1/2, 1/2], one rounding, then what log2e is off by: without it the error would grow with |x|.
  const auto t = hn::MulAdd(x, hn::Set(f, 1.92596303e-8F), hn::MulSub(x, log2e, n));
  // 2^t: minimax in relative error, 9.2e-8, with the constant term 1.
  auto p = hn::MulAdd(hn::Set(f, 1.32645907636e-3F), t, hn::Set(f, 9.67161899828e-3F));
  p = hn::MulAdd(p, t, hn::Set(f, 5.55073503153e-2F));
  p = hn::MulAdd(p, t, hn::Set(f, 2.40222404607e-1F));
  p = hn::MulAdd(p, t, hn::Set(f, 6.93146976383e-1F));
  p = hn::MulAdd(p, t, hn::Set(f, 1.0F));
  const auto scale = hn::BitCast(f, hn::Add(hn::ShiftLeft<23>(hn::BitCast(i, rounded)), hn::Set(i, 127 << 23)));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(f, -87.0F)), hn::Mul(p, scale));
}

// The parts of exp(x) = 2^n (1 + r + q), with r + q = exp(r) - 1 and q = exp(r) - 1 - r, |r| <= ln(2) / 2.
struct ExpParts {
  FloatVec half_scale;  // 2^(n - 1)
  FloatVec r, q;
  FloatMask n_is_zero;  // then r is x itself
};

// x is clamped to [-86, 89], where exp(x) is 4.5e-38 and +inf.
HWY_INLINE ExpParts exp_parts(FloatVec x) {
  const Float f;
  x = at_most(at_least(x, hn::Set(f, -86.0F)), hn::Set(f, 89.0F));
  const auto rounded = hn::MulAdd(x, hn::Set(f, 1.44269504F), hn::Set(f, detail::kRound));
  const auto n = hn::Sub(rounded, hn::Set(f, detail::kRound));
  auto r = hn::NegMulAdd(n, hn::Set(f, 0x1.62e4p-1F), x);  // ln 2, 16 bits: n times it is exact
  r = hn::NegMulAdd(n, hn::Set(f, 1.42860677e-6F), r);
  // (exp(r) - 1 - r) / r^2: minimax in relative error, 1.2e-7.
  auto p = hn::MulAdd(hn::Set(f, 1.39012974378e-3F), r, hn::Set(f, 8.36317021096e-3F));
  p = hn::MulAdd(p, r, hn::Set(f, 4.16668537197e-2F));
  p = hn::MulAdd(p, r, hn::Set(f, 1.66665771412e-1F));
  p = hn::MulAdd(p, r, hn::Set(f, 4.99999995515e-1F));
  const auto q = hn::Mul(hn::Mul(r, r), p);
  return {detail::half_power_of_two(rounded), r, q, hn::Eq(n, hn::Zero(f))};
}

// exp(x), below 2 ulp; 0 below -86, +inf above 88.73, NaN for NaN.
HWY_INLINE FloatVec exp(FloatVec x) {
  const Float f;
  const ExpParts e = exp_parts(x);
  const auto half = hn::MulAdd(e.half_scale, hn::Add(e.r, e.q), e.half_scale);
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(f, -86.0F)), hn::Add(half, half));
}

// exp(x) - 1 and exp(x) - 1 - x, both to a few ulp, around 0 too. For x = +inf the second is NaN, as inf - inf is.
struct Expm1 {
  FloatVec value, beyond_linear;
};

HWY_INLINE Expm1 expm1(FloatVec x) {
  const Float f;
  const ExpParts e = exp_parts(x);
  const auto half = hn::MulAdd(e.half_scale, hn::Add(e.r, e.q), hn::Sub(e.half_scale, hn::Set(f, 0.5F)));
  const auto value = hn::Add(half, half);
  return {value, hn::IfThenElse(e.n_is_zero, e.q, hn::Sub(value, x))};
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace strop
HWY_AFTER_NAMESPACE();

#endif  // STROP_BASE_SIMD_INL_H_

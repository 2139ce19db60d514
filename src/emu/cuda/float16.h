// What __half and __nv_bfloat16 have in common: everything but names.
//
// The functions are friends of base classes, so that they are found where an argument is such a number and convert the
// other arguments, as CUDA's do. Arithmetic is done in double and rounded once, to nearest even. That is right: double
// has more than twice a half's or bfloat16's bits and two more, so that rounding a sum, product, quotient or square
// root to it first changes nothing (Figueroa 1995, doi:10.1145/221332.221334); fma, for which this does not hold, goes
// by way of rounding to odd. Subnormal numbers are kept. NaN, as a result, is 0x7fff.
#pragma once

#include <bit>
#include <cmath>
#include <concepts>

#include "device_math.h"
#include "host_defines.h"
#include "rounding.h"
#include "vector_types.h"

namespace strop::emu {

template <class T>
__device__ __forceinline__ unsigned short float16_bits(T h) {
  return std::bit_cast<unsigned short>(h);
}
template <class T>
__device__ __forceinline__ T float16_from_bits(unsigned int bits) {
  return std::bit_cast<T>(static_cast<unsigned short>(bits));
}
template <class T>
__device__ __forceinline__ T float16_from(double v, Rounding mode = Rounding::kNearest) {
  return float16_from_bits<T>(narrow<T::kExponentBits, 15 - T::kExponentBits>(v, mode));
}

__device__ __forceinline__ float float_from_half(unsigned short bits) {
  const std::uint32_t sign = std::uint32_t{bits & 0x8000u} << 16, magnitude = bits & 0x7fffu;
  if (magnitude > 0x7c00u) return std::bit_cast<float>(0x7fffffffu);
  if (magnitude == 0x7c00u) return std::bit_cast<float>(sign | 0x7f800000u);
  if (magnitude >= 0x0400u) return std::bit_cast<float>(sign | ((magnitude << 13) + (112u << 23)));
  const float subnormal = static_cast<float>(magnitude) * 0x1p-24f;
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(subnormal));
}
// A bfloat16 is the upper half of a float; this keeps a NaN's bits.
__device__ __forceinline__ float float_from_bfloat16(unsigned short bits) {
  return std::bit_cast<float>(std::uint32_t{bits} << 16);
}

// ---- One number -----------------------------------------------------------------------------------------------------

template <class T, int kExponents>
class Float16 {
 public:
  static constexpr int kExponentBits = kExponents;

 private:
  static constexpr unsigned short kInfinity = kExponents == 5 ? 0x7c00 : 0x7f80, kNan = 0x7fff;

  static __device__ __forceinline__ float wide(T h) {
    return kExponents == 5 ? float_from_half(float16_bits(h)) : float_from_bfloat16(float16_bits(h));
  }
  static __device__ __forceinline__ T of(double v) { return float16_from<T>(v); }
  static __device__ __forceinline__ T nan() { return float16_from_bits<T>(kNan); }
  static __device__ __forceinline__ bool is_nan(T h) { return (float16_bits(h) & 0x7fff) > kInfinity; }
  // Integers in the order of the numbers, with -0 before +0.
  static __device__ __forceinline__ int order(T h) {
    const unsigned short b = float16_bits(h);
    return b & 0x8000 ? ~(b & 0x7fff) : b;
  }

#define STROP_EMU_FRIEND friend __device__ __forceinline__
#define STROP_EMU_OPERATOR(X, op, function)                           \
  STROP_EMU_FRIEND X operator op(X a, X b) { return function(a, b); } \
  STROP_EMU_FRIEND X& operator op##=(X& a, X b) { return a = function(a, b); }
#define STROP_EMU_COMPARISON_OPERATOR(X, op, function) \
  STROP_EMU_FRIEND bool operator op(X a, X b) { return function(a, b); }

  STROP_EMU_FRIEND bool __hisnan(T a) { return is_nan(a); }
  STROP_EMU_FRIEND int __hisinf(T a) {
    return float16_bits(a) == kInfinity ? 1 : float16_bits(a) == (kInfinity | 0x8000) ? -1 : 0;
  }
  STROP_EMU_FRIEND T __hneg(T a) { return is_nan(a) ? nan() : float16_from_bits<T>(float16_bits(a) ^ 0x8000u); }
  STROP_EMU_FRIEND T __habs(T a) { return is_nan(a) ? nan() : float16_from_bits<T>(float16_bits(a) & 0x7fffu); }

  // Of a number and a NaN, the number; the _nan forms give NaN.
  STROP_EMU_FRIEND T __hmax(T a, T b) {
    return is_nan(a) ? (is_nan(b) ? nan() : b) : is_nan(b) || order(a) > order(b) ? a : b;
  }
  STROP_EMU_FRIEND T __hmin(T a, T b) {
    return is_nan(a) ? (is_nan(b) ? nan() : b) : is_nan(b) || order(a) < order(b) ? a : b;
  }
  STROP_EMU_FRIEND T __hmax_nan(T a, T b) { return is_nan(a) || is_nan(b) ? nan() : __hmax(a, b); }
  STROP_EMU_FRIEND T __hmin_nan(T a, T b) { return is_nan(a) || is_nan(b) ? nan() : __hmin(a, b); }

  STROP_EMU_FRIEND T __hadd(T a, T b) { return of(double{wide(a)} + wide(b)); }
  STROP_EMU_FRIEND T __hsub(T a, T b) { return of(double{wide(a)} - wide(b)); }
  STROP_EMU_FRIEND T __hmul(T a, T b) { return of(double{wide(a)} * wide(b)); }
  STROP_EMU_FRIEND T __hdiv(T a, T b) { return of(double{wide(a)} / wide(b)); }
  STROP_EMU_FRIEND T __hfma(T a, T b, T c) { return of(fma_to_odd(wide(a), wide(b), wide(c))); }
  STROP_EMU_FRIEND T __hadd_rn(T a, T b) { return __hadd(a, b); }
  STROP_EMU_FRIEND T __hsub_rn(T a, T b) { return __hsub(a, b); }
  STROP_EMU_FRIEND T __hmul_rn(T a, T b) { return __hmul(a, b); }
  STROP_EMU_FRIEND T __hadd_sat(T a, T b) { return of(__saturatef(wide(__hadd(a, b)))); }
  STROP_EMU_FRIEND T __hsub_sat(T a, T b) { return of(__saturatef(wide(__hsub(a, b)))); }
  STROP_EMU_FRIEND T __hmul_sat(T a, T b) { return of(__saturatef(wide(__hmul(a, b)))); }
  STROP_EMU_FRIEND T __hfma_sat(T a, T b, T c) { return of(__saturatef(wide(__hfma(a, b, c)))); }
  STROP_EMU_FRIEND T __hfma_relu(T a, T b, T c) { return __hmax_nan(__hfma(a, b, c), of(0.)); }

// The ordered comparisons are false where an operand is NaN; those that end in u are true.
#define STROP_EMU_COMPARISON(name, op)                                                                 \
  STROP_EMU_FRIEND bool __h##name(T a, T b) { return !is_nan(a) && !is_nan(b) && wide(a) op wide(b); } \
  STROP_EMU_FRIEND bool __h##name##u(T a, T b) { return is_nan(a) || is_nan(b) || wide(a) op wide(b); }
  STROP_EMU_COMPARISON(eq, ==)
  STROP_EMU_COMPARISON(ne, !=)
  STROP_EMU_COMPARISON(lt, <)
  STROP_EMU_COMPARISON(le, <=)
  STROP_EMU_COMPARISON(gt, >)
  STROP_EMU_COMPARISON(ge, >=)
#undef STROP_EMU_COMPARISON

  STROP_EMU_OPERATOR(T, +, __hadd)
  STROP_EMU_OPERATOR(T, -, __hsub)
  STROP_EMU_OPERATOR(T, *, __hmul)
  STROP_EMU_OPERATOR(T, /, __hdiv)
  STROP_EMU_COMPARISON_OPERATOR(T, ==, __heq)
  STROP_EMU_COMPARISON_OPERATOR(T, !=, __hneu)
  STROP_EMU_COMPARISON_OPERATOR(T, <, __hlt)
  STROP_EMU_COMPARISON_OPERATOR(T, <=, __hle)
  STROP_EMU_COMPARISON_OPERATOR(T, >, __hgt)
  STROP_EMU_COMPARISON_OPERATOR(T, >=, __hge)
  STROP_EMU_FRIEND T operator+(T a) { return a; }
  STROP_EMU_FRIEND T operator-(T a) { return __hneg(a); }
  STROP_EMU_FRIEND T& operator++(T& a) { return a = __hadd(a, of(1.)); }
  STROP_EMU_FRIEND T& operator--(T& a) { return a = __hsub(a, of(1.)); }
  STROP_EMU_FRIEND T operator++(T& a, int) {
    const T before = a;
    ++a;
    return before;
  }
  STROP_EMU_FRIEND T operator--(T& a, int) {
    const T before = a;
    --a;
    return before;
  }

  // The GPU's are approximations of a float, rounded: within one unit in the last place of these, mostly equal.
  STROP_EMU_FRIEND T hexp(T a) { return of(std::exp(double{wide(a)})); }
  STROP_EMU_FRIEND T hexp2(T a) { return of(std::exp2(double{wide(a)})); }
  STROP_EMU_FRIEND T hexp10(T a) { return of(std::pow(10., double{wide(a)})); }
  STROP_EMU_FRIEND T hlog(T a) { return of(std::log(double{wide(a)})); }
  STROP_EMU_FRIEND T hlog2(T a) { return of(std::log2(double{wide(a)})); }
  STROP_EMU_FRIEND T hlog10(T a) { return of(std::log10(double{wide(a)})); }
  STROP_EMU_FRIEND T hsin(T a) { return of(std::sin(double{wide(a)})); }
  STROP_EMU_FRIEND T hcos(T a) { return of(std::cos(double{wide(a)})); }
  STROP_EMU_FRIEND T htanh(T a) { return of(std::tanh(double{wide(a)})); }
  STROP_EMU_FRIEND T htanh_approx(T a) { return htanh(a); }
  STROP_EMU_FRIEND T hsqrt(T a) { return of(std::sqrt(double{wide(a)})); }
  STROP_EMU_FRIEND T hrsqrt(T a) { return of(1. / std::sqrt(double{wide(a)})); }
  STROP_EMU_FRIEND T hrcp(T a) { return of(1. / wide(a)); }
  STROP_EMU_FRIEND T hceil(T a) { return of(std::ceil(wide(a))); }
  STROP_EMU_FRIEND T hfloor(T a) { return of(std::floor(wide(a))); }
  STROP_EMU_FRIEND T hrint(T a) { return of(std::rint(wide(a))); }
  STROP_EMU_FRIEND T htrunc(T a) { return of(std::trunc(wide(a))); }
};

// ---- Two numbers in a word ------------------------------------------------------------------------------------------

template <class P, class T>
class Float16Pair {
#define STROP_EMU_UNARY(pair, single) \
  STROP_EMU_FRIEND P pair(P a) { return P(single(a.x), single(a.y)); }
#define STROP_EMU_BINARY(pair, single) \
  STROP_EMU_FRIEND P pair(P a, P b) { return P(single(a.x, b.x), single(a.y, b.y)); }
#define STROP_EMU_TERNARY(pair, single) \
  STROP_EMU_FRIEND P pair(P a, P b, P c) { return P(single(a.x, b.x, c.x), single(a.y, b.y, c.y)); }
  STROP_EMU_UNARY(__hneg2, __hneg)
  STROP_EMU_UNARY(__habs2, __habs)
  STROP_EMU_BINARY(__hadd2, __hadd)
  STROP_EMU_BINARY(__hsub2, __hsub)
  STROP_EMU_BINARY(__hmul2, __hmul)
  STROP_EMU_BINARY(__h2div, __hdiv)
  STROP_EMU_BINARY(__hadd2_rn, __hadd)
  STROP_EMU_BINARY(__hsub2_rn, __hsub)
  STROP_EMU_BINARY(__hmul2_rn, __hmul)
  STROP_EMU_BINARY(__hadd2_sat, __hadd_sat)
  STROP_EMU_BINARY(__hsub2_sat, __hsub_sat)
  STROP_EMU_BINARY(__hmul2_sat, __hmul_sat)
  STROP_EMU_BINARY(__hmax2, __hmax)
  STROP_EMU_BINARY(__hmin2, __hmin)
  STROP_EMU_BINARY(__hmax2_nan, __hmax_nan)
  STROP_EMU_BINARY(__hmin2_nan, __hmin_nan)
  STROP_EMU_TERNARY(__hfma2, __hfma)
  STROP_EMU_TERNARY(__hfma2_sat, __hfma_sat)
  STROP_EMU_TERNARY(__hfma2_relu, __hfma_relu)
  STROP_EMU_UNARY(h2exp, hexp)
  STROP_EMU_UNARY(h2exp2, hexp2)
  STROP_EMU_UNARY(h2exp10, hexp10)
  STROP_EMU_UNARY(h2log, hlog)
  STROP_EMU_UNARY(h2log2, hlog2)
  STROP_EMU_UNARY(h2log10, hlog10)
  STROP_EMU_UNARY(h2sin, hsin)
  STROP_EMU_UNARY(h2cos, hcos)
  STROP_EMU_UNARY(h2tanh, htanh)
  STROP_EMU_UNARY(h2tanh_approx, htanh)
  STROP_EMU_UNARY(h2sqrt, hsqrt)
  STROP_EMU_UNARY(h2rsqrt, hrsqrt)
  STROP_EMU_UNARY(h2rcp, hrcp)
  STROP_EMU_UNARY(h2ceil, hceil)
  STROP_EMU_UNARY(h2floor, hfloor)
  STROP_EMU_UNARY(h2rint, hrint)
  STROP_EMU_UNARY(h2trunc, htrunc)
#undef STROP_EMU_UNARY
#undef STROP_EMU_BINARY
#undef STROP_EMU_TERNARY

// Each pair compared: 1 or 0; all ones or none; and (__hb…) whether it holds for both.
#define STROP_EMU_COMPARISON(name)                                                          \
  STROP_EMU_FRIEND P __h##name##2(P a, P b) {                                               \
    return P(float16_from<T>(__h##name(a.x, b.x)), float16_from<T>(__h##name(a.y, b.y)));   \
  }                                                                                         \
  STROP_EMU_FRIEND unsigned int __h##name##2_mask(P a, P b) {                               \
    return (__h##name(a.x, b.x) ? 0xffffu : 0u) | (__h##name(a.y, b.y) ? 0xffff0000u : 0u); \
  }                                                                                         \
  STROP_EMU_FRIEND bool __hb##name##2(P a, P b) { return __h##name(a.x, b.x) && __h##name(a.y, b.y); }
  STROP_EMU_COMPARISON(eq)
  STROP_EMU_COMPARISON(ne)
  STROP_EMU_COMPARISON(lt)
  STROP_EMU_COMPARISON(le)
  STROP_EMU_COMPARISON(gt)
  STROP_EMU_COMPARISON(ge)
  STROP_EMU_COMPARISON(equ)
  STROP_EMU_COMPARISON(neu)
  STROP_EMU_COMPARISON(ltu)
  STROP_EMU_COMPARISON(leu)
  STROP_EMU_COMPARISON(gtu)
  STROP_EMU_COMPARISON(geu)
#undef STROP_EMU_COMPARISON
  STROP_EMU_FRIEND P __hisnan2(P a) { return P(float16_from<T>(__hisnan(a.x)), float16_from<T>(__hisnan(a.y))); }

  STROP_EMU_OPERATOR(P, +, __hadd2)
  STROP_EMU_OPERATOR(P, -, __hsub2)
  STROP_EMU_OPERATOR(P, *, __hmul2)
  STROP_EMU_OPERATOR(P, /, __h2div)
  STROP_EMU_COMPARISON_OPERATOR(P, ==, __hbeq2)
  STROP_EMU_COMPARISON_OPERATOR(P, !=, __hbneu2)
  STROP_EMU_COMPARISON_OPERATOR(P, <, __hblt2)
  STROP_EMU_COMPARISON_OPERATOR(P, <=, __hble2)
  STROP_EMU_COMPARISON_OPERATOR(P, >, __hbgt2)
  STROP_EMU_COMPARISON_OPERATOR(P, >=, __hbge2)
  STROP_EMU_FRIEND P operator+(P a) { return a; }
  STROP_EMU_FRIEND P operator-(P a) { return __hneg2(a); }

  // Complex numbers: a * b + c, in the GPU's order.
  STROP_EMU_FRIEND P __hcmadd(P a, P b, P c) {
    return P(__hfma(__hneg(a.y), b.y, __hfma(a.x, b.x, c.x)), __hfma(a.y, b.x, __hfma(a.x, b.y, c.y)));
  }

  STROP_EMU_FRIEND float __low2float(P a) { return static_cast<float>(a.x); }
  STROP_EMU_FRIEND float __high2float(P a) { return static_cast<float>(a.y); }
  STROP_EMU_FRIEND P __lowhigh2highlow(P a) { return P(a.y, a.x); }
};
#undef STROP_EMU_COMPARISON_OPERATOR
#undef STROP_EMU_OPERATOR
#undef STROP_EMU_FRIEND

}  // namespace strop::emu

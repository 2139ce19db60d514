// Conversions between floats and integers as a GPU does them: in any rounding mode, rounded once, with no undefined
// cases. The processor stays in its default mode, round to nearest even.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "host_defines.h"

namespace strop::emu {

enum class Rounding : std::uint8_t { kNearest, kZero, kDown, kUp };

// v in an IEEE format of that many bits (fp16: 5, 10; bfloat16: 8, 7; fp32: 8, 23), as bits. Every NaN becomes the
// GPU's only one, all ones but the sign.
template <int kExponentBits, int kMantissaBits>
__device__ __forceinline__ std::uint32_t narrow(double v, Rounding mode = Rounding::kNearest) {
  constexpr int kBias = (1 << (kExponentBits - 1)) - 1;
  constexpr std::uint64_t kInfinity = ((std::uint64_t{1} << kExponentBits) - 1) << kMantissaBits;
  const std::uint64_t bits = std::bit_cast<std::uint64_t>(v), magnitude = bits & ~(std::uint64_t{1} << 63);
  const bool negative = bits >> 63;
  if (v != v) return (1u << (kExponentBits + kMantissaBits)) - 1;
  const std::uint32_t sign = std::uint32_t{negative} << (kExponentBits + kMantissaBits);
  if (magnitude == 0) return sign;
  if (magnitude == 0x7ff0000000000000u) return sign | static_cast<std::uint32_t>(kInfinity);

  // v = ±significand * 2^(exponent - 52). Doubles too small for that are as good as any other tiny number.
  const int exponent = static_cast<int>(magnitude >> 52) - 1023;
  const std::uint64_t significand = (magnitude & 0xfffffffffffffu) | (std::uint64_t{1} << 52);
  // Below the least normal number the last place stays where it is, and more bits fall off.
  const int biased = exponent + kBias, lost = 52 - kMantissaBits + (biased < 1 ? 1 - biased : 0);
  const int shift = lost < 63 ? lost : 63;
  const std::uint64_t kept = significand >> shift, half = std::uint64_t{1} << (shift - 1);
  const std::uint64_t rest = significand - (kept << shift);
  const bool away = mode == Rounding::kNearest ? rest > half || (rest == half && (kept & 1))
                    : mode == Rounding::kZero  ? false
                                               : rest != 0 && negative == (mode == Rounding::kDown);
  // A carry out of the mantissa is right in the exponent.
  const std::uint64_t rounded =
      (static_cast<std::uint64_t>(biased < 1 ? 0 : biased - 1) << kMantissaBits) + kept + (away ? 1 : 0);
  if (rounded < kInfinity) return sign | static_cast<std::uint32_t>(rounded);
  const bool to_infinity =
      mode == Rounding::kNearest || (mode != Rounding::kZero && negative == (mode == Rounding::kDown));
  return sign | static_cast<std::uint32_t>(to_infinity ? kInfinity : kInfinity - 1);
}

__device__ __forceinline__ float narrow_to_float(double v, Rounding mode = Rounding::kNearest) {
  return std::bit_cast<float>(narrow<8, 23>(v, mode));
}

// Rounding to odd: what does not fit leaves a one in the last place. A second rounding, to two bits fewer or less,
// then gives what one rounding of the exact value would, in every mode (Boldo and Melquiond 2008,
// doi:10.1109/TC.2007.70819).

// a + b.
__device__ __forceinline__ double add_to_odd(double a, double b) {
  const double sum = a + b;
  if (!std::isfinite(sum)) return sum;
  const double b_part = sum - a, error = (a - (sum - b_part)) + (b - b_part);  // exact: Knuth's TwoSum
  const std::uint64_t bits = std::bit_cast<std::uint64_t>(sum);
  if (error == 0 || (bits & 1)) return sum;
  return std::bit_cast<double>((error > 0) == (sum > 0) ? bits + 1 : bits - 1);
}

// a * b + c. The product is exact in double, as 2 * 24 bits are.
__device__ __forceinline__ double fma_to_odd(float a, float b, float c) { return add_to_odd(double{a} * b, c); }

// An integer.
template <class I>
__device__ __forceinline__ double integer_to_odd(I v) {
  if constexpr (sizeof(I) < 8) {
    return v;
  } else {
    constexpr std::uint64_t kLow = 0xfff;  // a double has room for the 52 bits above these
    const bool negative = v < 0;
    std::uint64_t magnitude = negative ? -static_cast<std::uint64_t>(v) : static_cast<std::uint64_t>(v);
    if (magnitude >> 53 && (magnitude & kLow)) magnitude = (magnitude | (kLow + 1)) & ~kLow;
    return negative ? -static_cast<double>(magnitude) : static_cast<double>(magnitude);
  }
}

// A float as integer: clamped, and NaN as PTX's cvt says. Source is the type of v before it became a double.
template <class I, class Source>
__device__ __forceinline__ I to_integer(Source source, Rounding mode) {
  using Limits = std::numeric_limits<I>;
  constexpr double kEnd = 2.0 * static_cast<double>(I{1} << (Limits::digits - 1));
  const double v = source;
  if (v != v)
    return sizeof(I) == 8 || sizeof(Source) == 8 ? static_cast<I>(std::uint64_t{1} << (8 * sizeof(I) - 1)) : 0;
  const double whole = mode == Rounding::kNearest ? std::rint(v)
                       : mode == Rounding::kZero  ? std::trunc(v)
                       : mode == Rounding::kDown  ? std::floor(v)
                                                  : std::ceil(v);
  if (whole >= kEnd) return Limits::max();
  if (whole < static_cast<double>(Limits::min())) return Limits::min();
  return static_cast<I>(whole);
}

}  // namespace strop::emu

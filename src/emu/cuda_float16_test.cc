// __half and __nv_bfloat16 of the emulated device against exact arithmetic.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <climits>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <type_traits>
#include <vector>

namespace strop {
namespace {

// ---- The oracle -----------------------------------------------------------------------------------------------------

constexpr unsigned short kNan = 0x7fff;

__half from_bits(unsigned short bits, __half) { return __ushort_as_half(bits); }
__nv_bfloat16 from_bits(unsigned short bits, __nv_bfloat16) { return __ushort_as_bfloat16(bits); }
template <class T>
T from_bits(unsigned bits) {
  return from_bits(static_cast<unsigned short>(bits), T{});
}
unsigned short to_bits(__half h) { return __half_as_ushort(h); }
unsigned short to_bits(__nv_bfloat16 h) { return __bfloat16_as_ushort(h); }

template <class T>
constexpr int kMantissa = std::is_same_v<T, __half> ? 10 : 7;
template <class T>
constexpr unsigned kInfinity = std::is_same_v<T, __half> ? 0x7c00 : 0x7f80;

template <class T>
bool is_nan(unsigned bits) {
  return (bits & 0x7fff) > kInfinity<T>;
}

// The value by the definition of the format. Infinity counts as the number that would follow the largest one.
template <class T>
long double value(unsigned bits) {
  constexpr int kBias = std::is_same_v<T, __half> ? 15 : 127;
  const int exponent = static_cast<int>(bits & 0x7fff) >> kMantissa<T>, fraction = bits & ((1 << kMantissa<T>)-1);
  const long double v = exponent == 0 ? ldexpl(fraction, 1 - kBias - kMantissa<T>)
                                      : ldexpl(fraction + (1 << kMantissa<T>), exponent - kBias - kMantissa<T>);
  return bits & 0x8000 ? -v : v;
}

// v rounded by looking for its two neighbours, modes as in the functions' names. `V` compares exactly with `at`, which
// gives the value of each positive number's bits.
template <class T, class V, class At>
unsigned rounded(V v, char mode, const At& at) {
  const unsigned sign = v < 0 ? 0x8000 : 0;
  const V a = v < 0 ? -v : v;
  unsigned low = 0, high = kInfinity<T>;  // at(low) <= a; a < at(high) if it is finite in T
  if (a >= at(high)) return sign | (mode == 'n' || mode == (sign ? 'd' : 'u') ? high : high - 1);
  while (high - low > 1) (at((low + high) / 2) <= a ? low : high) = (low + high) / 2;
  const V below = a - at(low), above = at(high) - a;
  const bool up = mode == 'n'   ? above < below || (above == below && low % 2 == 1)
                  : mode == 'z' ? false
                                : below != 0 && mode == (sign ? 'd' : 'u');
  return sign | (up ? high : low);
}

template <class T>
class Float16 : public testing::Test {
 protected:
  Float16() {
    for (unsigned b = 0; b <= kInfinity<T>; ++b) values_.push_back(value<T>(b));
  }
  // Exact for whatever a long double holds.
  unsigned round(long double v, char mode = 'n') const {
    return v != v ? kNan : rounded<T>(v, mode, [&](unsigned b) { return values_[b]; }) | (std::signbit(v) ? 0x8000 : 0);
  }
  void expect_conversions(float f) const {
    ASSERT_EQ(to_bits(T(f)), round(f)) << std::hexfloat << f;
    if constexpr (std::is_same_v<T, __half>) {
      ASSERT_EQ(to_bits(__float2half_rn(f)), round(f)) << std::hexfloat << f;
      ASSERT_EQ(to_bits(__float2half_rz(f)), round(f, 'z')) << std::hexfloat << f;
      ASSERT_EQ(to_bits(__float2half_rd(f)), round(f, 'd')) << std::hexfloat << f;
      ASSERT_EQ(to_bits(__float2half_ru(f)), round(f, 'u')) << std::hexfloat << f;
    } else {
      ASSERT_EQ(to_bits(__float2bfloat16_rn(f)), round(f)) << std::hexfloat << f;
      ASSERT_EQ(to_bits(__float2bfloat16_rz(f)), round(f, 'z')) << std::hexfloat << f;
      ASSERT_EQ(to_bits(__float2bfloat16_rd(f)), round(f, 'd')) << std::hexfloat << f;
      ASSERT_EQ(to_bits(__float2bfloat16_ru(f)), round(f, 'u')) << std::hexfloat << f;
    }
  }
  std::uint32_t random() { return static_cast<std::uint32_t>(generator_()); }

  std::vector<long double> values_;
  std::mt19937_64 generator_{1};
};
using Types = testing::Types<__half, __nv_bfloat16>;
TYPED_TEST_SUITE(Float16, Types);

// ---- Conversions ----------------------------------------------------------------------------------------------------

TYPED_TEST(Float16, EveryNumberToFloatAndBack) {
  for (unsigned b = 0; b < 0x10000; ++b) {
    const float f = from_bits<TypeParam>(b);
    if (is_nan<TypeParam>(b)) {
      ASSERT_TRUE(std::isnan(f)) << b;
      ASSERT_EQ(to_bits(TypeParam(f)), kNan) << b;
      continue;
    }
    if ((b & 0x7fff) == kInfinity<TypeParam>) {
      ASSERT_EQ(f, b & 0x8000 ? -INFINITY : INFINITY);
    } else {
      ASSERT_EQ(f, value<TypeParam>(b)) << b;
    }
    ASSERT_EQ(std::signbit(f), b >= 0x8000) << b;
    ASSERT_EQ(to_bits(TypeParam(f)), b);
    this->expect_conversions(std::isinf(f) ? 0.f : f);
  }
  for (float f : {INFINITY, -INFINITY}) {
    EXPECT_EQ(to_bits(TypeParam(f)), to_bits(__hmul(TypeParam(f), TypeParam(1.f))));
    EXPECT_EQ(__hisinf(TypeParam(f)), f > 0 ? 1 : -1);
  }
  EXPECT_EQ(to_bits(TypeParam(-NAN)), kNan);
}

TYPED_TEST(Float16, HalfWayAndBeside) {
  for (unsigned b = 0; b < kInfinity<TypeParam>; ++b) {
    const float middle = static_cast<float>((value<TypeParam>(b) + value<TypeParam>(b + 1)) / 2);
    for (float f : {middle, nextafterf(middle, 0), nextafterf(middle, INFINITY)}) {
      if (std::isinf(f)) continue;
      this->expect_conversions(f);
      this->expect_conversions(-f);
    }
    // Rounding to float first would lose this.
    for (double d : {nextafter(double{middle}, 0), nextafter(double{middle}, 1e300)})
      ASSERT_EQ(to_bits(TypeParam(d)), this->round(d)) << std::hexfloat << d;
  }
}

TYPED_TEST(Float16, AMillionFloats) {
  for (int i = 0; i < 1000000; ++i) {
    const float f = std::bit_cast<float>(this->random());
    if (std::isfinite(f)) this->expect_conversions(f);
  }
}

TYPED_TEST(Float16, Integers) {
  using T = TypeParam;
  for (int i = 0; i < 100000; ++i) {
    const long long v = static_cast<long long>(this->generator_()) >> this->random() % 64;
    // A tie but for the last bit.
    const long long tie = (257ll << (i % 54)) + (i % 3 - 1);
    for (long long s : {v, tie, -tie}) {
      ASSERT_EQ(to_bits(T(s)), this->round(s)) << s;
      ASSERT_EQ(to_bits(T(static_cast<unsigned long long>(s))), this->round(static_cast<unsigned long long>(s))) << s;
      ASSERT_EQ(to_bits(T(static_cast<int>(s))), this->round(static_cast<int>(s))) << s;
    }
  }
  for (unsigned b = 0; b < kInfinity<T>; ++b) {
    const long double v = value<T>(b), whole = std::min(truncl(v), 2147483647.L);
    ASSERT_EQ(static_cast<int>(from_bits<T>(b)), static_cast<int>(whole)) << b;
    ASSERT_EQ(static_cast<int>(from_bits<T>(b | 0x8000)), v >= 2147483648.L ? INT_MIN : -static_cast<int>(whole)) << b;
    ASSERT_EQ(static_cast<unsigned char>(from_bits<T>(b)), static_cast<unsigned char>(std::min(whole, 255.L))) << b;
    ASSERT_EQ(static_cast<unsigned>(from_bits<T>(b | 0x8000)), 0u) << b;
    ASSERT_EQ(static_cast<bool>(from_bits<T>(b)), b != 0);
  }
  EXPECT_EQ(static_cast<int>(from_bits<T>(kNan)), 0);
  EXPECT_EQ(static_cast<long long>(from_bits<T>(kNan)), std::numeric_limits<long long>::min());
  EXPECT_EQ(__half2int_rn(__half(2.5f)), 2);
  EXPECT_EQ(__half2int_ru(__half(2.5f)), 3);
  EXPECT_EQ(__bfloat162int_rd(__nv_bfloat16(-2.5f)), -3);
  EXPECT_EQ(to_bits(__int2half_rz(2049)), to_bits(__half(2048.f)));
  EXPECT_EQ(to_bits(__int2bfloat16_ru(257)), to_bits(__nv_bfloat16(258.f)));
}

// ---- Arithmetic -----------------------------------------------------------------------------------------------------

TYPED_TEST(Float16, ArithmeticIsRoundedOnce) {
  using T = TypeParam;
  for (int i = 0; i < 300000; ++i) {
    const std::uint32_t bits = this->random();
    const T a = from_bits<T>(bits & 0xffff), b = from_bits<T>(bits >> 16);
    const long double x = static_cast<float>(a), y = static_cast<float>(b);
    if (std::isnan(x) || std::isnan(y)) continue;
    ASSERT_EQ(to_bits(a + b), this->round(x + y)) << bits;
    ASSERT_EQ(to_bits(a - b), this->round(x - y)) << bits;
    ASSERT_EQ(to_bits(a * b), this->round(x * y)) << bits;
    ASSERT_EQ(to_bits(a / b), this->round(x / y)) << bits;
    ASSERT_EQ(to_bits(hsqrt(a)), this->round(sqrtl(x))) << bits;
    ASSERT_EQ(to_bits(-a), to_bits(a) ^ 0x8000);
    ASSERT_EQ(to_bits(__habs(a)), to_bits(a) & 0x7fff);
    ASSERT_EQ(static_cast<float>(__hadd_sat(a, b)), __saturatef(static_cast<float>(a + b)));
  }
}

// In units of 2^-64 every sum below is an integer.
template <class T>
unsigned exact_fma(T a, T b, T c) {
  __extension__ using Exact = __int128;
  const auto units = [](float f, int exponent) {
    int e;
    const auto m = static_cast<Exact>(std::frexp(f, &e) * 0x1p24f);
    e += exponent - 24;
    return e >= 0 ? m * (Exact{1} << e) : m / (Exact{1} << -e);
  };
  const Exact sum = units(static_cast<float>(a) * static_cast<float>(b), 64) + units(c, 64);
  return rounded<T>(sum, 'n', [&](unsigned bits) {
    const long double v = value<T>(bits);
    return v < 0x1p-56L ? Exact{0} : v >= 0x1p60L ? Exact{1} << 125 : units(static_cast<float>(v), 64);
  });
}

TYPED_TEST(Float16, FmaIsRoundedOnce) {
  using T = TypeParam;
  for (int i = 0; i < 300000; ++i) {
    // Products of two significands are often half way between two numbers; the addend is tiny, or anything.
    const float p = static_cast<float>(1 + this->random() % (2 << kMantissa<T>));
    const float q = static_cast<float>(1 + this->random() % (2 << kMantissa<T>)) * 0x1p-12f;
    const int least = std::is_same_v<T, __half> ? 24 : 62;  // beyond 53 bits below the product double is not enough
    const float small = ldexpf(i % 2 ? 1 : -1, -static_cast<int>(this->random() % (least + 1)));
    const T a(i % 3 ? p : -p), b(q), c(i % 5 ? small : p * small);
    if (static_cast<float>(a) * static_cast<float>(b) + static_cast<float>(c) == 0) continue;
    const unsigned expected = exact_fma(a, b, c);
    if (expected == 0 || expected == 0x8000) continue;  // too small for the units
    ASSERT_EQ(to_bits(__hfma(a, b, c)), expected) << i;
  }
  // 261 and 259 lie half way between two bfloat16, with the even one below and above.
  const auto fma = [](float a, float b, float c) {
    return static_cast<float>(__hfma(__nv_bfloat16(a), __nv_bfloat16(b), __nv_bfloat16(c)));
  };
  EXPECT_EQ(fma(9, 29, 0), 260.f);
  EXPECT_EQ(fma(9, 29, 0x1p-100f), 262.f);
  EXPECT_EQ(fma(9, 29, -0x1p-100f), 260.f);
  EXPECT_EQ(fma(7, 37, 0), 260.f);
  EXPECT_EQ(fma(-7, 37, 0x1p-100f), -258.f);
  EXPECT_EQ(to_bits(__hfma(T(INFINITY), T(0.f), T(1.f))), kNan);
  EXPECT_EQ(to_bits(__hfma_relu(T(-1.f), T(1.f), T(0.f))), 0);
  EXPECT_EQ(to_bits(__hfma_sat(T(NAN), T(1.f), T(0.f))), 0);
}

TYPED_TEST(Float16, MaximumAndMinimum) {
  using T = TypeParam;
  const unsigned inf = kInfinity<T>;
  for (unsigned b : {0x0000u, 0x8000u, 0x0001u, 0x8001u, 0x3c00u, inf, inf | 0x8000, inf + 1, 0x7fffu, 0xffffu}) {
    for (unsigned a = 0; a < 0x10000; ++a) {
      const T x = from_bits<T>(a), y = from_bits<T>(b);
      unsigned most, least;
      if (is_nan<T>(a) || is_nan<T>(b)) {
        most = least = is_nan<T>(a) && is_nan<T>(b) ? kNan : is_nan<T>(a) ? b : a;
        ASSERT_EQ(to_bits(__hmax_nan(x, y)), kNan);
        ASSERT_EQ(to_bits(__hmin_nan(x, y)), kNan);
      } else {
        // Of two zeros +0 is the greater.
        const long double va = value<T>(a), vb = value<T>(b);
        const bool greater = va > vb || (va == vb && a < b);
        most = greater ? a : b, least = greater ? b : a;
        ASSERT_EQ(to_bits(__hmax_nan(x, y)), most);
        ASSERT_EQ(to_bits(__hmin_nan(x, y)), least);
      }
      ASSERT_EQ(to_bits(__hmax(x, y)), most) << a << ' ' << b;
      ASSERT_EQ(to_bits(__hmin(x, y)), least) << a << ' ' << b;
      ASSERT_EQ(to_bits(__hmax(y, x)), most) << a << ' ' << b;
      ASSERT_EQ(to_bits(__hmin(y, x)), least) << a << ' ' << b;
    }
  }
}

TYPED_TEST(Float16, Comparisons) {
  using T = TypeParam;
  const float values[] = {0.f, -0.f, 1.f, -1.f, 0x1p-20f, INFINITY, -INFINITY, NAN};
  for (float x : values) {
    for (float y : values) {
      const T a(x), b(y);
      const float fa = a, fb = b;
      const bool nan = std::isnan(x) || std::isnan(y);
      EXPECT_EQ(a == b, fa == fb);
      EXPECT_EQ(a != b, fa != fb);  // true of NaN, unlike __hne
      EXPECT_EQ(__hne(a, b), !nan && fa != fb);
      EXPECT_EQ(a < b, fa < fb);
      EXPECT_EQ(a <= b, fa <= fb);
      EXPECT_EQ(a > b, fa > fb);
      EXPECT_EQ(a >= b, fa >= fb);
      EXPECT_EQ(__hequ(a, b), nan || fa == fb);
      EXPECT_EQ(__hltu(a, b), nan || fa < fb);
      EXPECT_EQ(__hgeu(a, b), nan || fa >= fb);
      EXPECT_EQ(__hisnan(a), std::isnan(x));
    }
  }
}

TYPED_TEST(Float16, Functions) {
  using T = TypeParam;
  for (float x : {0.f, 0.5f, 1.f, 2.f, 3.75f, -1.5f}) {
    EXPECT_EQ(to_bits(hexp(T(x))), this->round(expl(x)));
    EXPECT_EQ(to_bits(htanh(T(x))), this->round(tanhl(x)));
    EXPECT_EQ(to_bits(hrcp(T(x))), this->round(1 / static_cast<long double>(x)));
    EXPECT_EQ(to_bits(hfloor(T(x))), this->round(floorl(x)));
    if (x > 0) {
      EXPECT_EQ(to_bits(hlog2(T(x))), this->round(log2l(x)));
      EXPECT_EQ(to_bits(hrsqrt(T(x))), this->round(1 / sqrtl(x)));
    }
  }
  T t(1.f);
  EXPECT_EQ(static_cast<float>(t++), 1.f);
  EXPECT_EQ(static_cast<float>(--t), 1.f);
  t += T(2);
  t *= T(0.5);
  EXPECT_EQ(static_cast<float>(t), 1.5f);
}

TEST(Float16Pairs, AreTwoNumbers) {
  const __half2 a = __floats2half2_rn(1.f, NAN), b(__half(2.f), __half(-3.f));
  EXPECT_EQ(__low2float(__hmax2(a, b)), 2.f);
  EXPECT_EQ(__high2float(__hmax2(a, b)), -3.f);
  EXPECT_EQ(to_bits(__high2half(__hmax2_nan(a, b))), kNan);
  EXPECT_EQ(__heq2_mask(a, a), 0x0000ffffu);
  EXPECT_EQ(__hneu2_mask(a, b), 0xffffffffu);
  EXPECT_EQ(__low2float(__hlt2(a, b)), 1.f);
  EXPECT_EQ(__high2float(__hlt2(a, b)), 0.f);
  EXPECT_FALSE(a == a);
  EXPECT_TRUE(b == b);
  EXPECT_EQ(__high2float(__hisnan2(a)), 1.f);
  EXPECT_EQ(__high2float(__hfma2(b, b, b)), 6.f);
  EXPECT_EQ(__low2float(b / b + b), 3.f);
  EXPECT_EQ(__low2float(__lowhigh2highlow(b)), -3.f);
  EXPECT_EQ(__high2float(__lows2half2(a, b)), 2.f);
  const float2 f = __half22float2(__highs2half2(b, b));
  EXPECT_EQ(f.x, -3.f);
  const __nv_bfloat162 c = __float22bfloat162_rn({1.f, 2.f});
  EXPECT_EQ(std::bit_cast<std::uint32_t>(c), 0x40003f80u);  // the first in the low half
  EXPECT_EQ(__bfloat1622float2(c).y, 2.f);
  // Complex: (1 + 2i)(1 + 2i) + (1 + 2i).
  EXPECT_EQ(__low2float(__hcmadd(c, c, c)), -2.f);
  EXPECT_EQ(__high2float(__hcmadd(c, c, c)), 6.f);
}

}  // namespace
}  // namespace strop

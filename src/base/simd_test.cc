// The SIMD helpers, with each instruction set: every 16-bit float, a sweep of exponentials.
#include "base/simd_target.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "base/simd_test.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, as they are compiled for each instruction set.
#include "base/simd-inl.h"
#include "base/stage-inl.h"

HWY_BEFORE_NAMESPACE();
namespace strop {
namespace HWY_NAMESPACE {

void test_stage(const void* from, DType dtype, std::int64_t stride, std::size_t n, float* to) {
  stage(from, dtype, 0, stride, n, to);
}
void test_unstage(const float* from, std::size_t n, void* to, DType dtype, std::int64_t stride) {
  unstage(from, n, to, dtype, 0, stride);
}

template <class F>
void map(const float* in, float* out, std::size_t n, F&& f) {
  for (std::size_t i = 0; i < n; i += hn::Lanes(Float())) {
    hn::StoreU(f(hn::LoadU(Float(), in + i)), Float(), out + i);
  }
}
void test_exp(const float* in, float* out, std::size_t n) {
  map(in, out, n, [](FloatVec x) HWY_ATTR { return exp(x); });
}
void test_exp_nonpositive(const float* in, float* out, std::size_t n) {
  map(in, out, n, [](FloatVec x) HWY_ATTR { return exp_nonpositive(x); });
}
void test_expm1(const float* in, float* out, std::size_t n) {
  map(in, out, n, [](FloatVec x) HWY_ATTR { return expm1(x).value; });
}
void test_beyond_linear(const float* in, float* out, std::size_t n) {
  map(in, out, n, [](FloatVec x) HWY_ATTR { return expm1(x).beyond_linear; });
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace strop
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/element.h"
#include "tests/support/backend.h"
#include "tests/support/random.h"
#include "tests/support/tensor.h"

namespace strop {
namespace {

using namespace strop::testing;  // NOLINT(google-build-using-namespace)

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

template <class F>
void for_each_simd(F&& f) {
  for (const Backend& backend : all_backends()) {
    if (backend.cuda()) continue;
    SCOPED_TRACE(::testing::Message() << backend);
    const UseBackend use(backend);
    f();
  }
}

TEST(Simd, LoadsEvery16BitFloat) {
  std::vector<std::uint16_t> bits(65536);
  for (std::size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<std::uint16_t>(i);
  for_each_simd([&] {
    for (DType dtype : {DType::kFloat16, DType::kBFloat16}) {
      std::vector<float> floats(bits.size());
      STROP_SIMD(test_stage)(bits.data(), dtype, 1, bits.size(), floats.data());
      for (std::size_t i = 0; i < bits.size(); ++i) {
        const auto expected = static_cast<float>(load_element(bits.data(), dtype, static_cast<std::int64_t>(i)));
        if (std::isnan(expected)) {
          ASSERT_TRUE(std::isnan(floats[i])) << dtype_name(dtype) << " " << i;
        } else {
          ASSERT_EQ(std::bit_cast<std::uint32_t>(floats[i]), std::bit_cast<std::uint32_t>(expected)) << i;
        }
      }
    }
  });
}

TEST(Simd, StoresRoundToNearestEven) {
  // Every 16-bit float, the numbers halfway between neighbours, and those just beside; then any fp32 bits.
  for (DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    std::vector<float> floats;
    for (std::uint32_t i = 0; i < 65536; ++i) {
      const auto bits = static_cast<std::uint16_t>(i);
      const float x = dtype == DType::kFloat16 ? float_from_float16(bits) : float_from_bfloat16(bits);
      const auto next = static_cast<std::uint16_t>(i + 1);
      const float y = dtype == DType::kFloat16 ? float_from_float16(next) : float_from_bfloat16(next);
      floats.push_back(x);
      const float middle = x + (y - x) / 2;
      for (float near : {std::nextafter(middle, -kInf), middle, std::nextafter(middle, kInf)}) floats.push_back(near);
    }
    Random random(41);
    for (int i = 0; i < 100000; ++i) floats.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(random.bits())));
    // NaNs whose payload is all ones or all in the low bits.
    for (std::uint32_t bits : {0x7fffffffU, 0xffffffffU, 0x7f800001U, 0xff800001U, 0x7f80ffffU}) {
      floats.push_back(std::bit_cast<float>(bits));
    }
    Tensor expected(dtype, {static_cast<std::int64_t>(floats.size())});
    expected.fill([&](std::int64_t i) { return floats[static_cast<std::size_t>(i)]; });
    for_each_simd([&] {
      std::vector<std::uint16_t> stored(floats.size());
      STROP_SIMD(test_unstage)(floats.data(), floats.size(), stored.data(), dtype, 1);
      for (std::size_t i = 0; i < floats.size(); ++i) {
        const double got = load_element(stored.data(), dtype, static_cast<std::int64_t>(i));
        const double want = expected.get(static_cast<std::int64_t>(i));
        if (std::isnan(floats[i])) {
          ASSERT_TRUE(std::isnan(got)) << dtype_name(dtype) << " " << floats[i];
        } else {
          ASSERT_EQ(got, want) << dtype_name(dtype) << " " << floats[i];
          ASSERT_EQ(std::signbit(got), std::signbit(want)) << floats[i];
        }
      }
    });
  }
}

TEST(Simd, StageAndUnstageAnyStrideAndLength) {
  Random random(42);
  for_each_simd([&] {
    for (DType dtype : kFloats) {
      for (std::size_t n : {0, 1, 3, 15, 16, 17, 40, 65}) {
        for (std::int64_t stride : {1, 2, 3}) {
          const auto size = static_cast<std::int64_t>(n) * stride;
          Tensor from(dtype, {size}), to(dtype, {size});
          from.fill([&](std::int64_t) { return random.normal(); });
          to.fill([](std::int64_t) { return 7; });
          std::vector<float> floats(n + 1, 5.0F);
          STROP_SIMD(test_stage)(from.host().data, dtype, stride, n, floats.data());
          STROP_SIMD(test_unstage)(floats.data(), n, to.host().data, dtype, stride);
          for (std::int64_t i = 0; i < size; ++i) ASSERT_EQ(to.get(i), i % stride == 0 ? from.get(i) : 7) << i;
          ASSERT_EQ(floats[n], 5.0F);
        }
      }
    }
  });
}

std::vector<float> sweep(double low, double high, int n) {
  Random random(43);
  std::vector<float> x;
  for (int i = 0; i < n; ++i) x.push_back(static_cast<float>(low + (high - low) * i / n));
  // Around 0, at all magnitudes, of the signs that the range has.
  for (int i = 0; i < n; ++i) {
    const double small = std::exp(-30 * random.uniform());
    x.push_back(static_cast<float>(high <= 0 || random.chance(0.5) ? -small : small));
  }
  while (x.size() % 64 != 0) x.push_back(0);
  return x;
}

// |got - expected| in units of the last place of `expected`.
double ulps(float got, double expected) {
  const double ulp = std::ldexp(1.0, std::max(std::ilogb(expected), -126) - 23);
  return std::abs(got - expected) / ulp;
}

TEST(Simd, ExponentialsAreAccurate) {
  for_each_simd([] {
    const std::vector<float> wide = sweep(-85.9, 88.7, 200000), nonpositive = sweep(-86.9, 0, 200000);
    std::vector<float> out(wide.size());
    STROP_SIMD(test_exp)(wide.data(), out.data(), out.size());
    for (std::size_t i = 0; i < out.size(); ++i) {
      ASSERT_LE(ulps(out[i], std::exp(static_cast<double>(wide[i]))), 2) << wide[i];
    }
    STROP_SIMD(test_expm1)(wide.data(), out.data(), out.size());
    for (std::size_t i = 0; i < out.size(); ++i) {
      if (wide[i] == 0) continue;
      ASSERT_LE(ulps(out[i], std::expm1(static_cast<double>(wide[i]))), 4) << wide[i];
    }
    STROP_SIMD(test_beyond_linear)(wide.data(), out.data(), out.size());
    for (std::size_t i = 0; i < out.size(); ++i) {
      // Below, double loses the difference as well.
      if (std::abs(wide[i]) < 1e-4) continue;
      ASSERT_LE(ulps(out[i], std::expm1(static_cast<double>(wide[i])) - wide[i]), 12) << wide[i];
    }
    out.resize(nonpositive.size());
    STROP_SIMD(test_exp_nonpositive)(nonpositive.data(), out.data(), out.size());
    for (std::size_t i = 0; i < out.size(); ++i) {
      const double x = nonpositive[i];
      // The product x log2(e) is rounded where there is no fused multiply-add.
      const double units = simd_target() >= SimdTarget::kAvx2 ? 0 : 1;
      ASSERT_LE(ulps(out[i], std::exp(x)), 2.5 - x * units) << x;
    }
  });
}

TEST(Simd, ExponentialsOfSpecialValues) {
  for_each_simd([] {
    std::vector<float> in(64, 0.0F), out(64);
    const float values[] = {0.0F,
                            -0.0F,
                            -kInf,
                            kInf,
                            kNan,
                            -200.0F,
                            89.5F,
                            1e30F,
                            -1e30F,
                            std::bit_cast<float>(0xffffffffU),
                            std::bit_cast<float>(0x7fffffffU)};
    std::copy(std::begin(values), std::end(values), in.begin());
    STROP_SIMD(test_exp)(in.data(), out.data(), in.size());
    EXPECT_EQ(out[0], 1.0F);
    EXPECT_EQ(out[1], 1.0F);
    EXPECT_EQ(out[2], 0.0F);
    EXPECT_EQ(out[3], kInf);
    EXPECT_EQ(out[5], 0.0F);
    EXPECT_EQ(out[6], kInf);
    EXPECT_EQ(out[7], kInf);
    EXPECT_EQ(out[8], 0.0F);
    for (int i : {4, 9, 10}) EXPECT_TRUE(std::isnan(out[i])) << i;
    STROP_SIMD(test_expm1)(in.data(), out.data(), in.size());
    EXPECT_EQ(out[0], 0.0F);
    EXPECT_EQ(out[2], -1.0F);
    EXPECT_EQ(out[3], kInf);
    EXPECT_EQ(out[5], -1.0F);
    for (int i : {4, 9, 10}) EXPECT_TRUE(std::isnan(out[i])) << i;
    STROP_SIMD(test_beyond_linear)(in.data(), out.data(), in.size());
    EXPECT_EQ(out[0], 0.0F);
    EXPECT_EQ(out[2], kInf);
    EXPECT_TRUE(std::isnan(out[3]));  // inf - inf
    EXPECT_EQ(out[5], 199.0F);
    EXPECT_EQ(out[7], kInf);
    for (int i : {4, 9, 10}) EXPECT_TRUE(std::isnan(out[i])) << i;
    for (float& x : in) x = x > 0 ? -x : x;
    STROP_SIMD(test_exp_nonpositive)(in.data(), out.data(), in.size());
    EXPECT_EQ(out[0], 1.0F);
    for (int i : {2, 3, 5, 6, 7, 8}) EXPECT_EQ(out[i], 0.0F) << i;
    for (int i : {4, 9, 10}) EXPECT_TRUE(std::isnan(out[i])) << i;
  });
}

TEST(Simd, TargetIsNamedAndLimited) {
  const SimdTarget best = simd_target();
  for (int i = 0; i <= 3; ++i) {
    const auto wanted = static_cast<SimdTarget>(i);
    const SimdTarget got = set_simd_target(wanted);
    EXPECT_LE(got, wanted);
    EXPECT_GE(got, std::min(wanted, best));  // the machine may have better ones than STROP_SIMD allows
  }
  EXPECT_EQ(set_simd_target(best), best);
  EXPECT_STREQ(simd_target_name(SimdTarget::kAvx2), "avx2");
}

}  // namespace
}  // namespace strop
#endif  // HWY_ONCE

// What replaces CUDA's headers on the emulated device: layouts, and the intrinsics against loops.
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

namespace strop {
namespace {

// ---- Layouts --------------------------------------------------------------------------------------------------------

template <class T>
constexpr bool has_layout(std::size_t size, std::size_t alignment) {
  return sizeof(T) == size && alignof(T) == alignment && std::is_trivially_copyable_v<T> &&
         std::is_trivially_default_constructible_v<T> && std::is_standard_layout_v<T>;
}
static_assert(has_layout<char2>(2, 2) && has_layout<uchar3>(3, 1) && has_layout<char4>(4, 4));
static_assert(has_layout<short2>(4, 4) && has_layout<ushort3>(6, 2) && has_layout<ushort4>(8, 8));
static_assert(has_layout<int1>(4, 4) && has_layout<int2>(8, 8) && has_layout<uint3>(12, 4) &&
              has_layout<uint4>(16, 16));
static_assert(has_layout<float2>(8, 8) && has_layout<float3>(12, 4) && has_layout<float4>(16, 16));
static_assert(has_layout<double2>(16, 16) && has_layout<double3>(24, 8) && has_layout<double4>(32, 16));
static_assert(has_layout<longlong2>(16, 16) && has_layout<ulonglong4>(32, 16) && has_layout<ulong2>(16, 16));
static_assert(has_layout<__half>(2, 2) && has_layout<__half2>(4, 4) && has_layout<__half2_raw>(4, 4));
static_assert(has_layout<__nv_bfloat16>(2, 2) && has_layout<__nv_bfloat162>(4, 4));
static_assert(std::is_aggregate_v<uint4> && std::is_aggregate_v<float2> && make_uint4(1, 2, 3, 4).w == 4);
static_assert(dim3(5).x == 5 && dim3(5).z == 1 && static_cast<uint3>(dim3(make_uint3(1, 2, 3))).y == 2);

// As CUDA declares them; with int64_t they come down to these.
static_assert(std::is_same_v<decltype(min(1, 2u)), unsigned> && std::is_same_v<decltype(max(1L, 2L)), long>);
static_assert(std::is_same_v<decltype(min(1ll, 2ull)), unsigned long long>);
static_assert(std::is_same_v<decltype(max(1.f, 2.)), double> && std::is_same_v<decltype(min(1.f, 2.f)), float>);

// Every keyword where CUDA code writes it.
constexpr int threads_of(int bytes, int) { return 256 / bytes; }
struct Args {
  float* out;
};
__constant__ float factor = 2;
template <class T>
__global__ void __launch_bounds__(threads_of(sizeof(T), 1), 3) __cluster_dims__(2, 1, 1)
    kernel(const __grid_constant__ Args a) {
  __shared__ __align__(16) T values[4];
  values[0] = T(1);
  *a.out = static_cast<float>(values[0]) * factor;
}
static __device__ __forceinline__ int forced(int i) { return i + 1; }
__host__ __device__ __noinline__ int called(int i) { return forced(i); }

TEST(CudaShims, Keywords) {
  float out = 0;
  kernel<__half>(Args{&out});
  EXPECT_EQ(out, 2.f);
  EXPECT_EQ(called(1), 2);
}

// ---- Intrinsics -----------------------------------------------------------------------------------------------------

TEST(CudaShims, Bits) {
  std::mt19937_64 generator(1);
  for (int i = 0; i < 20000; ++i) {
    const std::uint64_t r = i == 0 ? 0 : i == 1 ? ~0ull : generator() >> generator() % 64;
    const auto a = static_cast<unsigned>(r), b = static_cast<unsigned>(generator()), s = b >> 7, n64 = b % 64;
    const std::uint64_t both = std::uint64_t{b} << 32 | a;
    int ones = 0, ones64 = 0, first = 0, first64 = 0, leading = 32, leading64 = 64;
    unsigned reversed = 0, permuted = 0;
    std::uint64_t reversed64 = 0;
    for (int k = 0; k < 64; ++k) {
      if (!(r >> k & 1)) continue;
      ++ones64, leading64 = 63 - k, reversed64 |= 1ull << (63 - k);
      if (first64 == 0) first64 = k + 1;
      if (k >= 32) continue;
      ++ones, leading = 31 - k, reversed |= 1u << (31 - k);
      if (first == 0) first = k + 1;
    }
    for (int k = 0; k < 32; ++k)
      permuted |= static_cast<unsigned>(both >> ((s >> (k / 8 * 4)) % 8 * 8 + k % 8) & 1) << k;
    ASSERT_EQ(__popc(a), ones);
    ASSERT_EQ(__popcll(r), ones64);
    ASSERT_EQ(__ffs(static_cast<int>(a)), first);
    ASSERT_EQ(__ffsll(static_cast<long long>(r)), first64);
    ASSERT_EQ(__clz(static_cast<int>(a)), leading);
    ASSERT_EQ(__clzll(static_cast<long long>(r)), leading64);
    ASSERT_EQ(__brev(a), reversed);
    ASSERT_EQ(__brevll(r), reversed64);
    ASSERT_EQ(__byte_perm(a, b, s), permuted);
    for (unsigned n : {0u, 1u, 31u, 32u, 33u, s % 64}) {
      unsigned left = b, right = a, wrapped_left = b, wrapped_right = a;
      const auto shift = [&](unsigned steps, unsigned& to_left, unsigned& to_right) {
        for (unsigned k = 0; k < steps; ++k) {
          to_left = to_left << 1 | (k < 32 ? a >> (31 - k) & 1 : 0);
          to_right = to_right >> 1 | (k < 32 ? b >> k & 1 : 0) << 31;
        }
      };
      shift(std::min(n, 32u), left, right);
      shift(n % 32, wrapped_left, wrapped_right);
      ASSERT_EQ(__funnelshift_l(a, b, n), wrapped_left);
      ASSERT_EQ(__funnelshift_r(a, b, n), wrapped_right);
      ASSERT_EQ(__funnelshift_lc(a, b, n), left);
      ASSERT_EQ(__funnelshift_rc(a, b, n), right);
    }
    const int sa = static_cast<int>(a), sb = static_cast<int>(b);
    ASSERT_EQ(__umulhi(a, b), std::uint64_t{a} * b / (1ull << 32));
    ASSERT_EQ(__mulhi(sa, sb), (std::int64_t{sa} * sb - std::int64_t{a * b}) / (1ll << 32));
    ASSERT_EQ(__umul64hi(r, 1ull << n64), n64 == 0 ? 0 : r >> (64 - n64));
    ASSERT_EQ(__hadd(sa, sb), static_cast<int>(floor((double{0} + sa + sb) / 2)));
    ASSERT_EQ(__urhadd(a, b), static_cast<unsigned>(ceil((double{0} + a + b) / 2)));
    ASSERT_EQ(__float_as_uint(__uint_as_float(a & 0x7f7fffff)), a & 0x7f7fffff);
  }
}

TEST(CudaShims, Mathematics) {
  EXPECT_EQ(min(NAN, 1.f), 1.f);
  EXPECT_EQ(max(1., static_cast<double>(NAN)), 1.);
  EXPECT_EQ(min(-1, 1u), 1u);
  EXPECT_EQ(max(std::int64_t{3}, std::int64_t{5}), 5);
  EXPECT_EQ(__saturatef(NAN), 0.f);
  EXPECT_EQ(__saturatef(-1.f), 0.f);
  EXPECT_EQ(__saturatef(2.f), 1.f);
  EXPECT_EQ(__fdividef(1.f, 0x1p127f), 0.f);
  EXPECT_TRUE(std::isnan(__fdividef(INFINITY, 0x1p127f)));
  EXPECT_EQ(__fdividef(3.f, 2.f), 1.5f);
  EXPECT_EQ(__expf(-INFINITY), 0.f);
  for (float x : {0.01f, 0.5f, 1.f, 7.f, 80.f}) {
    EXPECT_NEAR(__expf(x) / expf(x), 1, 2e-5);  // the product's rounding, times x
    EXPECT_NEAR(__logf(x), logf(x), 1e-6);
    EXPECT_NEAR(__powf(x, 1.5f) / powf(x, 1.5f), 1, 1e-5);
    EXPECT_NEAR(rsqrtf(x) * sqrtf(x), 1, 1e-6);
    EXPECT_EQ(__frcp_rn(x), 1 / x);
    EXPECT_EQ(__fsqrt_rn(x), sqrtf(x));
  }
  EXPECT_EQ(exp2f(3) + expm1f(0) + fmaf(2, 3, 4), 18.f);
}

TEST(CudaShims, RoundingModes) {
  EXPECT_EQ(__float2int_rn(2.5f), 2);
  EXPECT_EQ(__float2int_rn(3.5f), 4);
  EXPECT_EQ(__float2int_rz(-2.5f), -2);
  EXPECT_EQ(__float2int_rd(-2.5f), -3);
  EXPECT_EQ(__float2int_ru(2.1f), 3);
  EXPECT_EQ(__float2int_rn(1e20f), INT_MAX);
  EXPECT_EQ(__float2int_rn(-INFINITY), INT_MIN);
  EXPECT_EQ(__float2int_rn(NAN), 0);
  EXPECT_EQ(__double2int_rn(NAN), INT_MIN);
  EXPECT_EQ(__float2uint_rz(-5.f), 0u);
  EXPECT_EQ(__float2uint_rz(4294967040.f), 4294967040u);
  EXPECT_EQ(__float2ull_rn(NAN), 1ull << 63);
  EXPECT_EQ(__float2ll_rn(0x1p63f), std::numeric_limits<long long>::max());
  const auto same = [](float x, float y) {
    return std::isnan(x) ? std::isnan(y) : __float_as_uint(x) == __float_as_uint(y);
  };
  std::mt19937_64 generator(1);
  for (int i = 0; i < 100000; ++i) {
    const auto v = static_cast<long long>(generator()) >> generator() % 64;
    ASSERT_EQ(__ll2float_rn(v), static_cast<float>(v));
    ASSERT_LE(static_cast<long double>(__ll2float_rd(v)), v);
    ASSERT_GE(static_cast<long double>(__ll2float_ru(v)), v);
    ASSERT_EQ(__ll2float_rz(v), v < 0 ? __ll2float_ru(v) : __ll2float_rd(v));
    ASSERT_LE(nextafterf(__ll2float_ru(v), -INFINITY), __ll2float_rd(v));
    const double d = std::bit_cast<double>(generator());
    ASSERT_TRUE(same(__double2float_rn(d), static_cast<float>(d))) << std::hexfloat << d;
    const float a = std::bit_cast<float>(static_cast<std::uint32_t>(generator())), b = static_cast<float>(d);
    const float c = i % 2 ? std::bit_cast<float>(static_cast<std::uint32_t>(generator())) : a * 0.7f;
    ASSERT_TRUE(same(__fmaf_rn(a, b, c), fmaf(a, b, c)));
    ASSERT_TRUE(same(__fadd_rn(a, c), a + c));
    ASSERT_TRUE(same(__fsub_rn(a, c), a - c));
    ASSERT_TRUE(same(__fmul_rn(a, c), a * c));
  }
  EXPECT_TRUE(std::signbit(__fmul_rn(-1.f, 0.f)) && !std::signbit(__fadd_rn(1.f, -1.f)));
}

}  // namespace
}  // namespace strop

// What device code finds without an include: min and max, conversions, mathematics and bits.
//
// Where a GPU approximates (__expf, rsqrtf, …), the formula is the GPU's and the functions in it are the C library's:
// results differ in the last bits, as they do between GPUs.
#pragma once

// The C headers as well as <cmath>: they bring isinf, abs and the like for every type into the global namespace.
#include <math.h>
#include <stdlib.h>

#include <bit>
#include <cmath>
#include <cstdint>

#include "host_defines.h"
#include "rounding.h"

// ---- min and max ----------------------------------------------------------------------------------------------------
// These overloads and no others, so that what is ambiguous to nvcc is so here. Of a float and a NaN, the float.

#define STROP_EMU_MIN_MAX(R, A, B)                                \
  __host__ __device__ __forceinline__ constexpr R min(A a, B b) { \
    const R x = static_cast<R>(a), y = static_cast<R>(b);         \
    return y < x ? y : x;                                         \
  }                                                               \
  __host__ __device__ __forceinline__ constexpr R max(A a, B b) { \
    const R x = static_cast<R>(a), y = static_cast<R>(b);         \
    return x < y ? y : x;                                         \
  }
#define STROP_EMU_INTEGER_MIN_MAX(S, U) \
  STROP_EMU_MIN_MAX(S, S, S)            \
  STROP_EMU_MIN_MAX(U, U, U)            \
  STROP_EMU_MIN_MAX(U, S, U)            \
  STROP_EMU_MIN_MAX(U, U, S)
STROP_EMU_INTEGER_MIN_MAX(int, unsigned int)
STROP_EMU_INTEGER_MIN_MAX(long, unsigned long)
STROP_EMU_INTEGER_MIN_MAX(long long, unsigned long long)
#undef STROP_EMU_INTEGER_MIN_MAX
#undef STROP_EMU_MIN_MAX

__host__ __device__ __forceinline__ float min(float a, float b) { return fminf(a, b); }
__host__ __device__ __forceinline__ double min(double a, double b) { return fmin(a, b); }
__host__ __device__ __forceinline__ double min(float a, double b) { return fmin(a, b); }
__host__ __device__ __forceinline__ double min(double a, float b) { return fmin(a, b); }
__host__ __device__ __forceinline__ float max(float a, float b) { return fmaxf(a, b); }
__host__ __device__ __forceinline__ double max(double a, double b) { return fmax(a, b); }
__host__ __device__ __forceinline__ double max(float a, double b) { return fmax(a, b); }
__host__ __device__ __forceinline__ double max(double a, float b) { return fmax(a, b); }

// ---- Bits as another type -------------------------------------------------------------------------------------------

__device__ __forceinline__ unsigned int __float_as_uint(float f) { return std::bit_cast<unsigned int>(f); }
__device__ __forceinline__ int __float_as_int(float f) { return std::bit_cast<int>(f); }
__device__ __forceinline__ float __uint_as_float(unsigned int i) { return std::bit_cast<float>(i); }
__device__ __forceinline__ float __int_as_float(int i) { return std::bit_cast<float>(i); }
__device__ __forceinline__ long long __double_as_longlong(double d) { return std::bit_cast<long long>(d); }
__device__ __forceinline__ double __longlong_as_double(long long i) { return std::bit_cast<double>(i); }
__device__ __forceinline__ int __double2hiint(double d) { return static_cast<int>(__double_as_longlong(d) >> 32); }
__device__ __forceinline__ int __double2loint(double d) { return static_cast<int>(__double_as_longlong(d)); }
__device__ __forceinline__ double __hiloint2double(int high, int low) {
  return std::bit_cast<double>(std::uint64_t{static_cast<unsigned>(high)} << 32 | static_cast<unsigned>(low));
}

// ---- Conversions in a rounding mode ---------------------------------------------------------------------------------

#define STROP_EMU_INTEGER(name, I, mode, rounding)                                                                \
  __device__ __forceinline__ I __float2##name##mode(float f) { return strop::emu::to_integer<I>(f, rounding); }   \
  __device__ __forceinline__ I __double2##name##mode(double d) { return strop::emu::to_integer<I>(d, rounding); } \
  __device__ __forceinline__ float __##name##2float##mode(I i) {                                                  \
    return strop::emu::narrow_to_float(strop::emu::integer_to_odd(i), rounding);                                  \
  }
#define STROP_EMU_MODE(mode, rounding)                       \
  STROP_EMU_INTEGER(int, int, mode, rounding)                \
  STROP_EMU_INTEGER(uint, unsigned int, mode, rounding)      \
  STROP_EMU_INTEGER(ll, long long, mode, rounding)           \
  STROP_EMU_INTEGER(ull, unsigned long long, mode, rounding) \
  __device__ __forceinline__ float __double2float##mode(double d) { return strop::emu::narrow_to_float(d, rounding); }
STROP_EMU_MODE(_rn, strop::emu::Rounding::kNearest)
STROP_EMU_MODE(_rz, strop::emu::Rounding::kZero)
STROP_EMU_MODE(_rd, strop::emu::Rounding::kDown)
STROP_EMU_MODE(_ru, strop::emu::Rounding::kUp)
#undef STROP_EMU_MODE
#undef STROP_EMU_INTEGER

// ---- Arithmetic, rounded to nearest even ---------------------------------------------------------------------------
// Sums and products are written as fmas, so that no compiler makes one fma of them.

__device__ __forceinline__ float __fmaf_rn(float a, float b, float c) {
  return strop::emu::narrow_to_float(strop::emu::fma_to_odd(a, b, c));
}
__device__ __forceinline__ float __fadd_rn(float a, float b) { return __fmaf_rn(a, 1.f, b); }
__device__ __forceinline__ float __fsub_rn(float a, float b) { return __fmaf_rn(-b, 1.f, a); }
__device__ __forceinline__ float __fmul_rn(float a, float b) { return __fmaf_rn(a, b, -0.f); }
__device__ __forceinline__ float __fdiv_rn(float a, float b) { return a / b; }
__device__ __forceinline__ float __frcp_rn(float a) { return 1.f / a; }
__device__ __forceinline__ float __fsqrt_rn(float a) { return sqrtf(a); }
// The two roundings before the last one are far finer than a float.
__device__ __forceinline__ float __frsqrt_rn(float a) { return static_cast<float>(1.L / sqrtl(a)); }
__device__ __forceinline__ double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
__device__ __forceinline__ double __dadd_rn(double a, double b) { return fma(a, 1., b); }
__device__ __forceinline__ double __dsub_rn(double a, double b) { return fma(-b, 1., a); }
__device__ __forceinline__ double __dmul_rn(double a, double b) { return fma(a, b, -0.); }
__device__ __forceinline__ double __ddiv_rn(double a, double b) { return a / b; }
__device__ __forceinline__ double __drcp_rn(double a) { return 1. / a; }
__device__ __forceinline__ double __dsqrt_rn(double a) { return sqrt(a); }

// In [0, 1]; of NaN, 0.
__device__ __forceinline__ float __saturatef(float a) { return a > 0.f ? fminf(a, 1.f) : 0.f; }

// ---- Approximations -------------------------------------------------------------------------------------------------
// glibc's <math.h> declares some of these as its own, with C linkage and noexcept, so they have to be so here.

extern "C" {
__device__ __forceinline__ float __log2f(float a) noexcept { return log2f(a); }
__device__ __forceinline__ float __logf(float a) noexcept { return log2f(a) * 0x1.62e43p-1f; }
__device__ __forceinline__ float __log10f(float a) noexcept { return log2f(a) * 0x1.344136p-2f; }
__device__ __forceinline__ float __expf(float a) noexcept { return exp2f(a * 0x1.715476p+0f); }
__device__ __forceinline__ float __exp10f(float a) noexcept { return exp2f(a * 0x1.a934fp+1f); }
__device__ __forceinline__ float __powf(float a, float b) noexcept { return exp2f(b * log2f(a)); }
__device__ __forceinline__ float __sinf(float a) noexcept { return sinf(a); }
__device__ __forceinline__ float __cosf(float a) noexcept { return cosf(a); }
__device__ __forceinline__ float __tanf(float a) noexcept { return sinf(a) / cosf(a); }
__device__ __forceinline__ void __sincosf(float a, float* sine, float* cosine) noexcept {
  *sine = sinf(a);
  *cosine = cosf(a);
}
__device__ __forceinline__ float rsqrtf(float a) noexcept { return static_cast<float>(1. / sqrt(double{a})); }
__device__ __forceinline__ double rsqrt(double a) noexcept { return 1. / sqrt(a); }
}

// Multiplies by the divisor's reciprocal, which beyond 2^126 is 0.
__device__ __forceinline__ float __fdividef(float a, float b) {
  return fabsf(b) > 0x1p126f ? a * copysignf(0.f, b) : a / b;
}
__device__ __forceinline__ float fdividef(float a, float b) { return a / b; }

// ---- Integers -------------------------------------------------------------------------------------------------------

__device__ __forceinline__ int __popc(unsigned int i) { return std::popcount(i); }
__device__ __forceinline__ int __popcll(unsigned long long i) { return std::popcount(i); }
__device__ __forceinline__ int __clz(int i) { return std::countl_zero(static_cast<unsigned int>(i)); }
__device__ __forceinline__ int __clzll(long long i) { return std::countl_zero(static_cast<unsigned long long>(i)); }
// From 1, the position of the lowest one; 0 without any.
__device__ __forceinline__ int __ffs(int i) { return __builtin_ffs(i); }
__device__ __forceinline__ int __ffsll(long long i) { return __builtin_ffsll(i); }

__device__ __forceinline__ unsigned int __brev(unsigned int i) {
  i = (i >> 1 & 0x55555555u) | (i & 0x55555555u) << 1;
  i = (i >> 2 & 0x33333333u) | (i & 0x33333333u) << 2;
  i = (i >> 4 & 0x0f0f0f0fu) | (i & 0x0f0f0f0fu) << 4;
  return __builtin_bswap32(i);
}
__device__ __forceinline__ unsigned long long __brevll(unsigned long long i) {
  return static_cast<unsigned long long>(__brev(static_cast<unsigned int>(i))) << 32 |
         __brev(static_cast<unsigned int>(i >> 32));
}

// Four of the eight bytes of a, the lower ones, and b; each nibble of the selector names one by its low three bits.
__device__ __forceinline__ unsigned int __byte_perm(unsigned int a, unsigned int b, unsigned int selector) {
  const std::uint64_t bytes = std::uint64_t{b} << 32 | a;
  unsigned int r = 0;
  for (int i = 0; i < 4; ++i) r |= static_cast<unsigned int>(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  return r;
}

// Shifts of the 64 bits high:low: by the amount modulo 32, or (_lc, _rc) by up to 32.
__device__ __forceinline__ unsigned int __funnelshift_l(unsigned int low, unsigned int high, unsigned int shift) {
  return static_cast<unsigned int>((std::uint64_t{high} << 32 | low) << (shift & 31) >> 32);
}
__device__ __forceinline__ unsigned int __funnelshift_lc(unsigned int low, unsigned int high, unsigned int shift) {
  return shift < 32 ? __funnelshift_l(low, high, shift) : low;
}
__device__ __forceinline__ unsigned int __funnelshift_r(unsigned int low, unsigned int high, unsigned int shift) {
  return static_cast<unsigned int>((std::uint64_t{high} << 32 | low) >> (shift & 31));
}
__device__ __forceinline__ unsigned int __funnelshift_rc(unsigned int low, unsigned int high, unsigned int shift) {
  return shift < 32 ? __funnelshift_r(low, high, shift) : high;
}

// The upper half of a product.
__device__ __forceinline__ int __mulhi(int a, int b) { return static_cast<int>(std::int64_t{a} * b >> 32); }
__device__ __forceinline__ unsigned int __umulhi(unsigned int a, unsigned int b) {
  return static_cast<unsigned int>(std::uint64_t{a} * b >> 32);
}
__device__ __forceinline__ long long __mul64hi(long long a, long long b) {
  __extension__ using Product = __int128;
  return static_cast<long long>(static_cast<Product>(a) * b >> 64);
}
__device__ __forceinline__ unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  __extension__ using Product = unsigned __int128;
  return static_cast<unsigned long long>(static_cast<Product>(a) * b >> 64);
}

// The mean, rounded down or (__rhadd) up, without overflow; |a - b| + c.
__device__ __forceinline__ int __hadd(int a, int b) { return static_cast<int>((std::int64_t{a} + b) >> 1); }
__device__ __forceinline__ int __rhadd(int a, int b) { return static_cast<int>((std::int64_t{a} + b + 1) >> 1); }
__device__ __forceinline__ unsigned int __uhadd(unsigned int a, unsigned int b) {
  return static_cast<unsigned int>((std::uint64_t{a} + b) >> 1);
}
__device__ __forceinline__ unsigned int __urhadd(unsigned int a, unsigned int b) {
  return static_cast<unsigned int>((std::uint64_t{a} + b + 1) >> 1);
}
__device__ __forceinline__ unsigned int __sad(int a, int b, unsigned int c) {
  return (a < b ? static_cast<unsigned int>(b) - static_cast<unsigned int>(a)
                : static_cast<unsigned int>(a) - static_cast<unsigned int>(b)) +
         c;
}
__device__ __forceinline__ unsigned int __usad(unsigned int a, unsigned int b, unsigned int c) {
  return (a < b ? b - a : a - b) + c;
}

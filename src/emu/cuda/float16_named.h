// The functions of __half and __nv_bfloat16 that have the type's name in theirs: __half2int_rn is
// __##half##2##int##_rn. T is the number, P the pair.
#pragma once

#include "float16.h"

#define STROP_EMU_FLOAT16_INTEGER_ROUNDED(T, word, name, I, mode, rounding)      \
  __host__ __device__ __forceinline__ I __##word##2##name##mode(T h) {           \
    return strop::emu::to_integer<I>(static_cast<float>(h), rounding);           \
  }                                                                              \
  __host__ __device__ __forceinline__ T __##name##2##word##mode(I i) {           \
    return strop::emu::float16_from<T>(strop::emu::integer_to_odd(i), rounding); \
  }
#define STROP_EMU_FLOAT16_INTEGER(T, word, name, I)                                        \
  STROP_EMU_FLOAT16_INTEGER_ROUNDED(T, word, name, I, _rn, strop::emu::Rounding::kNearest) \
  STROP_EMU_FLOAT16_INTEGER_ROUNDED(T, word, name, I, _rz, strop::emu::Rounding::kZero)    \
  STROP_EMU_FLOAT16_INTEGER_ROUNDED(T, word, name, I, _rd, strop::emu::Rounding::kDown)    \
  STROP_EMU_FLOAT16_INTEGER_ROUNDED(T, word, name, I, _ru, strop::emu::Rounding::kUp)
#define STROP_EMU_FLOAT16_NAMED(T, P, word)                                                                            \
  STROP_EMU_FLOAT16_INTEGER(T, word, short, short)                                                                     \
  STROP_EMU_FLOAT16_INTEGER(T, word, ushort, unsigned short)                                                           \
  STROP_EMU_FLOAT16_INTEGER(T, word, int, int)                                                                         \
  STROP_EMU_FLOAT16_INTEGER(T, word, uint, unsigned int)                                                               \
  STROP_EMU_FLOAT16_INTEGER(T, word, ll, long long)                                                                    \
  STROP_EMU_FLOAT16_INTEGER(T, word, ull, unsigned long long)                                                          \
  __host__ __device__ __forceinline__ signed char __##word##2##char_rz(T h) {                                          \
    return strop::emu::to_integer<signed char>(static_cast<float>(h), strop::emu::Rounding::kZero);                    \
  }                                                                                                                    \
  __host__ __device__ __forceinline__ unsigned char __##word##2##uchar_rz(T h) {                                       \
    return strop::emu::to_integer<unsigned char>(static_cast<float>(h), strop::emu::Rounding::kZero);                  \
  }                                                                                                                    \
  __host__ __device__ __forceinline__ float __##word##2##float(T h) { return static_cast<float>(h); }                  \
  __host__ __device__ __forceinline__ T __float2##word(float f) { return strop::emu::float16_from<T>(f); }             \
  __host__ __device__ __forceinline__ T __float2##word##_rn(float f) { return strop::emu::float16_from<T>(f); }        \
  __host__ __device__ __forceinline__ T __float2##word##_rz(float f) {                                                 \
    return strop::emu::float16_from<T>(f, strop::emu::Rounding::kZero);                                                \
  }                                                                                                                    \
  __host__ __device__ __forceinline__ T __float2##word##_rd(float f) {                                                 \
    return strop::emu::float16_from<T>(f, strop::emu::Rounding::kDown);                                                \
  }                                                                                                                    \
  __host__ __device__ __forceinline__ T __float2##word##_ru(float f) {                                                 \
    return strop::emu::float16_from<T>(f, strop::emu::Rounding::kUp);                                                  \
  }                                                                                                                    \
  __host__ __device__ __forceinline__ T __double2##word(double d) { return strop::emu::float16_from<T>(d); }           \
  __host__ __device__ __forceinline__ short __##word##_as_short(T h) {                                                 \
    return static_cast<short>(strop::emu::float16_bits(h));                                                            \
  }                                                                                                                    \
  __host__ __device__ __forceinline__ unsigned short __##word##_as_ushort(T h) { return strop::emu::float16_bits(h); } \
  __host__ __device__ __forceinline__ T __short_as_##word(short i) {                                                   \
    return strop::emu::float16_from_bits<T>(static_cast<unsigned short>(i));                                           \
  }                                                                                                                    \
  __host__ __device__ __forceinline__ T __ushort_as_##word(unsigned short i) {                                         \
    return strop::emu::float16_from_bits<T>(i);                                                                        \
  }                                                                                                                    \
  __host__ __device__ __forceinline__ T __low2##word(P a) { return a.x; }                                              \
  __host__ __device__ __forceinline__ T __high2##word(P a) { return a.y; }                                             \
  __host__ __device__ __forceinline__ P __low2##word##2(P a) { return P(a.x, a.x); }                                   \
  __host__ __device__ __forceinline__ P __high2##word##2(P a) { return P(a.y, a.y); }                                  \
  __host__ __device__ __forceinline__ P __lows2##word##2(P a, P b) { return P(a.x, b.x); }                             \
  __host__ __device__ __forceinline__ P __highs2##word##2(P a, P b) { return P(a.y, b.y); }                            \
  __host__ __device__ __forceinline__ P __halves2##word##2(T a, T b) { return P(a, b); }                               \
  __host__ __device__ __forceinline__ P __##word##2##word##2(T a) { return P(a, a); }                                  \
  __host__ __device__ __forceinline__ P __float2##word##2_rn(float f) {                                                \
    return P(__float2##word(f), __float2##word(f));                                                                    \
  }                                                                                                                    \
  __host__ __device__ __forceinline__ P __floats2##word##2_rn(float a, float b) {                                      \
    return P(__float2##word(a), __float2##word(b));                                                                    \
  }                                                                                                                    \
  __host__ __device__ __forceinline__ P __float22##word##2_rn(float2 f) {                                              \
    return P(__float2##word(f.x), __float2##word(f.y));                                                                \
  }                                                                                                                    \
  __host__ __device__ __forceinline__ float2 __##word##22float2(P a) {                                                 \
    return {static_cast<float>(a.x), static_cast<float>(a.y)};                                                         \
  }                                                                                                                    \
  __host__ __device__ __forceinline__ P make_##word##2(T x, T y) { return P(x, y); }

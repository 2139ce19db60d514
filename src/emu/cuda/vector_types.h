// CUDA's vectors, with CUDA's alignments. They are plain aggregates, so that a copy of a 16-byte one is one access.
#pragma once

#include <concepts>

#include "host_defines.h"

// A temporary is stored at once, too: a compiler would store it field by field. No copy assignment, so that the type
// stays trivial.
#define STROP_EMU_STORED_AT_ONCE(type)                                           \
  type& operator=(const type&) = default;                                        \
  template <std::same_as<type> U>                                                \
  __forceinline__ type& operator=(U&& v) {                                       \
    using Bytes [[gnu::vector_size(sizeof(U)), gnu::may_alias]] = unsigned char; \
    *reinterpret_cast<Bytes*>(this) = *reinterpret_cast<const Bytes*>(&v);       \
    return *this;                                                                \
  }

#define STROP_EMU_VECTORS(name, T, align2, align4)                                                          \
  struct name##1 {                                                                                          \
    T x;                                                                                                    \
  };                                                                                                        \
  struct __align__(align2) name##2 {                                                                        \
    T x, y;                                                                                                 \
    STROP_EMU_STORED_AT_ONCE(name##2)                                                                       \
  };                                                                                                        \
  struct name##3 {                                                                                          \
    T x, y, z;                                                                                              \
  };                                                                                                        \
  struct __align__(align4) name##4 {                                                                        \
    T x, y, z, w;                                                                                           \
    STROP_EMU_STORED_AT_ONCE(name##4)                                                                       \
  };                                                                                                        \
  __host__ __device__ __forceinline__ constexpr name##1 make_##name##1(T x) { return {x}; }                 \
  __host__ __device__ __forceinline__ constexpr name##2 make_##name##2(T x, T y) { return {x, y}; }         \
  __host__ __device__ __forceinline__ constexpr name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; } \
  __host__ __device__ __forceinline__ constexpr name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }

STROP_EMU_VECTORS(char, signed char, 2, 4)
STROP_EMU_VECTORS(uchar, unsigned char, 2, 4)
STROP_EMU_VECTORS(short, short, 4, 8)
STROP_EMU_VECTORS(ushort, unsigned short, 4, 8)
STROP_EMU_VECTORS(int, int, 8, 16)
STROP_EMU_VECTORS(uint, unsigned int, 8, 16)
STROP_EMU_VECTORS(long, long, 2 * sizeof(long), 16)
STROP_EMU_VECTORS(ulong, unsigned long, 2 * sizeof(long), 16)
STROP_EMU_VECTORS(longlong, long long, 16, 16)
STROP_EMU_VECTORS(ulonglong, unsigned long long, 16, 16)
STROP_EMU_VECTORS(float, float, 8, 16)
STROP_EMU_VECTORS(double, double, 16, 16)

#undef STROP_EMU_VECTORS
#undef STROP_EMU_STORED_AT_ONCE

struct dim3 {
  unsigned int x, y, z;
  __host__ __device__ constexpr dim3(unsigned int vx = 1, unsigned int vy = 1, unsigned int vz = 1)
      : x(vx), y(vy), z(vz) {}
  __host__ __device__ constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
  __host__ __device__ constexpr operator uint3() const { return {x, y, z}; }
};

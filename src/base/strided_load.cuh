// Tiles of single elements: a thread takes kN elements, `step` bytes apart, and has all loads in flight at once. With
// neighbouring threads on neighbouring elements each load of a warp is one line or two, at any alignment and stride.
#pragma once

#include <cstdint>

#include "base/mask.cuh"
#include "base/ptx/memory.cuh"

namespace strop {

// Raw bits of the 4- or 2-byte elements at p, p + step, … for which the bit of `inside` is set; 0 elsewhere.
template <int kN>
__device__ __forceinline__ void load_strided(std::uint32_t (&raw)[kN], const char* p, std::int64_t step, int bytes,
                                             unsigned inside) {
  // The size is tested once, outside: a test an element would make each load wait for the one before.
  if (bytes == 4) {
#pragma unroll
    for (int k = 0; k < kN; ++k, p += step) raw[k] = inside >> k & 1 ? ptx::load_once_u32(p) : 0;
  } else {
#pragma unroll
    for (int k = 0; k < kN; ++k, p += step) raw[k] = inside >> k & 1 ? ptx::load_once_u16(p) : 0;
  }
}

template <int kN, class Raw>
__device__ __forceinline__ unsigned load_strided_mask_as(const char* p, std::int64_t step, Raw bits, unsigned inside) {
  Raw raw[kN];
#pragma unroll
  for (int k = 0; k < kN; ++k, p += step) raw[k] = inside >> k & 1 ? *reinterpret_cast<const Raw*>(p) : Raw(0);
  unsigned valid = 0;
#pragma unroll
  for (int k = 0; k < kN; ++k) valid |= static_cast<unsigned>((raw[k] & bits) != 0) << k;
  return valid;
}

// Bit k: the mask element at p + k * step is inside and not zero.
template <int kN>
__device__ __forceinline__ unsigned load_strided_mask(const char* p, std::int64_t step, const MaskFormat& format,
                                                      unsigned inside) {
  switch (format.bytes) {
    case 1:
      return load_strided_mask_as<kN>(p, step, static_cast<std::uint8_t>(format.bits), inside);
    case 2:
      return load_strided_mask_as<kN>(p, step, static_cast<std::uint16_t>(format.bits), inside);
    case 4:
      return load_strided_mask_as<kN>(p, step, static_cast<std::uint32_t>(format.bits), inside);
    default:
      return load_strided_mask_as<kN>(p, step, format.bits, inside);
  }
}

}  // namespace strop

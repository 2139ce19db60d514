// Masks of any dtype: an element is valid where it is not zero (-0.0 is zero, NaN is not).
#pragma once

#include <cstdint>

#include "strop/tensor_view.h"

namespace strop {

// How to read a mask element: its size, and the bits that must not all be zero.
struct MaskFormat {
  int bytes = 1;
  std::uint64_t bits = ~0ull;
};

inline MaskFormat mask_format(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return {4, 0x7fffffffull};
    case DType::kFloat16:
    case DType::kBFloat16:
      return {2, 0x7fffull};
    case DType::kFloat64:
      return {8, 0x7fffffffffffffffull};
    default:
      return {dtype_size(dtype), ~0ull};
  }
}

__device__ __forceinline__ bool mask_is_valid(const void* p, const MaskFormat& format) {
  std::uint64_t v;
  switch (format.bytes) {
    case 1:
      v = *static_cast<const std::uint8_t*>(p);
      break;
    case 2:
      v = *static_cast<const std::uint16_t*>(p);
      break;
    case 4:
      v = *static_cast<const std::uint32_t*>(p);
      break;
    default:
      v = *static_cast<const std::uint64_t*>(p);
      break;
  }
  return (v & format.bits) != 0;
}

}  // namespace strop

// One element of any dtype as a double: for oracles, tests and the rare paths that need no speed.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "strop/tensor_view.h"

namespace strop {

inline float float_from_bfloat16(std::uint16_t bits) { return std::bit_cast<float>(std::uint32_t{bits} << 16); }

inline float float_from_float16(std::uint16_t bits) {
  const std::uint32_t sign = std::uint32_t{bits & 0x8000U} << 16;
  const std::uint32_t rest = bits & 0x7fffU;
  if (rest >= 0x7c00U) return std::bit_cast<float>(sign | 0x7f800000U | (rest & 0x3ffU) << 13);  // inf, NaN
  if (rest >= 0x0400U) return std::bit_cast<float>(sign | ((rest << 13) + (112U << 23)));
  const float small = static_cast<float>(rest) * 0x1p-24F;  // subnormal: exact in float
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(small));
}

template <class T>
T load_as(const void* data, std::int64_t index) {
  T value;
  std::memcpy(&value, static_cast<const char*>(data) + index * static_cast<std::int64_t>(sizeof(T)), sizeof(T));
  return value;
}

inline double load_element(const void* data, DType dtype, std::int64_t index) {
  switch (dtype) {
    case DType::kFloat32:
      return load_as<float>(data, index);
    case DType::kFloat16:
      return float_from_float16(load_as<std::uint16_t>(data, index));
    case DType::kBFloat16:
      return float_from_bfloat16(load_as<std::uint16_t>(data, index));
    case DType::kFloat64:
      return load_as<double>(data, index);
    case DType::kBool:
    case DType::kUInt8:
      return load_as<std::uint8_t>(data, index);
    case DType::kInt8:
      return load_as<std::int8_t>(data, index);
    case DType::kInt16:
      return load_as<std::int16_t>(data, index);
    case DType::kUInt16:
      return load_as<std::uint16_t>(data, index);
    case DType::kInt32:
      return load_as<std::int32_t>(data, index);
    case DType::kUInt32:
      return load_as<std::uint32_t>(data, index);
    case DType::kInt64:
      return static_cast<double>(load_as<std::int64_t>(data, index));
    case DType::kUInt64:
      return static_cast<double>(load_as<std::uint64_t>(data, index));
    case DType::kOther:
      break;
  }
  return 0;
}

// Whether an element counts as "valid": it is not zero. NaN and -0.0 are judged as floats are: true and false.
inline bool load_nonzero(const void* data, DType dtype, std::int64_t index) {
  return load_element(data, dtype, index) != 0;
}

}  // namespace strop

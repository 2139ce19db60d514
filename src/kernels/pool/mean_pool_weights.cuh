// Weights of any dtype as floats.
#pragma once

#include <cstdint>

#include "base/convert.cuh"
#include "kernels/pool/mean_pool.h"

namespace strop::pool {

// From the raw bits of an element, rounded to nearest.
__device__ __forceinline__ float to_weight(std::uint64_t bits, DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
    case DType::kFloat16:
    case DType::kBFloat16:
      return to_float(static_cast<std::uint32_t>(bits), dtype);
    case DType::kFloat64:
      return static_cast<float>(__longlong_as_double(static_cast<long long>(bits)));
    case DType::kBool:
      return bits != 0 ? 1.f : 0.f;
    case DType::kInt8:
      return static_cast<float>(static_cast<std::int8_t>(bits));
    case DType::kInt16:
      return static_cast<float>(static_cast<std::int16_t>(bits));
    case DType::kInt32:
      return static_cast<float>(static_cast<std::int32_t>(bits));
    case DType::kInt64:
      return static_cast<float>(static_cast<std::int64_t>(bits));
    default:  // unsigned
      return static_cast<float>(bits);
  }
}

// Raw bits of elements p, p + step, … of which the first `inside` are there; 0 elsewhere.
template <class Raw, int kN>
__device__ __forceinline__ void load_raw(const void* data, std::int64_t at, std::int64_t step, int inside,
                                         std::uint64_t (&bits)[kN]) {
  const Raw* const p = static_cast<const Raw*>(data) + at;
#pragma unroll
  for (int k = 0; k < kN; ++k) bits[k] = k < inside ? p[k * step] : 0;
}

// Of tokens t, t + step, … of a sequence of n; 0 for those that are not there. All loads are in flight at once.
template <int kN>
__device__ __forceinline__ void load_weights(const Problem& p, std::int64_t sequence, std::int64_t t, int step,
                                             std::int64_t n, float (&w)[kN]) {
  const auto inside = static_cast<int>(min((n - t + step - 1) / step, std::int64_t{kN}));
  if (p.mask.data == nullptr) {
#pragma unroll
    for (int k = 0; k < kN; ++k) w[k] = k < inside ? 1.f : 0.f;
    return;
  }
  const Weights& m = p.mask;
  const std::int64_t at = sequence * m.stride_sequence + t * m.stride, between = step * m.stride;
  std::uint64_t bits[kN];
  switch (m.dtype) {
    case DType::kBool:
    case DType::kInt8:
    case DType::kUInt8:
      load_raw<std::uint8_t>(m.data, at, between, inside, bits);
      break;
    case DType::kFloat16:
    case DType::kBFloat16:
    case DType::kInt16:
    case DType::kUInt16:
      load_raw<std::uint16_t>(m.data, at, between, inside, bits);
      break;
    case DType::kFloat32:
    case DType::kInt32:
    case DType::kUInt32:
      load_raw<std::uint32_t>(m.data, at, between, inside, bits);
      break;
    default:
      load_raw<std::uint64_t>(m.data, at, between, inside, bits);
  }
#pragma unroll
  for (int k = 0; k < kN; ++k) w[k] = to_weight(bits[k], m.dtype);
}

}  // namespace strop::pool

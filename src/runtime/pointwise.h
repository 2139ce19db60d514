// Elementwise work on the CPU that a plan does itself: copies, casts, sums and products of any strides. It saves the
// call of the framework, which for the small tensors of masks and positions takes longer than the work.
#pragma once

#include <cstdint>

#include "runtime/tensor.h"

namespace strop::runtime {

// f(T{}) for the C++ type of a dtype; false for those that have none here.
template <class F>
bool with_type(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kBool:
      f(bool{});
      return true;
    case DType::kUInt8:
      f(std::uint8_t{});
      return true;
    case DType::kInt32:
      f(std::int32_t{});
      return true;
    case DType::kInt64:
      f(std::int64_t{});
      return true;
    case DType::kFloat32:
      f(float{});
      return true;
    case DType::kFloat64:
      f(double{});
      return true;
    default:
      return false;
  }
}

enum class Pointwise : std::uint8_t { kAdd, kSub, kMul };

// to = from, of one shape. Of two dtypes where both are among bool, uint8, int32, int64, float32 and float64; false,
// and nothing done, for others.
bool copy_on_cpu(const Tensor& to, const Tensor& from);

// out = a op b, elementwise: a and b broadcast to out's shape and have its dtype, which is among int32, int64, float32
// and float64; false, and nothing done, for others. out may be a or b.
bool pointwise_on_cpu(Pointwise op, const Tensor& a, const Tensor& b, const Tensor& out);

// to[i] = start + i * step: int32, int64 or float32, one dimension; false for others.
bool range_on_cpu(const Tensor& to, std::int64_t start, std::int64_t step);

// A number as a dtype's bytes; throws Error for a dtype that scalars do not have.
void store_number(void* to, DType dtype, double real, std::int64_t integer);

}  // namespace strop::runtime

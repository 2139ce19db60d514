// Who makes the product of a linear layer: the framework's library (cuBLASLt, MKL, oneDNN) or strop's kernel. One rule
// for PyTorch's operators (bindings/torch) and for plans (src/runtime).
#pragma once

#include <cstdint>

#include "strop/tensor_view.h"

namespace strop {

// Rows on CUDA up to which strop makes float16's and bfloat16's products. To be measured: it is where the kernel stops
// to read each weight once, and nothing better than that is known of it yet.
inline constexpr std::int64_t kMostRowsOfProducts = 64;

// x (M, K).
inline bool makes_product(const TensorView& x) {
  return x.device == DeviceType::kCuda && (x.dtype == DType::kFloat16 || x.dtype == DType::kBFloat16) &&
         x.shape[0] <= kMostRowsOfProducts && x.shape[1] > 0;
}

}  // namespace strop

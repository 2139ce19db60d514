// Who makes the product of a linear layer: the framework's library (cuBLASLt, MKL, oneDNN) or strop's kernel. One rule
// for PyTorch's operators (bindings/torch) and for plans (src/runtime).
#pragma once

#include <cstdint>

#include "strop/tensor_view.h"

namespace strop {

// Rows on CUDA up to which strop makes float16's and bfloat16's products. None: on an H100 cuBLASLt takes half the time
// of strop's kernel from 1 to 64 rows at an encoder's sizes, its GELU by a kernel of its own included, and nine tenths
// at 4096 x 4096 (lab/006-encoder-layer).
inline constexpr std::int64_t kMostRowsOfProducts = 0;

// x (M, K).
inline bool makes_product(const TensorView& x) {
  return x.device == DeviceType::kCuda && (x.dtype == DType::kFloat16 || x.dtype == DType::kBFloat16) &&
         x.shape[0] <= kMostRowsOfProducts && x.shape[1] > 0;
}

}  // namespace strop

// Reverse KL divergence of two sets of logits: the contract between the public API and the backends.
//
// Maths. Per row with student logits x and teacher logits y, p = softmax(x), q = softmax(y)
//   kl = sum_v p (log p - log q),  loss = sum m kl / n,  n = max(1, sum m)
//   grad = m / n  p (log p - log q - kl)
// A term whose p is 0 (x = -inf, or p underflows fp32) is 0 and so is its gradient. y = -inf where p > 0: kl = +inf.
//
// Bytes. Each logit of a valid row is read once, each gradient written once; masked rows are not read, their gradient
// is written. V = 248320, bf16: 993 kB forward and 1490 kB fused a valid row, 497 kB a masked one (fused).
#pragma once

#include <cstdint>

#include "strop/status.h"
#include "strop/tensor_view.h"

namespace strop::reverse_kl {

// Logits of shape (outer, inner, vocab); (R, V) has outer 1. Strides in elements, any value.
struct Logits {
  void* data = nullptr;
  std::int64_t stride_outer = 0;
  std::int64_t stride_inner = 0;
  std::int64_t stride_vocab = 1;
  DType dtype = DType::kFloat32;  // float32, float16 or bfloat16
};

struct Mask {
  const void* data = nullptr;
  std::int64_t stride_outer = 0;
  std::int64_t stride_inner = 0;
  DType dtype = DType::kBool;  // any but kOther
};

// A checked call.
struct Problem {
  std::int64_t outer = 0, inner = 0, vocab = 0;
  Logits student, teacher;
  Mask mask;
  float* loss = nullptr;
  Logits grad;  // student's dtype; null data for the loss alone; may be the student's own memory, with its strides
  void* workspace = nullptr;
};

// The oracle: one thread, double precision. Inputs in host memory. `loss` and `grad` of the problem are not written:
// they go to *loss_out and, unless null, grad_out (outer * inner * vocab values, row-major).
void reference(const Problem& problem, double* loss_out, double* grad_out);

// Host memory, SIMD, all cores.
Status run_cpu(const Problem& problem);

// Device memory, one kernel on `stream`. The current device must be the inputs'.
Status run_cuda(const Problem& problem, void* stream);

}  // namespace strop::reverse_kl

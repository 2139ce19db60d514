// Reverse KL divergence of two sets of logits: the contract between the public API and the backends.
//
// Maths. Per row with student logits x and teacher logits y, p = softmax(x), q = softmax(y)
//   kl = sum_v p (log p - log q),  loss = sum m kl / n,  n = max(1, sum m)
//   grad = m / n  p (log p - log q - kl)
// A term whose p is 0 (x = -inf, or p underflows fp32) is 0 and so is its gradient. y = -inf where p > 0: kl = +inf.
//
// Bytes. Each logit of a valid row is read once, each gradient written once; masked rows are not read (but for a few
// logits that share 16 bytes with a valid row, and go nowhere), their gradient
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

// Bytes of memory that must move at least, with `valid` rows that count: the mask, the logits of those rows, the
// gradients of all, the loss. What lies on each other (a stride of 0) counts once.
inline std::int64_t floor_bytes(const Problem& p, std::int64_t valid) {
  const auto rows = [&](const auto& m, std::int64_t n) {
    const std::int64_t on_one = (m.stride_outer == 0 ? p.outer : 1) * (m.stride_inner == 0 ? p.inner : 1);
    return n == 0 ? 0 : (n + on_one - 1) / on_one * dtype_size(m.dtype);
  };
  const auto logits = [&](const Logits& m, std::int64_t n) { return rows(m, n) * (m.stride_vocab == 0 ? 1 : p.vocab); };
  const std::int64_t all = p.outer * p.inner;
  return rows(p.mask, all) + logits(p.student, valid) + logits(p.teacher, valid) +
         (p.grad.data != nullptr ? all * p.vocab * dtype_size(p.grad.dtype) : 0) + std::int64_t{sizeof(float)};
}

// The oracle: one thread, double precision. Inputs in host memory. `loss` and `grad` of the problem are not written:
// they go to *loss_out and, unless null, grad_out (outer * inner * vocab values, row-major).
void reference(const Problem& problem, double* loss_out, double* grad_out);

// Host memory, SIMD, all cores.
Status run_cpu(const Problem& problem);

// Device memory, one kernel on `stream`. The current device must be the inputs'.
Status run_cuda(const Problem& problem, void* stream);

}  // namespace strop::reverse_kl

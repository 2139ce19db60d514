// GRPO and BNPO: the contract between the public API, which checks, and the backends, which compute.
//
// Maths. With r = exp(policy - old), A the advantage, d = ref - policy, m the mask, per token
//   l = -min(r A, clip(r) A) + beta (exp(d) - d - 1),  clip to [clip_low, clip_high]
//   g = -r A where r A < clip(r) A, or they tie with r inside the clip range; half of it where they tie with r
//       outside (PyTorch's minimum shares a tie); 0 elsewhere; plus beta (1 - exp(d))
//   loss = sum over segments s of c / n_s  sum_{t in s} m l,  grad = m g c / n_s,  n_s = max(1, valid tokens of s)
// GRPO has a segment a row and c = 1 / B; BNPO has one segment and c = 1.
//
// Bytes. Each input is read once and the gradient written once: a token costs 3 or 4 logprob-sized reads (advantages
// of shape (B,) cost nothing), one mask read and one gradient write. fp32, bool mask, beta != 0, (B,) advantages:
// 13 bytes forward, 17 fused. floor_bytes() is what no kernel can do without: a masked token's logprobs need not be
// read, though the kernels here do, since its neighbours' come with the same sectors of memory.
#pragma once

#include <cstdint>

#include "strop/status.h"
#include "strop/tensor_view.h"

namespace strop::policy_loss {

enum class Reduction : std::uint8_t { kSequenceMean /* GRPO */, kTokenMean /* BNPO */ };

// A (B, T) input; element (b, t) is at data + b * stride_b + t * stride_t, in elements. An input of shape (B,) has
// stride_t 0; one that is not there has null data.
struct Matrix {
  const void* data = nullptr;
  std::int64_t stride_b = 0;
  std::int64_t stride_t = 0;
  DType dtype = DType::kFloat32;
};

// A checked call. Dtypes are float32, float16 or bfloat16 but for the mask, which is any but kOther.
struct Problem {
  std::int64_t batch = 0;   // B
  std::int64_t tokens = 0;  // T
  Matrix policy, old_policy, ref, advantages, mask;
  Reduction reduction = Reduction::kSequenceMean;
  float beta = 0;  // 0: ref is not read
  float clip_low = 0, clip_high = 0;
  float* loss = nullptr;
  void* grad = nullptr;  // (B, T) row-major in policy's dtype, or null
  void* workspace = nullptr;
};

// Bytes of memory that must move at least, with `valid` tokens that count: the mask, the logprobs and advantages of
// those tokens, the gradients of all, the loss. What lies on each other (a stride of 0) counts once.
inline std::int64_t floor_bytes(const Problem& p, std::int64_t valid) {
  const std::int64_t all = p.batch * p.tokens;
  const auto elements = [&](const Matrix& m, std::int64_t n) {
    const std::int64_t on_one = (m.stride_b == 0 ? p.batch : 1) * (m.stride_t == 0 ? p.tokens : 1);
    return n == 0 ? 0 : (n + on_one - 1) / on_one * dtype_size(m.dtype);
  };
  return elements(p.mask, all) + elements(p.policy, valid) + elements(p.old_policy, valid) +
         (p.beta != 0 ? elements(p.ref, valid) : 0) + elements(p.advantages, valid) +
         (p.grad != nullptr ? all * dtype_size(p.policy.dtype) : 0) + std::int64_t{sizeof(float)};
}

// The oracle: one thread, double precision, as plain as the formula. Inputs in host memory. `loss` and `grad` of the
// problem are not written: they go to *loss_out and, unless null, grad_out (B * T values).
void reference(const Problem& problem, double* loss_out, double* grad_out);

// Host memory, SIMD, all cores.
Status run_cpu(const Problem& problem);

// Device memory, one kernel on `stream`. The current device must be the inputs'.
Status run_cuda(const Problem& problem, void* stream);

}  // namespace strop::policy_loss

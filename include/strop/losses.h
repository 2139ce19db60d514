// Post-training losses: GRPO, BNPO and reverse KL, each the loss alone or the loss and its gradient in one pass.
//
// Every function takes views and returns a Status. It allocates nothing and, on CUDA, starts exactly one kernel on
// the given stream and does not wait for it. The device of the first input decides the backend.
//
// The arithmetic is fp32 whatever the inputs' dtype. Masked tokens reach nothing: their gradient is exactly 0 and the
// loss is the same whatever they hold. Results are bitwise the same from run to run on one device and shape.
#pragma once

#include <cstddef>
#include <optional>

#include "strop/status.h"
#include "strop/tensor_view.h"

namespace strop {

// Scratch that one call needs, on the inputs' device, 16-byte aligned, contents arbitrary before and after. It must
// stay valid and untouched by others until the call's work is done (stream order suffices on CUDA); calls that may
// run at the same time, replayed CUDA graphs included, need one each.
inline constexpr std::size_t kLossWorkspaceBytes = 96 * 1024;

struct Execution {
  void* workspace = nullptr;  // kLossWorkspaceBytes bytes
  void* stream = nullptr;     // cudaStream_t of the inputs' device; ignored on the CPU
};

struct PolicyLossInputs {
  TensorView policy_logprobs;      // (B, T), float32, float16 or bfloat16
  TensorView old_policy_logprobs;  // (B, T), any of the three
  TensorView ref_logprobs;         // (B, T), any of the three; null data allowed, and never read, where beta == 0
  TensorView advantages;           // (B,) or (B, T), any of the three
  TensorView completions_mask;     // (B, T), bool, any integer or float; non-zero means valid
};

struct PolicyLossOptions {
  double beta = 0.1;               // weight of the KL penalty towards the reference policy
  double eps = 0.2;                // the ratio is clipped from below at 1 - eps
  std::optional<double> eps_high;  // and from above at 1 + eps_high; eps where not given
};

// With r = exp(policy - old), A the advantage, d = ref - policy, per token
//   l = -min(r A, clip(r, 1 - eps, 1 + eps_high) A) + beta (exp(d) - d - 1)
// (Shao et al. 2024, arXiv:2402.03300, with the k3 estimate of the KL divergence, and one update a batch or several).
//
// loss: 0-dim float32. grad: d loss / d policy_logprobs, (B, T) row-major in policy_logprobs' dtype; null data for
// the loss alone. Both on the inputs' device.
//
// GRPO: the mean over sequences of each sequence's mean over its valid tokens.
Status grpo_loss(const PolicyLossInputs& inputs, const PolicyLossOptions& options, const TensorView& loss,
                 const TensorView& grad, const Execution& execution);
// BNPO: the mean over all valid tokens of the batch.
Status bnpo_loss(const PolicyLossInputs& inputs, const PolicyLossOptions& options, const TensorView& loss,
                 const TensorView& grad, const Execution& execution);

struct ReverseKlInputs {
  TensorView student_logits;    // (N, C, V) or (R, V), float32, float16 or bfloat16
  TensorView teacher_logits;    // same shape, any of the three
  TensorView completions_mask;  // (N, C) or (R,), bool, any integer or float; non-zero means valid
};

// Mean over valid tokens of KL(student || teacher) = sum_v p (log p - log q), p and q the softmaxes of the logits
// (Gu et al. 2023, arXiv:2306.08543). A logit of -inf in the student contributes 0; in the teacher alone, where the
// student has mass, the loss is +inf.
//
// loss: 0-dim float32. grad: d loss / d student_logits in its dtype and shape, any strides under which no two elements
// share memory; it may be the very memory of student_logits (same strides), which is then overwritten. Null data for
// the loss alone.
Status reverse_kl_loss(const ReverseKlInputs& inputs, const TensorView& loss, const TensorView& grad,
                       const Execution& execution);

}  // namespace strop

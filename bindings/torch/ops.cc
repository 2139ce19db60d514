// torch.ops.strop: the same functions as operators, for torch.compile, export and autograd, through LibTorch's stable
// ABI: one build serves every PyTorch from 2.11 on. python/strop/_registrations.py adds the fake and autograd ones.
#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

#include "execute.h"
#include "tensors.h"

// A Hub build loads beside the pip package in one process, under a namespace of its own.
#ifndef STROP_OPS_NAMESPACE
#define STROP_OPS_NAMESPACE strop
#endif

namespace strop::binding {
namespace {

using torch::stable::Tensor;

Output empty_loss(const TensorView& like) { return empty(like, DType::kFloat32, 0); }
Output empty_grad(const TensorView& like) { return empty(like, like.dtype, like.rank); }

using PolicyLoss = Status (*)(const PolicyLossInputs&, const PolicyLossOptions&, const TensorView&, const TensorView&,
                              const Execution&);

PolicyLossInputs policy_inputs(const Tensor& policy, const Tensor& old_policy, const std::optional<Tensor>& ref,
                               const Tensor& advantages, const Tensor& mask) {
  PolicyLossInputs in;
  in.policy_logprobs = view_of(policy, "policy_logprobs");
  in.old_policy_logprobs = view_of(old_policy, "old_policy_logprobs");
  if (ref.has_value()) in.ref_logprobs = view_of(*ref, "ref_logprobs");
  in.advantages = view_of(advantages, "advantages");
  in.completions_mask = view_of(mask, "completions_mask");
  return in;
}

void run_policy_loss(PolicyLoss core, const PolicyLossInputs& in, const PolicyLossOptions& options,
                     const TensorView& loss, const TensorView& grad) {
  check(execute(in.policy_logprobs, [&](const Execution& e) { return core(in, options, loss, grad, e); }));
}

template <PolicyLoss kCore>
struct PolicyOps {
  static Tensor fwd(const Tensor& policy, const Tensor& old_policy, const std::optional<Tensor>& ref,
                    const Tensor& advantages, const Tensor& mask, double beta, double eps,
                    std::optional<double> eps_high) {
    const PolicyLossInputs in = policy_inputs(policy, old_policy, ref, advantages, mask);
    const Output loss = empty_loss(in.policy_logprobs);
    run_policy_loss(kCore, in, {beta, eps, eps_high}, loss.view, {});
    return loss.tensor;
  }

  static std::tuple<Tensor, Tensor> fused(const Tensor& policy, const Tensor& old_policy,
                                          const std::optional<Tensor>& ref, const Tensor& advantages,
                                          const Tensor& mask, double beta, double eps, std::optional<double> eps_high) {
    const PolicyLossInputs in = policy_inputs(policy, old_policy, ref, advantages, mask);
    const Output loss = empty_loss(in.policy_logprobs), grad = empty_grad(in.policy_logprobs);
    run_policy_loss(kCore, in, {beta, eps, eps_high}, loss.view, grad.view);
    return {loss.tensor, grad.tensor};
  }
};
// GCC 12 does not instantiate what is named in TORCH_BOX alone.
template struct PolicyOps<&grpo_loss>;
template struct PolicyOps<&bnpo_loss>;

ReverseKlInputs reverse_kl_inputs(const Tensor& student, const Tensor& teacher, const Tensor& mask) {
  ReverseKlInputs in;
  in.student_logits = view_of(student, "student_logits");
  in.teacher_logits = view_of(teacher, "teacher_logits");
  in.completions_mask = view_of(mask, "completions_mask");
  return in;
}

Status run_reverse_kl(const ReverseKlInputs& in, const TensorView& loss, const TensorView& grad) {
  return execute(in.student_logits, [&](const Execution& e) { return reverse_kl_loss(in, loss, grad, e); });
}

Tensor reverse_kl_fwd(const Tensor& student, const Tensor& teacher, const Tensor& mask) {
  const ReverseKlInputs in = reverse_kl_inputs(student, teacher, mask);
  const Output loss = empty_loss(in.student_logits);
  check(run_reverse_kl(in, loss.view, {}));
  return loss.tensor;
}

std::tuple<Tensor, Tensor> reverse_kl_fused(const Tensor& student, const Tensor& teacher, const Tensor& mask) {
  const ReverseKlInputs in = reverse_kl_inputs(student, teacher, mask);
  const Output loss = empty_loss(in.student_logits), grad = empty_grad(in.student_logits);
  check(run_reverse_kl(in, loss.view, grad.view));
  return {loss.tensor, grad.tensor};
}

Tensor reverse_kl_in_place(Tensor student, const Tensor& teacher, const Tensor& mask) {
  const ReverseKlInputs in = reverse_kl_inputs(student, teacher, mask);
  const Output loss = empty_loss(in.student_logits);
  check(in_place_status(run_reverse_kl(in, loss.view, in.student_logits)));
  return loss.tensor;
}

#define STROP_POLICY_ARGS                                                                          \
  "(Tensor policy_logprobs, Tensor old_policy_logprobs, Tensor? ref_logprobs, Tensor advantages, " \
  "Tensor completions_mask, float beta=0.1, float eps=0.2, float? eps_high=None) -> "
#define STROP_KL_ARGS "Tensor teacher_logits, Tensor completions_mask) -> "

template <class Library>
void implement(Library& m) {
  m.impl("grpo_loss_fwd", TORCH_BOX(&PolicyOps<&grpo_loss>::fwd));
  m.impl("grpo_loss", TORCH_BOX(&PolicyOps<&grpo_loss>::fused));
  m.impl("bnpo_loss_fwd", TORCH_BOX(&PolicyOps<&bnpo_loss>::fwd));
  m.impl("bnpo_loss", TORCH_BOX(&PolicyOps<&bnpo_loss>::fused));
  m.impl("reverse_kl_fwd", TORCH_BOX(&reverse_kl_fwd));
  m.impl("reverse_kl", TORCH_BOX(&reverse_kl_fused));
  m.impl("reverse_kl_", TORCH_BOX(&reverse_kl_in_place));
}

}  // namespace
}  // namespace strop::binding

#define STROP_LIBRARY(ns, m) STABLE_TORCH_LIBRARY(ns, m)
#define STROP_LIBRARY_IMPL(ns, k, m) STABLE_TORCH_LIBRARY_IMPL(ns, k, m)

STROP_LIBRARY(STROP_OPS_NAMESPACE, m) {
  m.def("grpo_loss_fwd" STROP_POLICY_ARGS "Tensor");
  m.def("grpo_loss" STROP_POLICY_ARGS "(Tensor loss, Tensor grad)");
  m.def("bnpo_loss_fwd" STROP_POLICY_ARGS "Tensor");
  m.def("bnpo_loss" STROP_POLICY_ARGS "(Tensor loss, Tensor grad)");
  m.def("reverse_kl_fwd(Tensor student_logits, " STROP_KL_ARGS "Tensor");
  m.def("reverse_kl(Tensor student_logits, " STROP_KL_ARGS "(Tensor loss, Tensor grad)");
  m.def("reverse_kl_(Tensor(a!) student_logits, " STROP_KL_ARGS "Tensor");
}

STROP_LIBRARY_IMPL(STROP_OPS_NAMESPACE, CPU, m) { strop::binding::implement(m); }
STROP_LIBRARY_IMPL(STROP_OPS_NAMESPACE, CUDA, m) { strop::binding::implement(m); }

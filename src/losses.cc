// The public API of the losses: checks views, fills in a Problem, runs a backend. The checks are on the path of every
// call, so they compare and branch only; a message is put together, out of line, once something is wrong.
#include "strop/losses.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>

#include "base/backends.h"
#include "base/checks.h"
#include "kernels/policy_loss/policy_loss.h"
#include "kernels/reverse_kl/reverse_kl.h"

namespace strop {
namespace {

using namespace strop::checks;  // NOLINT(google-build-using-namespace)

STROP_COLD Status shape_error(const char* name, const TensorView& view, const TensorView& like, int rank,
                              const char* like_name) {
  return value_error(name, "shape " + tuple_text(like.shape, rank) + " like " + like_name, shape_text(view));
}

STROP_COLD Status scalar_error(const char* name, const char* expected, double value) {
  return value_error(name, expected, std::to_string(value));
}

// An input or output that is "like" another: same device; data there unless it is empty.
Status check_like(const char* name, const TensorView& view, const TensorView& like, int rank, const char* like_name,
                  bool empty) {
  if (!same_shape(view, like, rank)) [[unlikely]]
    return shape_error(name, view, like, rank, like_name);
  STROP_RETURN_IF_ERROR(check_same_device(name, view, like, like_name));
  if (view.data == nullptr && !empty) [[unlikely]]
    return value_error(name, "a tensor", "none");
  return {};
}

Status check_loss(const TensorView& loss, const TensorView& like, const char* like_name) {
  if (loss.dtype != DType::kFloat32) [[unlikely]]
    return type_error("loss", "float32", dtype_name(loss.dtype));
  if (loss.rank != 0) [[unlikely]]
    return value_error("loss", "a 0-dimensional tensor", "shape " + shape_text(loss));
  if (loss.data == nullptr) [[unlikely]]
    return value_error("loss", "a tensor", "none");
  return check_same_device("loss", loss, like, like_name);
}

// ---------------------------------------------------------------------------------------------- GRPO and BNPO

Status policy_float(const char* name, const TensorView& view, const TensorView& policy, int rank, bool empty) {
  STROP_RETURN_IF_ERROR(check_float(name, view.dtype));
  return check_like(name, view, policy, rank, "policy_logprobs", empty);
}

policy_loss::Matrix matrix(const TensorView& view) {
  return {view.data, view.strides[0], view.rank == 2 ? view.strides[1] : 0, view.dtype};
}

Status run_policy_loss(policy_loss::Reduction reduction, const PolicyLossInputs& in, const PolicyLossOptions& options,
                       const TensorView& loss, const TensorView& grad, const Execution& execution) {
  const TensorView& policy = in.policy_logprobs;
  STROP_RETURN_IF_ERROR(check_float("policy_logprobs", policy.dtype));
  if (policy.rank != 2) [[unlikely]] {
    return value_error("policy_logprobs", "2 dimensions (B, T)",
                       policy.data == nullptr && policy.rank == 0 ? "none" : "shape " + shape_text(policy));
  }
  STROP_RETURN_IF_ERROR(check_device("policy_logprobs", policy, STROP_WITH_CUDA != 0));
  const bool empty = policy.shape[0] == 0 || policy.shape[1] == 0;
  if (policy.data == nullptr && !empty) [[unlikely]]
    return value_error("policy_logprobs", "a tensor", "none");
  STROP_RETURN_IF_ERROR(policy_float("old_policy_logprobs", in.old_policy_logprobs, policy, 2, empty));

  policy_loss::Problem p;
  p.beta = static_cast<float>(options.beta);
  if (!std::isfinite(p.beta)) [[unlikely]]
    return scalar_error("beta", "a finite number", options.beta);
  if (!(options.eps >= 0)) [[unlikely]]
    return scalar_error("eps", "a number >= 0", options.eps);
  const double eps_high = options.eps_high.value_or(options.eps);
  if (!(eps_high >= 0)) [[unlikely]]
    return scalar_error("eps_high", "a number >= 0", eps_high);
  p.clip_low = static_cast<float>(1.0 - options.eps);
  p.clip_high = static_cast<float>(1.0 + eps_high);
  if (p.beta != 0) {
    if (in.ref_logprobs.data == nullptr && (in.ref_logprobs.rank == 0 || !empty)) [[unlikely]] {
      return value_error("ref_logprobs", "a tensor, as beta is not 0", "none");
    }
    STROP_RETURN_IF_ERROR(policy_float("ref_logprobs", in.ref_logprobs, policy, 2, empty));
    p.ref = matrix(in.ref_logprobs);
  }
  const int advantages_rank = in.advantages.rank == 1 ? 1 : 2;
  STROP_RETURN_IF_ERROR(check_float("advantages", in.advantages.dtype));
  if (!same_shape(in.advantages, policy, advantages_rank)) [[unlikely]] {
    return value_error(
        "advantages",
        "shape " + tuple_text(policy.shape, 1) + " or " + tuple_text(policy.shape, 2) + " like policy_logprobs",
        shape_text(in.advantages));
  }
  STROP_RETURN_IF_ERROR(policy_float("advantages", in.advantages, policy, advantages_rank, empty));
  if (in.completions_mask.dtype == DType::kOther) [[unlikely]] {
    return type_error("completions_mask", "bool, an integer or a float dtype", dtype_name(DType::kOther));
  }
  STROP_RETURN_IF_ERROR(check_like("completions_mask", in.completions_mask, policy, 2, "policy_logprobs", empty));
  STROP_RETURN_IF_ERROR(check_loss(loss, policy, "policy_logprobs"));
  STROP_RETURN_IF_ERROR(check_workspace(execution.workspace, "kLossWorkspaceBytes"));

  if (grad.data != nullptr) {
    if (grad.dtype != policy.dtype) [[unlikely]] {
      return type_error("grad", std::string(dtype_name(policy.dtype)) + " like policy_logprobs",
                        dtype_name(grad.dtype));
    }
    STROP_RETURN_IF_ERROR(check_like("grad", grad, policy, 2, "policy_logprobs", empty));
    const bool rows_adjoin = grad.shape[0] <= 1 || grad.strides[0] == grad.shape[1];
    const bool tokens_adjoin = grad.shape[1] <= 1 || grad.strides[1] == 1;
    if (!empty && !(rows_adjoin && tokens_adjoin)) [[unlikely]] {
      return value_error("grad", "a row-major tensor", "strides " + strides_text(grad));
    }
    const Range range = range_of(grad);
    const std::pair<const char*, const TensorView*> others[] = {{"policy_logprobs", &policy},
                                                                {"old_policy_logprobs", &in.old_policy_logprobs},
                                                                {"advantages", &in.advantages},
                                                                {"completions_mask", &in.completions_mask},
                                                                {"ref_logprobs", &in.ref_logprobs}};
    for (const auto& [name, view] : others) {
      if (view == &in.ref_logprobs && p.beta == 0) continue;
      if (range.overlaps(range_of(*view))) [[unlikely]] {
        return value_error("grad", "memory of its own", "memory shared with " + std::string(name));
      }
    }
    p.grad = grad.data;
  }

  p.batch = policy.shape[0];
  p.tokens = policy.shape[1];
  p.policy = matrix(policy);
  p.old_policy = matrix(in.old_policy_logprobs);
  p.advantages = matrix(in.advantages);
  p.mask = matrix(in.completions_mask);
  p.reduction = reduction;
  p.loss = static_cast<float*>(loss.data);
  p.workspace = execution.workspace;
#if STROP_WITH_CUDA
  if (policy.device == DeviceType::kCuda) {
    STROP_EMULATOR_NAMES({"policy_logprobs", policy}, {"old_policy_logprobs", in.old_policy_logprobs},
                         {"ref_logprobs", p.beta != 0 ? in.ref_logprobs : TensorView{}}, {"advantages", in.advantages},
                         {"completions_mask", in.completions_mask}, {"loss", loss, emu::Access::kOutput},
                         {"grad", grad, emu::Access::kOutput},
                         named_workspace(execution.workspace, kLossWorkspaceBytes));
    return policy_loss::run_cuda(p, execution.stream);
  }
#endif
  return policy_loss::run_cpu(p);
}

// ---------------------------------------------------------------------------------------------- Reverse KL

reverse_kl::Logits logits(const TensorView& view) {
  const bool flat = view.rank == 2;
  return {view.data, flat ? 0 : view.strides[0], view.strides[flat ? 0 : 1], view.strides[flat ? 1 : 2], view.dtype};
}

}  // namespace

Status grpo_loss(const PolicyLossInputs& inputs, const PolicyLossOptions& options, const TensorView& loss,
                 const TensorView& grad, const Execution& execution) {
  return run_policy_loss(policy_loss::Reduction::kSequenceMean, inputs, options, loss, grad, execution);
}

Status bnpo_loss(const PolicyLossInputs& inputs, const PolicyLossOptions& options, const TensorView& loss,
                 const TensorView& grad, const Execution& execution) {
  return run_policy_loss(policy_loss::Reduction::kTokenMean, inputs, options, loss, grad, execution);
}

Status reverse_kl_loss(const ReverseKlInputs& in, const TensorView& loss, const TensorView& grad,
                       const Execution& execution) {
  const TensorView& student = in.student_logits;
  STROP_RETURN_IF_ERROR(check_float("student_logits", student.dtype));
  if (student.rank != 2 && student.rank != 3) [[unlikely]] {
    return value_error("student_logits", "3 dimensions (N, C, V) or 2 (R, V)",
                       student.data == nullptr && student.rank == 0 ? "none" : "shape " + shape_text(student));
  }
  STROP_RETURN_IF_ERROR(check_device("student_logits", student, STROP_WITH_CUDA != 0));
  const int rank = student.rank;
  const std::int64_t vocab = student.shape[rank - 1];
  if (vocab <= 0) [[unlikely]] {
    return value_error("student_logits", "a vocabulary of at least 1", "shape " + shape_text(student));
  }
  const bool empty = student.shape[0] == 0 || student.shape[rank - 2] == 0;
  if (student.data == nullptr && !empty) [[unlikely]]
    return value_error("student_logits", "a tensor", "none");
  STROP_RETURN_IF_ERROR(check_float("teacher_logits", in.teacher_logits.dtype));
  STROP_RETURN_IF_ERROR(check_like("teacher_logits", in.teacher_logits, student, rank, "student_logits", empty));
  if (in.completions_mask.dtype == DType::kOther) [[unlikely]] {
    return type_error("completions_mask", "bool, an integer or a float dtype", dtype_name(DType::kOther));
  }
  STROP_RETURN_IF_ERROR(
      check_like("completions_mask", in.completions_mask, student, rank - 1, "student_logits", empty));
  STROP_RETURN_IF_ERROR(check_loss(loss, student, "student_logits"));
  STROP_RETURN_IF_ERROR(check_workspace(execution.workspace, "kLossWorkspaceBytes"));

  reverse_kl::Problem p;
  bool in_place = false;
  if (grad.data != nullptr) {
    if (grad.dtype != student.dtype) [[unlikely]] {
      return type_error("grad", std::string(dtype_name(student.dtype)) + " like student_logits",
                        dtype_name(grad.dtype));
    }
    STROP_RETURN_IF_ERROR(check_like("grad", grad, student, rank, "student_logits", empty));
    STROP_RETURN_IF_ERROR(check_elements_apart("grad", grad));
    in_place = grad.data == student.data && same_strides(grad, student);
    if (!in_place && share_memory(grad, student)) [[unlikely]] {
      return value_error("grad", "memory of its own or exactly that of student_logits",
                         "memory shared with student_logits in another layout");
    }
    if (share_memory(grad, in.teacher_logits)) [[unlikely]] {
      return value_error("grad", "memory of its own", "memory shared with teacher_logits");
    }
    if (range_of(grad).overlaps(range_of(in.completions_mask))) [[unlikely]] {
      return value_error("grad", "memory of its own", "memory shared with completions_mask");
    }
    p.grad = logits(grad);
  }

  p.outer = rank == 2 ? 1 : student.shape[0];
  p.inner = student.shape[rank - 2];
  p.vocab = vocab;
  p.student = logits(student);
  p.teacher = logits(in.teacher_logits);
  const TensorView& mask = in.completions_mask;
  p.mask = {mask.data, rank == 2 ? 0 : mask.strides[0], mask.strides[rank - 2], mask.dtype};
  p.loss = static_cast<float*>(loss.data);
  p.workspace = execution.workspace;
#if STROP_WITH_CUDA
  if (student.device == DeviceType::kCuda) {
    STROP_EMULATOR_NAMES({"student_logits", student, in_place ? emu::Access::kInOut : emu::Access::kInput},
                         {"teacher_logits", in.teacher_logits}, {"completions_mask", mask},
                         {"loss", loss, emu::Access::kOutput},
                         {"grad", in_place ? TensorView{} : grad, emu::Access::kOutput},
                         named_workspace(execution.workspace, kLossWorkspaceBytes));
    return reverse_kl::run_cuda(p, execution.stream);
  }
#endif
  return reverse_kl::run_cpu(p);
}

}  // namespace strop

// The public API's checks: each mistake is an error that names the argument, what was expected and what came, and
// nothing is written. What the functions compute is tested in their families' folders.
#include "strop/losses.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "tests/support/backend.h"
#include "tests/support/tensor.h"

namespace strop {
namespace {

using namespace strop::testing;  // NOLINT(google-build-using-namespace)

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

void expect_error(const Status& status, StatusCode code, const std::vector<std::string>& parts) {
  EXPECT_EQ(static_cast<int>(status.code()), static_cast<int>(code)) << status.message();
  for (const std::string& part : parts) {
    EXPECT_NE(status.message().find(part), std::string::npos) << "no \"" << part << "\" in: " << status.message();
  }
}

// ---------------------------------------------------------------------------------------------- GRPO and BNPO

struct PolicyCall {
  Tensor policy{DType::kFloat32, {4, 7}}, old_policy{DType::kFloat32, {4, 7}}, ref{DType::kFloat32, {4, 7}};
  Tensor advantages{DType::kFloat32, {4}}, mask{DType::kBool, {4, 7}};
  Tensor loss_tensor{DType::kFloat32, {}}, grad_tensor{DType::kFloat32, {4, 7}};
  PolicyLossInputs inputs;
  PolicyLossOptions options;
  TensorView loss, grad;
  Execution execution;

  PolicyCall(const Backend& backend, const Workspace& workspace) {
    for (Tensor* tensor : {&policy, &old_policy, &ref, &advantages, &mask})
      tensor->fill([](std::int64_t) { return 1; });
    inputs = {policy.on(backend), old_policy.on(backend), ref.on(backend), advantages.on(backend), mask.on(backend)};
    loss = loss_tensor.on(backend);
    grad = grad_tensor.on(backend);
    execution.workspace = workspace.data();
  }
};

struct PolicyMistake {
  std::function<void(PolicyCall&)> make;
  StatusCode code;
  std::vector<std::string> message;
};

const PolicyMistake kPolicyMistakes[] = {
    {[](PolicyCall& c) { c.inputs.policy_logprobs.dtype = DType::kFloat64; },
     StatusCode::kTypeError,
     {"policy_logprobs: expected float32, float16 or bfloat16, got float64"}},
    {[](PolicyCall& c) { c.inputs.old_policy_logprobs.dtype = DType::kFloat64; },
     StatusCode::kTypeError,
     {"old_policy_logprobs", "float64"}},
    {[](PolicyCall& c) { c.inputs.ref_logprobs.dtype = DType::kInt64; },
     StatusCode::kTypeError,
     {"ref_logprobs", "int64"}},
    {[](PolicyCall& c) { c.inputs.advantages.dtype = DType::kInt32; }, StatusCode::kTypeError, {"advantages", "int32"}},
    {[](PolicyCall& c) { c.inputs.policy_logprobs.dtype = DType::kBool; },
     StatusCode::kTypeError,
     {"policy_logprobs", "bool"}},
    {[](PolicyCall& c) { c.inputs.completions_mask.dtype = DType::kOther; },
     StatusCode::kTypeError,
     {"completions_mask", "bool, an integer or a float"}},
    {[](PolicyCall& c) { c.inputs.policy_logprobs.rank = 1; },
     StatusCode::kValueError,
     {"policy_logprobs: expected 2 dimensions (B, T), got shape (4,)"}},
    {[](PolicyCall& c) { c.inputs.policy_logprobs = {}; }, StatusCode::kValueError, {"policy_logprobs", "got none"}},
    {[](PolicyCall& c) { c.inputs.old_policy_logprobs.shape[1] = 8; },
     StatusCode::kValueError,
     {"old_policy_logprobs: expected shape (4, 7) like policy_logprobs, got (4, 8)"}},
    {[](PolicyCall& c) { c.inputs.old_policy_logprobs = {}; },
     StatusCode::kValueError,
     {"old_policy_logprobs", "got none"}},
    {[](PolicyCall& c) { c.inputs.old_policy_logprobs.data = nullptr; },
     StatusCode::kValueError,
     {"old_policy_logprobs: expected a tensor, got none"}},
    {[](PolicyCall& c) { c.inputs.ref_logprobs = {}; },
     StatusCode::kValueError,
     {"ref_logprobs: expected a tensor, as beta is not 0, got none"}},
    {[](PolicyCall& c) { c.inputs.ref_logprobs.shape[0] = 3; }, StatusCode::kValueError, {"ref_logprobs", "(3, 7)"}},
    {[](PolicyCall& c) { c.inputs.advantages.shape[0] = 7; },
     StatusCode::kValueError,
     {"advantages: expected shape (4,) or (4, 7) like policy_logprobs, got (7,)"}},
    {[](PolicyCall& c) { c.inputs.advantages = {}; }, StatusCode::kValueError, {"advantages", "got none"}},
    {[](PolicyCall& c) { c.inputs.completions_mask.rank = 1; },
     StatusCode::kValueError,
     {"completions_mask: expected shape (4, 7)", "got (4,)"}},
    {[](PolicyCall& c) { c.inputs.completions_mask.data = nullptr; }, StatusCode::kValueError, {"completions_mask"}},
    {[](PolicyCall& c) { c.inputs.policy_logprobs.device = DeviceType::kOther; },
     StatusCode::kValueError,
     {"policy_logprobs", "CPU or CUDA"}},
    {[](PolicyCall& c) { c.inputs.old_policy_logprobs.device = DeviceType::kOther; },
     StatusCode::kValueError,
     {"old_policy_logprobs", "like policy_logprobs"}},
    {[](PolicyCall& c) {
       c.inputs.advantages.device = DeviceType::kCuda;
       c.inputs.advantages.device_index = 5;
     },
     StatusCode::kValueError,
     {"advantages", "cuda:5"}},
    {[](PolicyCall& c) { c.options.eps = -0.1; }, StatusCode::kValueError, {"eps: expected a number >= 0, got -0.1"}},
    {[](PolicyCall& c) { c.options.eps = kNan; }, StatusCode::kValueError, {"eps: expected a number >= 0", "nan"}},
    {[](PolicyCall& c) { c.options.eps_high = -1; }, StatusCode::kValueError, {"eps_high", "-1"}},
    {[](PolicyCall& c) { c.options.eps_high = kNan; }, StatusCode::kValueError, {"eps_high", "nan"}},
    {[](PolicyCall& c) { c.options.beta = kNan; }, StatusCode::kValueError, {"beta", "finite", "nan"}},
    {[](PolicyCall& c) { c.options.beta = 1e300; }, StatusCode::kValueError, {"beta", "finite"}},
    {[](PolicyCall& c) { c.loss.dtype = DType::kFloat64; }, StatusCode::kTypeError, {"loss: expected float32"}},
    {[](PolicyCall& c) { c.loss.rank = 1; }, StatusCode::kValueError, {"loss: expected a 0-dimensional tensor"}},
    {[](PolicyCall& c) { c.loss.data = nullptr; }, StatusCode::kValueError, {"loss", "none"}},
    {[](PolicyCall& c) { c.loss.device = DeviceType::kOther; }, StatusCode::kValueError, {"loss"}},
    {[](PolicyCall& c) { c.grad.dtype = DType::kFloat16; },
     StatusCode::kTypeError,
     {"grad: expected float32 like policy_logprobs, got float16"}},
    {[](PolicyCall& c) { c.grad.shape[1] = 6; }, StatusCode::kValueError, {"grad", "(4, 6)"}},
    {[](PolicyCall& c) { c.grad.strides[0] = 8; }, StatusCode::kValueError, {"grad", "row-major", "(8, 1)"}},
    {[](PolicyCall& c) { c.grad.strides[1] = 0; }, StatusCode::kValueError, {"grad", "row-major"}},
    {[](PolicyCall& c) { c.grad.data = c.inputs.policy_logprobs.data; },
     StatusCode::kValueError,
     {"grad: expected memory of its own, got memory shared with policy_logprobs"}},
    {[](PolicyCall& c) { c.grad.data = static_cast<char*>(c.inputs.ref_logprobs.data) + 8; },
     StatusCode::kValueError,
     {"grad", "ref_logprobs"}},
    {[](PolicyCall& c) { c.grad.data = static_cast<char*>(c.inputs.completions_mask.data) - 100; },
     StatusCode::kValueError,
     {"grad", "completions_mask"}},
    {[](PolicyCall& c) { c.execution.workspace = nullptr; }, StatusCode::kValueError, {"workspace", "none"}},
    {[](PolicyCall& c) { c.execution.workspace = static_cast<char*>(c.execution.workspace) + 4; },
     StatusCode::kValueError,
     {"workspace", "misaligned"}},
};

TEST(LossesSmall, PolicyMistakes) {
  for (const Backend& backend : device_backends()) {
    const Workspace workspace(backend);
    for (const PolicyMistake& mistake : kPolicyMistakes) {
      for (const auto& function : {grpo_loss, bnpo_loss}) {
        PolicyCall call(backend, workspace);
        mistake.make(call);
        SCOPED_TRACE(::testing::Message() << backend << " " << mistake.message[0]);
        expect_error(function(call.inputs, call.options, call.loss, call.grad, call.execution), mistake.code,
                     mistake.message);
        synchronize(backend);
        for (Tensor* tensor : {&call.loss_tensor, &call.grad_tensor}) {
          tensor->fetch();
          tensor->expect_unchanged("an output");
        }
        // The process goes on.
        PolicyCall right(backend, workspace);
        EXPECT_TRUE(function(right.inputs, right.options, right.loss, right.grad, right.execution).ok());
        synchronize(backend);
      }
    }
  }
}

TEST(LossesSmall, PolicyAcceptsWhatItShould) {
  for (const Backend& backend : device_backends()) {
    const Workspace workspace(backend);
    const std::function<void(PolicyCall&)> kVariants[] = {
        [](PolicyCall& c) { c.grad = {}; },
        [](PolicyCall& c) { c.options.eps_high = 0.28; },
        [](PolicyCall& c) { c.options.eps = std::numeric_limits<double>::infinity(); },
        [](PolicyCall& c) { c.options.beta = -0.5; },
        [](PolicyCall& c) {
          c.options.beta = 0;
          c.inputs.ref_logprobs = {};
        },
        [](PolicyCall& c) {
          c.options.beta = 0;
          c.inputs.ref_logprobs.dtype = DType::kOther;
        },
        [](PolicyCall& c) { c.inputs.advantages = c.inputs.ref_logprobs; },
        [](PolicyCall& c) { c.inputs.old_policy_logprobs = c.inputs.policy_logprobs; },
    };
    for (const auto& variant : kVariants) {
      PolicyCall call(backend, workspace);
      variant(call);
      const Status status = grpo_loss(call.inputs, call.options, call.loss, call.grad, call.execution);
      EXPECT_TRUE(status.ok()) << status.message();
      synchronize(backend);
      call.loss_tensor.fetch();
      EXPECT_TRUE(std::isfinite(call.loss_tensor.get(0)));
    }
  }
}

// ---------------------------------------------------------------------------------------------- Reverse KL

struct KlCall {
  Tensor student{DType::kFloat32, {2, 3, 10}}, teacher{DType::kFloat32, {2, 3, 10}}, mask{DType::kBool, {2, 3}};
  Tensor wide{DType::kFloat32, {2, 3, 20}};  // room for views that share memory in all kinds of ways
  Tensor loss_tensor{DType::kFloat32, {}}, grad_tensor{DType::kFloat32, {2, 3, 10}};
  ReverseKlInputs inputs;
  TensorView loss, grad, wide_view;
  Execution execution;

  KlCall(const Backend& backend, const Workspace& workspace) {
    for (Tensor* tensor : {&student, &teacher, &mask, &wide}) tensor->fill([](std::int64_t) { return 1; });
    inputs = {student.on(backend), teacher.on(backend), mask.on(backend)};
    loss = loss_tensor.on(backend);
    grad = grad_tensor.on(backend);
    wide_view = wide.on(backend);
    execution.workspace = workspace.data();
  }
  // Columns [first, first + 10) of `wide`.
  TensorView columns(std::int64_t first) const {
    TensorView view = wide_view;
    view.shape[2] = 10;
    view.data = static_cast<float*>(view.data) + first;
    return view;
  }
};

struct KlMistake {
  std::function<void(KlCall&)> make;
  StatusCode code;
  std::vector<std::string> message;
};

const KlMistake kKlMistakes[] = {
    {[](KlCall& c) { c.inputs.student_logits.dtype = DType::kFloat64; },
     StatusCode::kTypeError,
     {"student_logits: expected float32, float16 or bfloat16, got float64"}},
    {[](KlCall& c) { c.inputs.teacher_logits.dtype = DType::kInt8; },
     StatusCode::kTypeError,
     {"teacher_logits", "int8"}},
    {[](KlCall& c) { c.inputs.completions_mask.dtype = DType::kOther; }, StatusCode::kTypeError, {"completions_mask"}},
    {[](KlCall& c) { c.inputs.student_logits.rank = 1; },
     StatusCode::kValueError,
     {"student_logits: expected 3 dimensions (N, C, V) or 2 (R, V), got shape (2,)"}},
    {[](KlCall& c) { c.inputs.student_logits = {}; }, StatusCode::kValueError, {"student_logits", "got none"}},
    {[](KlCall& c) { c.inputs.student_logits.data = nullptr; }, StatusCode::kValueError, {"student_logits", "none"}},
    {[](KlCall& c) { c.inputs.student_logits.shape[2] = 0; },
     StatusCode::kValueError,
     {"student_logits: expected a vocabulary of at least 1, got shape (2, 3, 0)"}},
    {[](KlCall& c) { c.inputs.teacher_logits.shape[2] = 11; },
     StatusCode::kValueError,
     {"teacher_logits: expected shape (2, 3, 10) like student_logits, got (2, 3, 11)"}},
    {[](KlCall& c) { c.inputs.teacher_logits.rank = 2; }, StatusCode::kValueError, {"teacher_logits", "(2, 3)"}},
    {[](KlCall& c) { c.inputs.teacher_logits.device = DeviceType::kOther; },
     StatusCode::kValueError,
     {"teacher_logits", "like student_logits"}},
    {[](KlCall& c) { c.inputs.completions_mask.shape[1] = 4; },
     StatusCode::kValueError,
     {"completions_mask: expected shape (2, 3) like student_logits, got (2, 4)"}},
    {[](KlCall& c) { c.inputs.completions_mask.data = nullptr; }, StatusCode::kValueError, {"completions_mask"}},
    {[](KlCall& c) { c.inputs.student_logits.device = DeviceType::kOther; },
     StatusCode::kValueError,
     {"student_logits", "CPU or CUDA"}},
    {[](KlCall& c) { c.loss.dtype = DType::kBFloat16; }, StatusCode::kTypeError, {"loss", "bfloat16"}},
    {[](KlCall& c) { c.loss.data = nullptr; }, StatusCode::kValueError, {"loss"}},
    {[](KlCall& c) { c.grad.dtype = DType::kBFloat16; }, StatusCode::kTypeError, {"grad", "like student_logits"}},
    {[](KlCall& c) { c.grad.shape[0] = 1; }, StatusCode::kValueError, {"grad", "(1, 3, 10)"}},
    {[](KlCall& c) { c.grad.strides[1] = 0; }, StatusCode::kValueError, {"grad", "share no memory", "(30, 0, 1)"}},
    {[](KlCall& c) { c.grad.strides[0] = 20; }, StatusCode::kValueError, {"grad", "share no memory"}},
    {[](KlCall& c) {  // in place on an expanded student
       c.inputs.student_logits.strides[0] = 0;
       c.grad = c.inputs.student_logits;
     },
     StatusCode::kValueError,
     {"grad", "share no memory"}},
    {[](KlCall& c) {  // the student's memory, transposed
       c.grad = c.inputs.student_logits;
       c.grad.strides[1] = 1;
       c.grad.strides[2] = 3;
     },
     StatusCode::kValueError,
     {"grad", "student_logits in another layout"}},
    {[](KlCall& c) {  // overlapping columns
       c.inputs.student_logits = c.columns(0);
       c.grad = c.columns(9);
     },
     StatusCode::kValueError,
     {"grad", "student_logits"}},
    {[](KlCall& c) { c.grad.data = c.inputs.teacher_logits.data; },
     StatusCode::kValueError,
     {"grad: expected memory of its own, got memory shared with teacher_logits"}},
    {[](KlCall& c) { c.grad.data = static_cast<char*>(c.inputs.completions_mask.data) - 40; },
     StatusCode::kValueError,
     {"grad", "completions_mask"}},
    {[](KlCall& c) { c.execution.workspace = nullptr; }, StatusCode::kValueError, {"workspace"}},
};

TEST(LossesSmall, ReverseKlMistakes) {
  for (const Backend& backend : device_backends()) {
    const Workspace workspace(backend);
    for (const KlMistake& mistake : kKlMistakes) {
      KlCall call(backend, workspace);
      mistake.make(call);
      SCOPED_TRACE(::testing::Message() << backend << " " << mistake.message[0]);
      expect_error(reverse_kl_loss(call.inputs, call.loss, call.grad, call.execution), mistake.code, mistake.message);
      synchronize(backend);
      for (Tensor* tensor : {&call.loss_tensor, &call.grad_tensor, &call.student, &call.wide}) {
        tensor->fetch();
        tensor->expect_unchanged("an output");
      }
      KlCall right(backend, workspace);
      EXPECT_TRUE(reverse_kl_loss(right.inputs, right.loss, right.grad, right.execution).ok());
      synchronize(backend);
    }
  }
}

TEST(LossesSmall, ReverseKlAcceptsWhatItShould) {
  for (const Backend& backend : device_backends()) {
    const Workspace workspace(backend);
    const std::function<void(KlCall&)> kVariants[] = {
        [](KlCall& c) { c.grad = {}; },
        [](KlCall& c) { c.grad = c.inputs.student_logits; },
        [](KlCall& c) { c.inputs.teacher_logits = c.inputs.student_logits; },
        [](KlCall& c) {  // columns beside each other in one buffer share rows, not elements
          c.inputs.student_logits = c.columns(0);
          c.grad = c.columns(10);
        },
        [](KlCall& c) { c.inputs.teacher_logits.strides[0] = 0; },
    };
    for (const auto& variant : kVariants) {
      KlCall call(backend, workspace);
      variant(call);
      const Status status = reverse_kl_loss(call.inputs, call.loss, call.grad, call.execution);
      EXPECT_TRUE(status.ok()) << status.message();
      synchronize(backend);
      call.loss_tensor.fetch();
      EXPECT_NEAR(call.loss_tensor.get(0), 0, 1e-6);
    }
  }
}

#if !STROP_WITH_CUDA
TEST(LossesSmall, CudaTensorsWithoutCuda) {
  const Backend& cpu = device_backends()[0];
  const Workspace workspace(cpu);
  PolicyCall policy(cpu, workspace);
  policy.inputs.policy_logprobs.device = DeviceType::kCuda;
  expect_error(grpo_loss(policy.inputs, policy.options, policy.loss, policy.grad, policy.execution),
               StatusCode::kValueError, {"policy_logprobs", "strop was built without CUDA"});
  KlCall kl(cpu, workspace);
  kl.inputs.student_logits.device = DeviceType::kCuda;
  expect_error(reverse_kl_loss(kl.inputs, kl.loss, kl.grad, kl.execution), StatusCode::kValueError,
               {"student_logits", "strop was built without CUDA"});
}
#endif

// ---------------------------------------------------------------------------------------------- TensorView

TEST(TensorView, ContiguousAndNumel) {
  float data[24];
  const TensorView view = TensorView::contiguous(data, DType::kFloat32, {2, 3, 4});
  EXPECT_EQ(view.rank, 3);
  EXPECT_EQ(view.numel(), 24);
  EXPECT_EQ(view.strides[0], 12);
  EXPECT_EQ(view.strides[1], 4);
  EXPECT_EQ(view.strides[2], 1);
  EXPECT_EQ(TensorView::contiguous(data, DType::kFloat32, {}).numel(), 1);
  EXPECT_EQ(TensorView::contiguous(data, DType::kFloat32, {5, 0}).numel(), 0);
}

TEST(TensorView, DtypesHaveSizesAndNames) {
  EXPECT_EQ(dtype_size(DType::kBool), 1);
  EXPECT_EQ(dtype_size(DType::kBFloat16), 2);
  EXPECT_EQ(dtype_size(DType::kUInt32), 4);
  EXPECT_EQ(dtype_size(DType::kFloat64), 8);
  EXPECT_EQ(dtype_size(DType::kOther), 0);
  EXPECT_STREQ(dtype_name(DType::kBFloat16), "bfloat16");
  EXPECT_STREQ(dtype_name(DType::kUInt64), "uint64");
}

}  // namespace
}  // namespace strop

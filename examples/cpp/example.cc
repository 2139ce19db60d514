// The losses from C++, without any framework: a GRPO loss with its gradient and a reverse KL divergence, each beside
// the numbers that the formulas give when written down plainly. Exits with 1 where they differ.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <vector>

#include "strop/losses.h"
#include "strop/parallel.h"

namespace {

using strop::DType;
using strop::TensorView;

int failures = 0;

void check(const char* what, double got, double expected) {
  // fp32 arithmetic: some ten roundings of 6e-8 each, of values around 1.
  const bool agrees = std::abs(got - expected) <= 1e-6 * std::max(1.0, std::abs(expected));
  std::printf("  %-28s %13.9f   by hand %13.9f   %s\n", what, got, expected, agrees ? "ok" : "WRONG");
  failures += agrees ? 0 : 1;
}

bool succeeded(const char* what, const strop::Status& status) {
  if (!status.ok()) {
    std::printf("%s: %s\n", what, status.message().c_str());
    ++failures;
  }
  return status.ok();
}

// What a call works in. One each for calls that may run at the same time.
strop::Execution execution() {
  alignas(16) static std::byte workspace[strop::kLossWorkspaceBytes];
  return {.workspace = workspace};
}

// Two sequences of three tokens; the last token of the second is padding. Token 1 of the first sequence is clipped.
void grpo() {
  constexpr int kB = 2, kT = 3;
  constexpr double kBeta = 0.1, kEps = 0.2;
  std::vector<float> policy = {-0.5f, -1.0f, -2.0f, -0.3f, -1.5f, NAN};
  std::vector<float> old_policy = {-0.6f, -1.4f, -1.9f, -0.3f, -1.6f, 0.0f};
  std::vector<float> ref = {-0.7f, -0.9f, -2.1f, -0.4f, -1.2f, 0.0f};
  std::vector<float> advantages = {1.25f, -0.75f};
  std::vector<unsigned char> mask = {1, 1, 1, 1, 1, 0};
  float loss = NAN;
  std::vector<float> grad(policy.size(), NAN);

  const auto matrix = [](std::vector<float>& v) { return TensorView::contiguous(v.data(), DType::kFloat32, {kB, kT}); };
  const strop::PolicyLossInputs inputs = {
      .policy_logprobs = matrix(policy),
      .old_policy_logprobs = matrix(old_policy),
      .ref_logprobs = matrix(ref),
      .advantages = TensorView::contiguous(advantages.data(), DType::kFloat32, {kB}),
      .completions_mask = TensorView::contiguous(mask.data(), DType::kBool, {kB, kT}),
  };
  const auto status = strop::grpo_loss(inputs, {.beta = kBeta, .eps = kEps, .eps_high = {}},
                                       TensorView::contiguous(&loss, DType::kFloat32, {}), matrix(grad), execution());
  if (!succeeded("grpo_loss", status)) return;

  std::printf("grpo_loss\n");
  double expected_loss = 0;
  for (int b = 0; b < kB; ++b) {
    const double valid = mask[b * kT] + mask[b * kT + 1] + mask[b * kT + 2];
    for (int t = 0; t < kT; ++t) {
      const int i = b * kT + t;
      double expected_grad = 0;
      if (mask[i]) {
        const double a = advantages[b];
        const double r = std::exp(double{policy[i]} - old_policy[i]);
        const double clipped = std::clamp(r, 1 - kEps, 1 + kEps);
        const double d = double{ref[i]} - policy[i];
        expected_loss += (-std::min(r * a, clipped * a) + kBeta * (std::exp(d) - d - 1)) / valid / kB;
        // Where the clipped term is the smaller one, it is constant in the policy.
        expected_grad = ((r * a <= clipped * a ? -r * a : 0) + kBeta * (1 - std::exp(d))) / valid / kB;
      }
      char name[32];
      std::snprintf(name, sizeof name, "gradient of token (%d, %d)", b, t);
      check(name, grad[i], expected_grad);
    }
  }
  check("loss", loss, expected_loss);
}

// Two rows over a vocabulary of five; the student gives no mass to one word of the first row.
void reverse_kl() {
  constexpr int kR = 2, kV = 5;
  std::vector<float> student = {0.1f, -INFINITY, 1.5f, -0.4f, 0.8f, -1.0f, 0.3f, 0.0f, 2.0f, 0.5f};
  std::vector<float> teacher = {0.9f, 0.2f, 0.4f, -1.1f, 0.0f, 0.6f, -0.2f, 1.0f, 0.7f, -0.5f};
  std::vector<unsigned char> mask = {1, 1};
  float loss = NAN;
  std::vector<float> grad(student.size(), NAN);

  const auto matrix = [](std::vector<float>& v) { return TensorView::contiguous(v.data(), DType::kFloat32, {kR, kV}); };
  const strop::ReverseKlInputs inputs = {
      .student_logits = matrix(student),
      .teacher_logits = matrix(teacher),
      .completions_mask = TensorView::contiguous(mask.data(), DType::kBool, {kR}),
  };
  const auto status =
      strop::reverse_kl_loss(inputs, TensorView::contiguous(&loss, DType::kFloat32, {}), matrix(grad), execution());
  if (!succeeded("reverse_kl_loss", status)) return;

  std::printf("reverse_kl_loss\n");
  double expected_loss = 0;
  for (int row = 0; row < kR; ++row) {
    const float* x = &student[row * kV];
    const float* y = &teacher[row * kV];
    double x_sum = 0, y_sum = 0, kl = 0;
    for (int v = 0; v < kV; ++v) {
      x_sum += std::exp(double{x[v]});
      y_sum += std::exp(double{y[v]});
    }
    double p[kV], log_ratio[kV];  // softmax of the student; log p - log q
    for (int v = 0; v < kV; ++v) {
      p[v] = std::exp(double{x[v]}) / x_sum;
      log_ratio[v] = p[v] > 0 ? (x[v] - std::log(x_sum)) - (y[v] - std::log(y_sum)) : 0;
      kl += p[v] * log_ratio[v];
    }
    for (int v = 0; v < kV; ++v) {
      char name[32];
      std::snprintf(name, sizeof name, "gradient of logit (%d, %d)", row, v);
      check(name, grad[row * kV + v], p[v] * (log_ratio[v] - kl) / kR);
    }
    expected_loss += kl / kR;
  }
  check("loss", loss, expected_loss);
}

}  // namespace

int main() {
  std::printf("strop on %d CPU threads\n", strop::num_threads());
  grpo();
  reverse_kl();
  if (failures) {
    std::printf("%d values are wrong\n", failures);
  } else {
    std::printf("all values agree\n");
  }
  return failures ? 1 : 0;
}

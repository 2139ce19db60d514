#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>

#include "base/element.h"
#include "kernels/reverse_kl/reverse_kl.h"

namespace strop::reverse_kl {
namespace {

struct Row {
  const Logits& logits;
  std::int64_t offset;
  std::int64_t vocab;

  double operator[](std::int64_t v) const {
    return load_element(logits.data, logits.dtype, offset + v * logits.stride_vocab);
  }
  // log sum_v exp(x_v). NaN where a logit is NaN or +inf, or all are -inf, as log_softmax would have it.
  double log_sum_exp() const {
    double maximum = -std::numeric_limits<double>::infinity();
    for (std::int64_t v = 0; v < vocab; ++v) {
      if (std::isnan((*this)[v])) return (*this)[v];
      maximum = std::max(maximum, (*this)[v]);
    }
    double sum = 0;
    for (std::int64_t v = 0; v < vocab; ++v) sum += std::exp((*this)[v] - maximum);
    return maximum + std::log(sum);
  }
};

Row row_of(const Logits& logits, std::int64_t o, std::int64_t i, std::int64_t vocab) {
  return {logits, o * logits.stride_outer + i * logits.stride_inner, vocab};
}

}  // namespace

void reference(const Problem& p, double* loss_out, double* grad_out) {
  const auto valid = [&](std::int64_t o, std::int64_t i) {
    return load_nonzero(p.mask.data, p.mask.dtype, o * p.mask.stride_outer + i * p.mask.stride_inner);
  };
  std::int64_t count = 0;
  for (std::int64_t o = 0; o < p.outer; ++o) {
    for (std::int64_t i = 0; i < p.inner; ++i) count += valid(o, i);
  }
  const double weight = 1.0 / static_cast<double>(std::max<std::int64_t>(1, count));

  double loss = 0;
  for (std::int64_t o = 0; o < p.outer; ++o) {
    for (std::int64_t i = 0; i < p.inner; ++i) {
      double* grad = grad_out == nullptr ? nullptr : grad_out + (o * p.inner + i) * p.vocab;
      if (!valid(o, i)) {
        if (grad != nullptr) std::fill(grad, grad + p.vocab, 0.0);
        continue;
      }
      const Row x = row_of(p.student, o, i, p.vocab), y = row_of(p.teacher, o, i, p.vocab);
      const double lse_x = x.log_sum_exp(), lse_y = y.log_sum_exp();
      double kl = lse_y - lse_y;  // 0, or NaN: a teacher's NaN counts even where the student has no mass
      for (std::int64_t v = 0; v < p.vocab; ++v) {
        const double log_p = x[v] - lse_x, log_q = y[v] - lse_y;
        const double mass = std::exp(log_p);
        if (mass < FLT_MIN) continue;  // 0 in fp32; false for NaN
        kl += mass * (log_p - log_q);
      }
      loss += weight * kl;
      if (grad == nullptr) continue;
      for (std::int64_t v = 0; v < p.vocab; ++v) {
        const double log_p = x[v] - lse_x, log_q = y[v] - lse_y;
        const double mass = std::exp(log_p);
        grad[v] = mass < FLT_MIN ? 0.0 : weight * mass * (log_p - log_q - kl);
      }
    }
  }
  *loss_out = loss;
}

}  // namespace strop::reverse_kl

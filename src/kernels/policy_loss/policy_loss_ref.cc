#include <algorithm>
#include <cmath>

#include "base/element.h"
#include "kernels/policy_loss/policy_loss.h"

namespace strop::policy_loss {
namespace {

double at(const Matrix& m, std::int64_t b, std::int64_t t) {
  return load_element(m.data, m.dtype, b * m.stride_b + t * m.stride_t);
}

struct Token {
  double loss, grad;
};

Token token(const Problem& p, std::int64_t b, std::int64_t t) {
  const double policy = at(p.policy, b, t);
  const double advantage = at(p.advantages, b, t);
  const double r = std::exp(policy - at(p.old_policy, b, t));
  // NaN passes every comparison below unchanged and so reaches both loss and gradient.
  const double clipped = r < p.clip_low ? p.clip_low : r > p.clip_high ? p.clip_high : r;
  const double plain_term = r * advantage, clipped_term = clipped * advantage;
  const bool inside = r >= p.clip_low && r <= p.clip_high;
  Token result{};
  result.loss = -(plain_term > clipped_term ? clipped_term : plain_term);
  if (plain_term > clipped_term) {
    result.grad = 0;
  } else if (plain_term == clipped_term && !inside) {
    result.grad = -0.5 * plain_term;
  } else {
    result.grad = -plain_term;
  }
  if (p.beta != 0) {
    const double d = at(p.ref, b, t) - policy;
    result.loss += p.beta * (std::expm1(d) - d);
    result.grad -= p.beta * std::expm1(d);
  }
  return result;
}

}  // namespace

void reference(const Problem& p, double* loss_out, double* grad_out) {
  const auto valid = [&](std::int64_t b, std::int64_t t) {
    return load_nonzero(p.mask.data, p.mask.dtype, b * p.mask.stride_b + t * p.mask.stride_t);
  };
  const bool by_sequence = p.reduction == Reduction::kSequenceMean;
  const auto valid_tokens = [&](std::int64_t first_row, std::int64_t end_row) {
    std::int64_t n = 0;
    for (std::int64_t b = first_row; b < end_row; ++b) {
      for (std::int64_t t = 0; t < p.tokens; ++t) n += valid(b, t);
    }
    return n;
  };
  double loss = 0;
  double weight = 1.0 / static_cast<double>(std::max<std::int64_t>(1, by_sequence ? 0 : valid_tokens(0, p.batch)));
  for (std::int64_t b = 0; b < p.batch; ++b) {
    if (by_sequence) {
      weight =
          1.0 / static_cast<double>(p.batch) / static_cast<double>(std::max<std::int64_t>(1, valid_tokens(b, b + 1)));
    }
    for (std::int64_t t = 0; t < p.tokens; ++t) {
      Token result{};
      if (valid(b, t)) {
        result = token(p, b, t);
        loss += weight * result.loss;
      }
      if (grad_out != nullptr) grad_out[b * p.tokens + t] = weight * result.grad;
    }
  }
  *loss_out = loss;
}

}  // namespace strop::policy_loss

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "base/element.h"
#include "kernels/attention/attention.h"

namespace strop::attn {

void reference(const Problem& p, const Expected& expected) {
  const auto at = [&](const Tensor& t, std::int64_t b, std::int64_t h, std::int64_t l, int c) {
    return load_element(t.data, p.dtype, b * t.stride_b + h * t.stride_h + l * t.stride_l + c * t.stride_d);
  };
  const auto place = [](const Mask& m, std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) {
    return b * m.stride_b + h * m.stride_h + i * m.stride_q + j * m.stride_k;
  };
  const double nothing = -std::numeric_limits<double>::infinity();
  for (std::int64_t row = 0; row < p.batch * p.heads * p.max_q; ++row) {
    const std::int64_t b = row / p.max_q / p.heads, h = row / p.max_q % p.heads, i = row % p.max_q;
    const std::int64_t kv = h / p.group();
    const Sequence s = sequence_of(p, b);
    double* out = expected.out + row * p.d;
    double* spread = expected.spread + row * p.d;
    std::fill(out, out + p.d, 0), std::fill(spread, spread + p.d, 0);
    expected.reach[row] = 0;
    if (i >= s.q) continue;
    std::vector<double> x(static_cast<std::size_t>(s.k), nothing), reach(x.size());
    const Keys keys = keys_of(p, s, i);
    double largest = nothing, sum = 0;
    for (std::int64_t j = keys.begin; j < keys.end; ++j) {
      if (p.mask.data != nullptr && !load_nonzero(p.mask.data, p.mask.dtype, place(p.mask, b, h, i, j))) continue;
      double dot = 0, magnitude = 0;
      for (int c = 0; c < p.d; ++c) {
        const double product = at(p.q, b, h, s.q_begin + i, c) * at(p.k, b, kv, s.k_begin + j, c);
        dot += product, magnitude += std::abs(product);
      }
      const double scale = static_cast<double>(p.scale);
      const double bias =
          p.bias.data == nullptr ? 0 : load_element(p.bias.data, p.bias.dtype, place(p.bias, b, h, i, j));
      x[j] = dot * scale + bias;
      reach[j] = magnitude * std::abs(scale) + std::abs(bias);
      if (!(x[j] <= largest)) largest = x[j];  // NaN, too
    }
    if (largest == nothing) continue;
    for (std::int64_t j = keys.begin; j < keys.end; ++j) sum += std::exp(x[j] - largest);
    for (std::int64_t j = keys.begin; j < keys.end; ++j) {
      if (x[j] == nothing) continue;
      const double weight = std::exp(x[j] - largest) / sum;
      for (int c = 0; c < p.d; ++c) {
        const double v = at(p.v, b, kv, s.k_begin + j, c);
        out[c] += weight * v, spread[c] += weight * std::abs(v);
      }
      if (!(weight < 1e-9)) expected.reach[row] = std::max(expected.reach[row], reach[j]);
    }
  }
}

}  // namespace strop::attn

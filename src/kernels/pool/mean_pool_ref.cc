#include <limits>

#include "base/element.h"
#include "kernels/pool/mean_pool.h"

namespace strop::pool {

void reference(const Problem& p, double* values) {
  for (std::int64_t b = 0; b < p.sequences; ++b) {
    const Span span = span_of(p, b);
    const auto weight_of = [&](std::int64_t t) {
      const Weights& m = p.mask;
      return m.data == nullptr ? 1.0 : load_element(m.data, m.dtype, b * m.stride_sequence + t * m.stride);
    };
    for (std::int64_t j = 0; j < p.n; ++j) {
      double& out = values[b * p.n + j];
      if (span.n < 0) {
        out = std::numeric_limits<double>::quiet_NaN();
        continue;
      }
      double sum = 0, weights = 0;
      for (std::int64_t t = 0; t < span.n; ++t) {
        const double w = weight_of(t);
        if (w == 0) continue;
        sum += w * load_element(p.x, p.dtype, span.first + t * p.stride_token + j * p.stride);
        weights += w;
      }
      const double least = static_cast<double>(p.least);
      out = p.cu.data != nullptr && span.n == 0 ? 0 : sum / (weights < least ? least : weights);
    }
  }
}

}  // namespace strop::pool

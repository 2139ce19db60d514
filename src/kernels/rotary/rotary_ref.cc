#include <limits>

#include "base/element.h"
#include "kernels/rotary/rotary.h"

namespace strop::rotary {

void reference(const Problem& p, double* values) {
  for (std::int64_t token = 0; token < p.tokens; ++token) {
    const std::int64_t row = p.positions.data == nullptr ? token % p.rows : p.positions.at(token);
    const auto at = [&](const Table& t, std::int64_t column) {
      return row >= 0 && row < p.rows ? load_element(t.data, t.dtype, row * t.stride_row + column * t.stride)
                                      : std::numeric_limits<double>::quiet_NaN();
    };
    for (std::int64_t head = 0; head < p.heads; ++head) {
      double* const out = values + (token * p.heads + head) * p.d;
      for (std::int64_t i = 0; i < p.d; ++i) {
        out[i] = load_element(p.x.data, p.dtype, token * p.x.stride_token + head * p.x.stride_head + i * p.x.stride);
      }
      for (std::int64_t i = 0; i < p.r / 2; ++i) {
        const Pair pair = pair_of(p, i);
        const double x = out[pair.a], y = out[pair.b];
        out[pair.a] = x * at(p.cos, pair.column_a) - y * at(p.sin, pair.column_a);
        out[pair.b] = y * at(p.cos, pair.column_b) + x * at(p.sin, pair.column_b);
      }
    }
  }
}

}  // namespace strop::rotary

#include <cmath>
#include <limits>
#include <vector>

#include "base/element.h"
#include "kernels/norm/norm.h"

namespace strop::norm {

void reference(const Problem& p, double* out_values, double* residual_values) {
  const auto at = [&](const Matrix& m, std::int64_t row, std::int64_t i) {
    return m.data == nullptr ? 0.0 : load_element(m.data, p.dtype, row * m.stride_row + i * m.stride);
  };
  const auto parameter = [&](const Parameter& v, std::int64_t i, double none) {
    return v.data == nullptr ? none : load_element(v.data, v.dtype, i * v.stride);
  };
  const auto term = [&](const Term& t, std::int64_t row, std::int64_t i) {
    if (t.index.numbers.data == nullptr) return at(t, row, i);
    const std::int64_t number = t.index.numbers.at(row);
    return number >= 0 && number < t.index.rows ? at(t, number, i) : std::numeric_limits<double>::quiet_NaN();
  };
  std::vector<double> s(static_cast<std::size_t>(p.n));
  for (std::int64_t row = 0; row < p.rows; ++row) {
    for (std::int64_t i = 0; i < p.n; ++i) {
      s[i] = 0;
      for (const Term& t : p.terms) s[i] += term(t, row, i);
    }
    double mean = 0;
    if (p.kind == Kind::kLayer) {
      for (double v : s) mean += v;
      mean /= static_cast<double>(p.n);
    }
    double squares = 0;
    for (double v : s) squares += (v - mean) * (v - mean);
    const double scale = 1 / std::sqrt(squares / static_cast<double>(p.n) + static_cast<double>(p.eps));
    for (std::int64_t i = 0; i < p.n; ++i) {
      out_values[row * p.n + i] = (s[i] - mean) * scale * parameter(p.weight, i, 1) + parameter(p.bias, i, 0);
      if (residual_values != nullptr) residual_values[row * p.n + i] = s[i];
    }
  }
}

}  // namespace strop::norm

#include <algorithm>
#include <cmath>

#include "base/element.h"
#include "kernels/linear/linear.h"

namespace strop::lin {
namespace {

double at(const Matrix& m, DType dtype, std::int64_t row, std::int64_t column) {
  return load_element(m.data, dtype, row * m.stride_row + column * m.stride);
}

double activate(double x, Activation activation) {
  const double gelu_argument = std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x);
  switch (activation) {
    case Activation::kNone:
      return x;
    case Activation::kRelu:
      return x < 0 ? 0 : x;  // NaN stays
    case Activation::kGelu:
      return x / 2 * std::erfc(-x / std::sqrt(2.0));
    case Activation::kGeluTanh:
      return x / 2 * (1 + std::tanh(gelu_argument));
    case Activation::kSilu:
      return x / (1 + std::exp(-x));
    case Activation::kTanh:
      return std::tanh(x);
  }
  return x;
}

// Finds the product's sum and magnitude by product(which, row, column, &magnitude).
template <class Product>
void expect(const Epilogue& e, const Expected& to, Product&& product) {
  for (std::int64_t i = 0; i < e.m * e.n; ++i) {
    const std::int64_t row = i / e.n, column = i % e.n;
    for (int half = 0; half < (e.gated ? 2 : 1); ++half) {
      const Vector& b = e.bias[half];
      const double bias = b.data == nullptr ? 0 : load_element(b.data, b.dtype, column * b.stride);
      double magnitude = 0;
      to.y[half][i] = product(half, row, column, &magnitude) + bias;
      to.magnitude[half][i] = magnitude + std::abs(bias);
    }
    to.out[i] = activate(to.y[0][i], e.activation) * (e.gated ? to.y[1][i] : 1) +
                (e.residual.data == nullptr ? 0 : at(e.residual, e.dtype, row, column));
  }
}

}  // namespace

void reference(const Problem& p, const Expected& expected) {
  const DType dtype = p.epilogue.dtype;
  expect(p.epilogue, expected, [&](int half, std::int64_t row, std::int64_t column, double* magnitude) {
    double sum = 0;
    for (std::int64_t k = 0; k < p.k; ++k) {
      const double term = at(p.x, dtype, row, k) * at(p.weight[half], dtype, column, k);
      sum += term, *magnitude += std::abs(term);
    }
    return sum;
  });
}

void reference_epilogue(const Epilogue& e, const Matrix (&y)[2], const Expected& expected) {
  expect(e, expected, [&](int half, std::int64_t row, std::int64_t column, double* magnitude) {
    const double value = at(y[half], e.dtype, row, column);
    *magnitude = std::abs(value);
    return value;
  });
}

}  // namespace strop::lin

// LayerNorm and RMSNorm of a sum, x + residual or rows of embedding tables: the contract between the public API and the
// backends.
//
// Maths. With s the sum of one to three terms, per row of n elements
//   LayerNorm:  out = (s - mean) / sqrt(var + eps) weight + bias,  var = mean((s - mean)^2)
//   RMSNorm:    out = s / sqrt(mean(s^2) + eps) weight
// The mean is found in two steps: m, the rounded mean of s, and d = mean(s - m), what m is off by. Then
//   var = mean((s - m)^2) - d^2,  out = ((s - m) - d) / sqrt(var + eps) weight + bias
// at the price of one more sum beside the variance's. It matters where rows have an offset: at a mean of 1e4 and a
// spread of 1, m alone puts up to 5e-4 into every output, half a unit in its last place.
//
// Bytes. The terms (x and residual, or rows of tables) are read once, out and residual_out written once, weight and
// bias read once from memory and from caches by every other row. (R, n) in a 2-byte dtype: 4 R n bytes, 8 R n with the
// residual. BERT-base, 4096 x 768, fp16: 12.6 MB with weight and bias, 25.2 MB with the residual.
#pragma once

#include <cstdint>

#include "base/integers.h"
#include "strop/status.h"
#include "strop/tensor_view.h"

namespace strop::norm {

enum class Kind : std::uint8_t { kLayer, kRms };

// (rows, n) elements of the problem's dtype; strides in elements, any value. Null data where it is not there.
struct Matrix {
  void* data = nullptr;
  std::int64_t stride_row = 0;
  std::int64_t stride = 1;
};

// Rows by number: row r of the call is row numbers[r] of a matrix of `rows` rows. No numbers: row r itself. The row of
// a number that names none is NaN; no memory is read for it.
struct Index {
  Integers numbers;
  std::int64_t rows = 0;
};

struct Term : Matrix {
  Index index;
};
inline constexpr int kMaxTerms = 3;

// (n,): weight or bias. Null data where it is not there.
struct Parameter {
  const void* data = nullptr;
  std::int64_t stride = 1;
  DType dtype = DType::kFloat32;  // float32, float16 or bfloat16
};

// A checked call.
struct Problem {
  Kind kind = Kind::kLayer;
  std::int64_t rows = 0, n = 1;
  DType dtype = DType::kFloat32;  // float32, float16 or bfloat16
  Term terms[kMaxTerms];          // x and residual, or tables; one at least, those that are not there at the end
  Parameter weight, bias;
  Matrix out, residual_out;  // s normalised, and s itself; may be memory of the first two terms, with their strides
  float eps = 0;
};

// Bytes of memory that must move at least. What lies on each other (a stride of 0) counts once.
inline std::int64_t floor_bytes(const Problem& p) {
  if (p.rows == 0) return 0;
  const auto matrix = [&](const Matrix& m) {
    const std::int64_t elements = (m.stride_row == 0 ? 1 : p.rows) * (m.stride == 0 ? 1 : p.n);
    return m.data == nullptr ? 0 : elements * dtype_size(p.dtype);
  };
  const auto parameter = [&](const Parameter& v) {
    return v.data == nullptr ? 0 : (v.stride == 0 ? 1 : p.n) * dtype_size(v.dtype);
  };
  // As if all numbers of an index were the same: they are not known here.
  const auto term = [&](const Term& t) {
    return t.index.numbers.data == nullptr ? matrix(t)
                                           : (t.stride == 0 ? 1 : p.n) * dtype_size(p.dtype) +
                                                 (t.index.numbers.stride == 0 ? 1 : p.rows) * t.index.numbers.bytes();
  };
  std::int64_t bytes = matrix(p.out) + matrix(p.residual_out) + parameter(p.weight) + parameter(p.bias);
  for (const Term& t : p.terms) bytes += term(t);
  return bytes;
}

// The oracle: one thread, double precision, as plain as the formula. Inputs in host memory. `out` and `residual_out` of
// the problem are not written: they go to out_values and, unless null, residual_values (rows * n values, row-major).
void reference(const Problem& problem, double* out_values, double* residual_values);

// Host memory, SIMD, all cores.
Status run_cpu(const Problem& problem);

// Device memory, one kernel on `stream`. The current device must be the inputs'.
Status run_cuda(const Problem& problem, void* stream);

}  // namespace strop::norm

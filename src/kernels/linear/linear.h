// Linear layers: the contract between the public API and the backends.
//
// Maths. y = x w^T, (M, K) times (N, K) transposed, then
//   out = act(y + bias) + residual      or gated      out = act(y0 + bias0) (y1 + bias1) + residual
// with y0 and y1 of two weights. Sums and all that follows are fp32; out is rounded once.
//
// Bytes and operations. x, w, residual and out once, 2 M N K operations (gated twice that). BERT-base's 3072 x 768 in
// fp16, on an H100 (3.35 TB/s; 989 TFLOP/s dense, of which mma.sync reaches about 60 %): up to about 200 rows the 4.7
// MB of weights set the floor, 1.4 us; 8192 rows are 38.7 GFLOP, 39 us, and 68 MB, 20 us. The epilogue alone moves y
// and out: 2 M N elements.
#pragma once

#include <cstddef>
#include <cstdint>

#include "strop/linear.h"
#include "strop/status.h"
#include "strop/tensor_view.h"

namespace strop::lin {

// In elements; null data where it is not there.
struct Matrix {
  void* data = nullptr;
  std::int64_t stride_row = 0, stride = 1;
};
struct Vector {
  const void* data = nullptr;
  std::int64_t stride = 1;
  DType dtype = DType::kFloat32;
};

// What makes (M, N) results of one or, gated, two products.
struct Epilogue {
  std::int64_t m = 0, n = 0;
  DType dtype = DType::kFloat32;  // of the matrices: float32, float16 or bfloat16
  Activation activation = Activation::kNone;
  bool gated = false;
  Vector bias[2];
  Matrix residual, out;
};

// A checked call; m is not 0.
struct Problem {
  Epilogue epilogue;
  std::int64_t k = 0;
  Matrix x, weight[2];  // the second where it is gated
  void* workspace = nullptr;
};

// What the oracle finds, (M, N) values each: the result, and of both products y + bias and sum |x| |w| + |bias|. The
// second of each is written only where it is gated.
struct Expected {
  double *out, *y[2], *magnitude[2];
};
// The oracle: one thread, double precision, as plain as the formula. Inputs in host memory.
void reference(const Problem& problem, const Expected& expected);
void reference_epilogue(const Epilogue& epilogue, const Matrix (&y)[2], const Expected& expected);

// Host memory, SIMD, all cores.
Status run_cpu(const Problem& problem);
Status run_epilogue_cpu(const Epilogue& epilogue, const Matrix (&y)[2]);

// Device memory, one kernel on `stream`. The current device must be the inputs'. `tuning`: another than tune()'s, for
// tests and benchmarks.
struct Tuning;
Status run_cuda(const Problem& problem, void* stream, const Tuning* tuning = nullptr);
Status run_epilogue_cuda(const Epilogue& epilogue, const Matrix (&y)[2], void* stream);

}  // namespace strop::lin

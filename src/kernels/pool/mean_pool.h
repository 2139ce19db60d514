// Mean pooling: the contract between the public API and the backends.
//
// Maths. out = sum_t w_t x_t / max(sum_t w_t, least) over a sequence's tokens t, element by element; w_t = mask, or 1
// where sequences are packed. Tokens of w_t = 0 are not read.
//
// Bytes. Tokens of weight not 0 once, the mask, one row of out a sequence. 32 x 128 tokens of 768 halves, all real:
// 6.3 MB, 2.1 us at 3 TB/s.
#pragma once

#include <cstdint>

#include "base/integers.h"
#include "strop/status.h"
#include "strop/tensor_view.h"

namespace strop::pool {

// (sequences, length) of any dtype; strides in elements, any value. Null: weights of 1.
struct Weights {
  const void* data = nullptr;
  std::int64_t stride_sequence = 0, stride = 1;
  DType dtype = DType::kBool;
};

// A checked call. Strides in elements, any value.
struct Problem {
  std::int64_t sequences = 0, n = 1;
  DType dtype = DType::kFloat32;  // of x and out: float32, float16 or bfloat16
  const void* x = nullptr;
  std::int64_t stride_sequence = 0, stride_token = 0, stride = 1;  // packed: the first is not used
  std::int64_t length = 0;                                         // tokens of a sequence; packed: of all of them
  Weights mask;
  Integers cu;  // none: padded
  float least = 0;
  void* out = nullptr;
  std::int64_t out_stride_row = 0, out_stride = 1;
};

// A sequence's tokens.
struct Span {
  std::int64_t first, n;  // element of x that begins the first token; tokens, or -1 where cu is wrong
};
#ifdef __CUDACC__
__host__ __device__
#endif
    inline Span
    span_of(const Problem& p, std::int64_t sequence) {
  if (p.cu.data == nullptr) return {sequence * p.stride_sequence, p.length};
  const std::int64_t begin = p.cu.at(sequence), end = p.cu.at(sequence + 1);
  return {begin * p.stride_token, begin >= 0 && begin <= end && end <= p.length ? end - begin : -1};
}

// The oracle: one thread, double precision, values (sequences * n, row-major). Inputs in host memory.
void reference(const Problem& problem, double* values);

// Host memory, all cores.
Status run_cpu(const Problem& problem);

// Device memory, one kernel on `stream`. The current device must be the inputs'.
Status run_cuda(const Problem& problem, void* stream);

}  // namespace strop::pool

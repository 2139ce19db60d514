// Rotary position embedding: the contract between the public API and the backends.
//
// Maths. Of a head's first r elements, (a, b) a pair and c, s the cosines and sines of its angle (one column for both
// elements, or one for each):  a' = a c_a - b s_a,  b' = b c_b + a s_b.  The other elements stay.
//
// Bytes. x is read and written once; cos and sin once from memory and from caches by every other head: (R, H, d) of 2
// bytes are 4 R H d. ModernBERT-base, 4096 tokens, queries and keys: 25.2 MB, 8.4 us at 3 TB/s.
#pragma once

#include <cstdint>

#include "base/integers.h"
#include "strop/status.h"
#include "strop/tensor_view.h"

namespace strop::rotary {

// (tokens, heads, d) elements; strides in elements, any value.
struct Heads {
  void* data = nullptr;
  std::int64_t stride_token = 0, stride_head = 0, stride = 1;
};

// (rows, columns) of cosines or sines.
struct Table {
  const void* data = nullptr;
  std::int64_t stride_row = 0, stride = 1;
  DType dtype = DType::kFloat32;  // float32, float16 or bfloat16
};

// A checked call.
struct Problem {
  std::int64_t tokens = 0, heads = 1, d = 2;
  std::int64_t r = 2;             // elements of a head that are turned
  bool neighbours = false;        // pairs are 2 i and 2 i + 1; else i and i + r / 2
  bool shared_columns = false;    // cos and sin have r / 2 columns, one for each pair; else r
  DType dtype = DType::kFloat32;  // of x and out: float32, float16 or bfloat16
  Heads x, out;                   // may be the same memory, with the same strides
  Table cos, sin;
  Integers positions;     // none: token t has row t % rows
  std::int64_t rows = 0;  // of cos and sin; without positions a divisor of tokens
};

// Pair i: the elements it is of, and their columns.
struct Pair {
  std::int64_t a, b, column_a, column_b;
};
#ifdef __CUDACC__
__host__ __device__
#endif
    inline Pair
    pair_of(const Problem& p, std::int64_t i) {
  const Pair pair = p.neighbours ? Pair{2 * i, 2 * i + 1, 0, 0} : Pair{i, i + p.r / 2, 0, 0};
  return p.shared_columns ? Pair{pair.a, pair.b, i, i} : Pair{pair.a, pair.b, pair.a, pair.b};
}

// The oracle: one thread, double precision. Inputs in host memory; `out` of the problem is not written, but `values`
// (tokens * heads * d, row-major).
void reference(const Problem& problem, double* values);

// Host memory, all cores.
Status run_cpu(const Problem& problem);

// Device memory, one kernel on `stream`. The current device must be the inputs'.
Status run_cuda(const Problem& problem, void* stream);

}  // namespace strop::rotary

// Rows taken by number: the contract between the public API and the backends.
//
// Maths. out[i] = x[index[i]], and zeros where there is no such row. gather_rows and scatter_rows are both that: the
// inverse of a packing says for each row of the result where it comes from.
//
// Bytes. Each row of out written once, each that is taken read once (again from L2 where it is taken again), the index.
// 16384 tokens of 768 halves, half of them padding: 12.6 MB gathered and 12.6 MB written, 8.4 us at 3 TB/s; the way
// back writes 25.2 MB, 12.6 us.
#pragma once

#include <cstdint>

#include "base/integers.h"
#include "strop/status.h"

namespace strop::ragged {

// Rows of elements; strides in elements, any value.
struct Rows {
  void* data = nullptr;
  std::int64_t stride_row = 0, stride = 1;
};

// A checked call.
struct TakeRows {
  std::int64_t rows = 0, n = 1;  // of out
  std::int64_t x_rows = 0;
  int bytes = 4;  // of an element: 1, 2, 4 or 8; bits are copied as they are
  Rows x, out;
  Integers index;         // a number outside of [0, x_rows): zeros
  bool repeated = false;  // numbers of 0 and more are taken modulo x_rows

  // Row i of out: the row of x that it is, or one outside.
#ifdef __CUDACC__
  __host__ __device__
#endif
      constexpr std::int64_t
      row(std::int64_t i) const {
    const std::int64_t at = index.at(i);
    return repeated && at >= x_rows && x_rows > 0 ? at % x_rows : at;
  }
};

// The oracle: element by element, one thread, into the problem's `out`.
void reference(const TakeRows& problem);

// Host memory, all cores.
Status run_cpu(const TakeRows& problem);

// Device memory, one kernel on `stream`. The current device must be the inputs'.
Status run_cuda(const TakeRows& problem, void* stream);

}  // namespace strop::ragged

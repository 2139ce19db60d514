// Where the real tokens of a mask are: the contract between the public API and the backends.
//
// Maths. Position p = b L + l is token `t` = number of real positions before p. cu[b] is that of p = b L; where[p] = t
// and rows[t] = p if p is real, else where[p] = -1. From cu and rows: the longest sequence; a sequence of n tokens
// whose first is not at b L starts with padding, one whose last is not n - 1 behind its first has holes.
//
// Bytes. The mask once, 4 (B + 1) of cu, 8 B L of rows and where. 128 x 128 of bool: 0.15 MB, 0.05 us at 3 TB/s:
// latency is all.
#pragma once

#include <cstdint>

#include "strop/status.h"
#include "strop/tensor_view.h"

namespace strop::ragged {

// (sequences, length) of any dtype; strides in elements, any value.
struct Mask {
  const void* data = nullptr;
  std::int64_t stride_sequence = 0, stride = 1;
  DType dtype = DType::kBool;
};

// A checked call.
struct Problem {
  std::int64_t sequences = 0, length = 0;  // their product is below 2^31
  Mask mask;
  std::int32_t* cu = nullptr;  // sequences + 1
  std::int32_t *rows = nullptr, *where = nullptr;
  std::int64_t* summary = nullptr;  // 4

  constexpr std::int64_t positions() const { return sequences * length; }
};

// Bits of what is said about sequences: summary[2] and summary[3].
inline constexpr unsigned kStartsWithPadding = 1, kHasHoles = 2;

// What rows say about a sequence of n tokens, the first of which is token `first`, at positions from `begin` on.
#ifdef __CUDACC__
__host__ __device__
#endif
    inline unsigned
    sequence_flags(const std::int32_t* rows, std::int64_t first, std::int64_t n, std::int64_t begin) {
  if (n == 0) return kStartsWithPadding;
  const std::int64_t from = rows[first], to = rows[first + n - 1];
  return (from != begin ? kStartsWithPadding : 0) | (to - from != n - 1 ? kHasHoles : 0);
}

// The oracle: one thread, position by position.
void reference(const Problem& problem);

// Host memory, all cores.
Status run_cpu(const Problem& problem);

// Device memory, one kernel on `stream`. The current device must be the inputs'.
Status run_cuda(const Problem& problem, void* stream);

}  // namespace strop::ragged

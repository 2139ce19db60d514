// Matrices spread over a warp: ldmatrix and mma of emulated device code; base/ptx/mma.cuh wraps them and says which
// lane holds which element. Inlined, so that reports name the caller's line.
#pragma once

#include <cstdint>
#include <cstring>

#include "emu/device.h"

namespace strop::emu {

// A lane's part: the row that it has read, and the elements that it gets.
struct LoadMatrices {
  unsigned count = 0;  // matrices
  bool transposed = false;
  std::uint16_t row[8] = {};
  std::uint32_t result[4] = {};
};
void complete_load_matrices(void* const* payloads, unsigned mask);

template <int kCount>
__attribute__((always_inline)) inline void load_matrices(const char* what, std::uint32_t (&r)[kCount], const void* row,
                                                         bool transposed) {
  LoadMatrices m;
  m.count = kCount, m.transposed = transposed;
  if (lane_index() < 8 * kCount) load(m.row, row, sizeof m.row, Op::kRead);  // who gives no address reads nothing
  warp_meet(what, 0xffffffffu, &m, &complete_load_matrices);
  std::memcpy(r, m.result, sizeof r);
}

// A lane's fragments.
struct MultiplyMatrices {
  bool bfloat16 = false;
  std::uint32_t a[4] = {}, b[2] = {};
  float c[4] = {};
};
void complete_multiply_matrices(void* const* payloads, unsigned mask);

__attribute__((always_inline)) inline void multiply_matrices(const char* what, float (&c)[4],
                                                             const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                                                             bool bfloat16) {
  MultiplyMatrices m;
  m.bfloat16 = bfloat16;
  std::memcpy(m.a, a, sizeof a);
  std::memcpy(m.b, b, sizeof b);
  std::memcpy(m.c, c, sizeof c);
  warp_meet(what, 0xffffffffu, &m, &complete_multiply_matrices);
  std::memcpy(c, m.c, sizeof c);
}

}  // namespace strop::emu

// Where the rows of a reverse KL call lie.
#pragma once

#include "base/row_vector.cuh"
#include "base/strided_load.cuh"
#include "kernels/reverse_kl/reverse_kl.h"
#include "kernels/reverse_kl/reverse_kl_tuning.h"

namespace strop::reverse_kl {

struct Args {
  Problem p;
  Tuning tuning;
  MaskFormat mask;
  bool student_vectors, teacher_vectors, grad_vectors;  // every row's vectors are aligned
};

// Where row `row` of the mask and of a tensor of logits lies.
__device__ __forceinline__ const char* mask_at(const Args& a, std::int64_t row) {
  const std::int64_t i = row / a.p.inner, j = row - i * a.p.inner;
  return static_cast<const char*>(a.p.mask.data) +
         (i * a.p.mask.stride_outer + j * a.p.mask.stride_inner) * a.mask.bytes;
}
__device__ __forceinline__ Row row_at(const Args& a, const Logits& m, bool vectors, std::int64_t row) {
  const std::int64_t i = row / a.p.inner, j = row - i * a.p.inner;
  const int bytes = float_bytes(m.dtype);
  return {static_cast<char*>(m.data) + (i * m.stride_outer + j * m.stride_inner) * bytes, m.stride_vocab * bytes,
          a.p.vocab, vectors};
}

}  // namespace strop::reverse_kl

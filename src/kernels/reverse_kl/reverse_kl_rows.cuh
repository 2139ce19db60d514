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
  bool dense;  // unit strides, and in every row the tensors' vectors start at the same elements
};

// Where row `row` of the mask and of a tensor of logits lies.
__device__ __forceinline__ const char* mask_at(const Args& a, std::int64_t row) {
  const std::int64_t i = row / a.p.inner, j = row - i * a.p.inner;
  return static_cast<const char*>(a.p.mask.data) +
         (i * a.p.mask.stride_outer + j * a.p.mask.stride_inner) * a.mask.bytes;
}
template <class V>
__device__ __forceinline__ Row row_at(const Args& a, const Logits& m, std::int64_t row) {
  const std::int64_t i = row / a.p.inner, j = row - i * a.p.inner;
  char* const p = static_cast<char*>(m.data) + (i * m.stride_outer + j * m.stride_inner) * V::kSize;
  return Row::make<V::kE>(p, m.stride_vocab * V::kSize, a.p.vocab, V::kSize, a.dense);
}

// What one of the blocks that share a row works on: full vectors [begin, end), and single elements: `heads` from `head`
// on, then `tails` from `tail` on.
struct Span {
  int begin, end;
  std::int64_t head, heads, tail, tails;

  __device__ __forceinline__ Span(const Args& a, const Row& row, int rank, int kE) {
    const int first = rank * a.tuning.part_vectors, last = first + a.tuning.part_vectors;
    begin = max(first, row.full_begin), end = min(last, row.full_end);
    head = tail = heads = tails = 0;
    if (!a.dense) {
      head = min(static_cast<std::int64_t>(first) * kE, row.elements);
      heads = min(static_cast<std::int64_t>(last) * kE, row.elements) - head;
    } else if (row.full_end <= row.full_begin) {
      heads = rank == 0 ? row.elements : 0;
    } else {
      heads = rank == 0 && row.shift > 0 ? kE - row.shift : 0;
      tail = static_cast<std::int64_t>(row.full_end) * kE - row.shift;
      tails = rank == a.tuning.parts - 1 ? row.elements - tail : 0;
    }
  }
  __device__ __forceinline__ std::int64_t singles() const { return heads + tails; }
  __device__ __forceinline__ std::int64_t single(std::int64_t i) const {
    return i < heads ? head + i : tail + i - heads;
  }
};

// Starts to bring the full vectors of a span into L2.
template <class V>
__device__ __forceinline__ void prefetch(const Row& row, const Span& span) {
  constexpr int kBytes = sizeof(V);
  const char* p = row.data + static_cast<std::int64_t>(span.begin) * kBytes - row.shift * V::kSize;
  const int bytes = (span.end - span.begin) * kBytes / 16 * 16;
  if (bytes > 0 && reinterpret_cast<std::uintptr_t>(p) % 16 == 0)
    ptx::prefetch_l2(p, static_cast<std::uint32_t>(bytes));
}

}  // namespace strop::reverse_kl

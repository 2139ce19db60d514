// Which rows a group of blocks has, and where they lie.
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
  int groups;                   // of `parts` blocks
  std::int64_t step_i, step_j;  // from a row to the group's next: groups / inner, groups % inner
  std::uint64_t tag;            // of the launch's messages
  bool uniform;                 // rows start at like addresses modulo a vector: all are cut alike
  bool dense;                   // unit strides, and in every row the tensors' vectors start at the same elements
  bool adjoin;  // rows of one `inner` lie one behind the other, each at least a vector long, and are not written
};

// A row, as a number and as an index into (outer, inner).
struct RowIndex {
  std::int64_t row, i, j;
};

template <class V>
__device__ __forceinline__ char* data_at(const Args& a, const Logits& m, const RowIndex& at) {
  std::int64_t offset = at.j * m.stride_inner;
  if (a.p.outer > 1) offset += at.i * m.stride_outer;
  return static_cast<char*>(m.data) + offset * V::kSize;
}
template <class V>
__device__ __forceinline__ Row row_at(const Args& a, const Logits& m, const RowIndex& at) {
  return Row::make<V::kE>(data_at<V>(a, m, at), m.stride_vocab * V::kSize, a.p.vocab, V::kSize, a.dense);
}
// The same, from another row of the tensor.
template <class V>
__device__ __forceinline__ void move_to(Row& row, const Args& a, const Logits& m, const RowIndex& at) {
  if (a.uniform) {
    row.data = data_at<V>(a, m, at);
  } else {
    row = row_at<V>(a, m, at);
  }
}

// Bit k: row `row` + k `step` is valid. All lanes of a warp, together.
__device__ __noinline__ unsigned valid_rows(const Args& a, std::int64_t row, int step) {
  row += static_cast<std::int64_t>(threadIdx.x % 32) * step;
  std::int64_t i = 0, j = row;
  if (a.p.outer > 1) i = row / a.p.inner, j = row - i * a.p.inner;
  const char* p =
      static_cast<const char*>(a.p.mask.data) + (i * a.p.mask.stride_outer + j * a.p.mask.stride_inner) * a.mask.bytes;
  return __ballot_sync(0xffffffffu, row < a.p.outer * a.p.inner && mask_is_valid(p, a.mask));
}

// The rows of a group one after the other: group, group + groups, … All lanes of a warp, together.
class Rows {
 public:
  __device__ __forceinline__ Rows(const Args& a, int group) {
    const int inner = static_cast<int>(min(a.p.inner, std::int64_t{kMaxGroups}));
    next_ = {group, inner > 0 ? group / inner : 0, inner > 0 ? group % inner : 0};
  }

  // The next valid row, or false. `masked(row)` is called for those between.
  template <class F>
  __device__ __forceinline__ bool next(const Args& a, RowIndex& at, F&& masked) {
    while (next_.i < a.p.outer && a.p.inner > 0) {
      if (left_ == 0) valid_ = valid_rows(a, next_.row, a.groups), left_ = 32;
      at = next_;
      const bool valid = valid_ & 1;
      valid_ >>= 1, --left_;
      next_.row += a.groups, next_.i += a.step_i, next_.j += a.step_j;
      if (next_.j >= a.p.inner) next_.j -= a.p.inner, ++next_.i;
      if (valid) return true;
      masked(at);
    }
    return false;
  }

 private:
  RowIndex next_;
  unsigned valid_ = 0;
  int left_ = 0;
};

// A part of a row: vectors begin to end, of which thread t has begin + t, begin + t + threads, …
struct Part {
  int begin, end, whole_begin, wholes;

  __device__ __forceinline__ Part(const Args& a, const Row& row, int rank, int kE) {
    begin = rank * a.tuning.part_vectors;
    end = min(begin + a.tuning.part_vectors, static_cast<int>((row.elements + row.shift + kE - 1) / kE));
    whole_begin = max(begin, row.full_begin);
    wholes = max(0, min(end, row.full_end) - whole_begin);
  }
  // Vector v lies in the part and wholly in the row; else it does so in part, or it is behind the end.
  __device__ __forceinline__ bool is_whole(int v) const {
    return static_cast<unsigned>(v - whole_begin) < static_cast<unsigned>(wholes);
  }
};

// Whether element e of vector v, one that is not wholly in the row, is in it.
__device__ __forceinline__ bool is_inside(const Row& row, int v, int kE, int e) {
  const std::int64_t i = static_cast<std::int64_t>(v) * kE - row.shift + e;
  return i >= 0 && i < row.elements;
}

}  // namespace strop::reverse_kl

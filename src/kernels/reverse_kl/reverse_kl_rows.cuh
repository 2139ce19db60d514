// Which rows a group of blocks has, and where they lie.
#pragma once

#include "base/reduce.cuh"
#include "base/row_vector.cuh"
#include "base/strided_load.cuh"
#include "kernels/reverse_kl/reverse_kl.h"
#include "kernels/reverse_kl/reverse_kl_tuning.h"

namespace strop::reverse_kl {

struct Args {
  Problem p;
  Tuning tuning;
  MaskFormat mask;
  unsigned rows;      // outer * inner, less than 2^31
  int groups;         // of `parts` blocks
  std::uint64_t tag;  // of the launch's messages
  bool uniform;       // rows start at like addresses modulo a vector: all are cut alike
  bool dense;         // unit strides, and in every row the tensors' vectors start at the same elements
  bool adjoin;        // rows lie one behind the other, each at least a vector long, and are not written
};

// Rare, since (outer, inner) are usually one dimension, and so out of the way.
__device__ __noinline__ std::int64_t offset_in_two_dimensions(unsigned row, std::int64_t inner,
                                                              std::int64_t stride_outer, std::int64_t stride_inner) {
  const std::int64_t i = row / static_cast<unsigned>(inner), j = row % static_cast<unsigned>(inner);
  return i * stride_outer + j * stride_inner;
}
template <class V>
__device__ __forceinline__ char* data_at(const Args& a, const Logits& m, unsigned row) {
  const std::int64_t offset =
      a.p.outer > 1 ? offset_in_two_dimensions(row, a.p.inner, m.stride_outer, m.stride_inner) : row * m.stride_inner;
  return static_cast<char*>(m.data) + offset * V::kSize;
}
template <class V>
__device__ __forceinline__ Row row_from(const Args& a, const Logits& m, void* data) {
  return Row::make<V::kE>(static_cast<char*>(data), m.stride_vocab * V::kSize, a.p.vocab, V::kSize, a.dense);
}
template <class V>
__device__ __forceinline__ Row row_at(const Args& a, const Logits& m, unsigned row) {
  return row_from<V>(a, m, data_at<V>(a, m, row));
}

template <int kWords>
struct Words {
  unsigned word[kWords];
};
// Bit k of word w: row first + 32 w + k counts. All lanes of a warp, together.
template <int kWords>
__device__ __noinline__ Words<kWords> valid_rows(const Args& a, unsigned first) {
  first += threadIdx.x % 32;
  unsigned inside = 0, valid = 0;
#pragma unroll
  for (int w = 0; w < kWords; ++w) inside |= static_cast<unsigned>(first + 32 * w < a.rows) << w;
  const Mask& m = a.p.mask;
  if (a.p.outer > 1) {
#pragma unroll 1
    for (int w = 0; w < kWords; ++w) {
      if (inside >> w & 1) {
        const std::int64_t at = offset_in_two_dimensions(first + 32 * w, a.p.inner, m.stride_outer, m.stride_inner);
        valid |= static_cast<unsigned>(mask_is_valid(static_cast<const char*>(m.data) + at * a.mask.bytes, a.mask))
                 << w;
      }
    }
  } else {
    const std::int64_t step = m.stride_inner * a.mask.bytes;
    valid = load_strided_mask<kWords>(static_cast<const char*>(m.data) + first * step, 32 * step, a.mask, inside);
  }
  Words<kWords> words;
#pragma unroll
  for (int w = 0; w < kWords; ++w) words.word[w] = __ballot_sync(kFullWarp, valid >> w & 1);
  return words;
}

// Which rows count, as far as the block has read the mask before; beyond that it is read again.
struct ValidRows {
  static constexpr int kWords = 256;
  unsigned words[kWords];
  unsigned count;  // of all

  // Bit k: row first + k counts. All lanes of a warp, together.
  __device__ __forceinline__ unsigned word(const Args& a, unsigned first) const {
    return first < 32 * kWords ? words[first / 32] : valid_rows<1>(a, first).word[0];
  }
};

// The rows of a group: of those that count, or of those that do not, number group, group + groups, …, so that a mask
// leaves every group as much work. All lanes of a warp, together.
class Rows {
 public:
  __device__ __forceinline__ Rows(const Args& a, const ValidRows& valid, int group, bool masked = false)
      : flip_(masked ? ~0u : 0), all_(valid.count == a.rows), skip_(group) {
    if (all_) next_ = masked ? a.rows : group;
  }

  // The next row, or false.
  __device__ __forceinline__ bool next(const Args& a, const ValidRows& valid, unsigned& row) {
    if (all_) {
      row = next_;
      next_ += a.groups;
      return row < a.rows;
    }
    for (int n; n = __popc(bits_), n <= skip_;) {
      skip_ -= n;
      if (next_ >= a.rows) {
        bits_ = 0;
        return false;
      }
      bits_ = (valid.word(a, next_) ^ flip_) & (a.rows - next_ < 32 ? (1u << (a.rows - next_)) - 1 : ~0u);
      next_ += 32;
    }
    for (; skip_ > 0; --skip_) bits_ &= bits_ - 1;
    row = next_ - 33 + __ffs(static_cast<int>(bits_));
    bits_ &= bits_ - 1;
    skip_ = a.groups - 1;
    return true;
  }

 private:
  unsigned next_ = 0;  // if all rows count, the next one; else the first of the next word
  unsigned bits_ = 0, flip_;
  bool all_;
  int skip_;  // rows of other groups before the next
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

// From another row of the tensor to this one.
template <class V>
__device__ __forceinline__ void move_to(Row& at, Part& part, const Args& a, const Logits& m, unsigned row, int rank) {
  if (a.uniform) {
    at.data = data_at<V>(a, m, row);
  } else {
    at = row_at<V>(a, m, row);
    part = Part(a, at, rank, V::kE);
  }
}

}  // namespace strop::reverse_kl

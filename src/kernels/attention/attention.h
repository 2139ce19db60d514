// Attention: the contract between the public API and the backends.
//
// Maths. For query i of sequence b and head h, with the keys j that are admitted,
//   x_j = scale q_i . k_j + bias(b, h, i, j),  out_i = sum_j exp(x_j - m) v_j / sum_j exp(x_j - m),  m = max_j x_j
// Online softmax (Milakov, Gimelshein 2018, arXiv:1805.02867; Dao 2022, arXiv:2205.14135): keys come in tiles; where a
// tile raises m, what was summed before is scaled by exp(m_before - m). x stays in natural units until m is taken off:
// x / ln 2 of a bias of -3.4e38 would be -inf, and a row of those the same as one without keys.
//
// Which keys. Those j in keys_of(query), and of them those that `mask` admits.
//
// Bytes and operations. q and out once, k and v once a tile of queries, from L2 but for the first; 4 D operations for
// each query and admitted key. 32 x 12 heads, 512 x 512, D 64, fp16: 100 MB, 25.8 GFLOP, 30 us and 26 us on an H100
// (3.35 TB/s; 989 TFLOP/s dense, of which mma.sync reaches about two thirds). One query a sequence: the cache's bytes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "base/integers.h"
#include "strop/status.h"
#include "strop/tensor_view.h"

namespace strop::attn {

// (b, h, l, d), in elements. Packed: stride_b is 0 and l counts through all sequences.
struct Tensor {
  void* data = nullptr;
  std::int64_t stride_b = 0, stride_h = 0, stride_l = 0, stride_d = 1;
};
// (b, h, i, j), broadcast by strides of 0; null data where it is not there.
struct Mask {
  const void* data = nullptr;
  std::int64_t stride_b = 0, stride_h = 0, stride_q = 0, stride_k = 0;
  DType dtype = DType::kBool;
};
inline constexpr std::int64_t kUnlimited = std::int64_t{1} << 60;

// A checked call.
struct Problem {
  std::int64_t batch = 0, heads = 1, kv_heads = 1, max_q = 0, max_k = 0;
  std::int64_t total_q = 0;  // packed: rows of q and out, of which those of no sequence become 0
  int d = 8;
  DType dtype = DType::kFloat32;  // float32, float16 or bfloat16
  Tensor q, k, v, out;
  Integers cu_q, cu_k, key_lengths;  // null where padded, where all keys are there
  Mask mask, bias;
  std::int64_t left = kUnlimited, right = kUnlimited;  // keys before and after the diagonal
  bool bottom_right = false;
  bool packed = false;
  float scale = 1;
  void* workspace = nullptr;

  constexpr std::int64_t group() const { return heads / kv_heads; }  // query heads that share keys
};

// Where a sequence lies: its rows of q and out, of k and v.
struct Sequence {
  std::int64_t q_begin = 0, q = 0, k_begin = 0, k = 0;
};
constexpr Sequence sequence_of(const Problem& p, std::int64_t b) {
  Sequence s{0, p.max_q, 0, p.max_k};
  if (p.packed) {
    s.q_begin = p.cu_q.at(b), s.q = p.cu_q.at(b + 1) - s.q_begin;
    s.k_begin = p.cu_k.at(b), s.k = p.cu_k.at(b + 1) - s.k_begin;
  }
  if (p.key_lengths.data != nullptr) {
    const std::int64_t n = p.key_lengths.at(b);
    s.k = n < 0 ? 0 : n < s.k ? n : s.k;
  }
  return s;
}

// The keys [begin, end) that lengths, diagonal and window leave to query i.
struct Keys {
  std::int64_t begin = 0, end = 0;
};
constexpr Keys keys_of(const Problem& p, const Sequence& s, std::int64_t i) {
  const std::int64_t at = i + (p.bottom_right ? s.k - s.q : 0);
  const std::int64_t begin = at - p.left, end = at + p.right + 1;
  return {begin < 0 ? 0 : begin, end > s.k ? s.k : end};  // begin >= end: none
}

// Few queries meet many keys in chunks, each by a block of its own. What a sequence is cut into depends on that
// sequence alone: the result does not change with what shares the batch.
inline constexpr std::int64_t kSplitRows = 16;  // at most, queries times the heads that share keys
inline constexpr std::int64_t kMinChunk = 256, kMaxChunks = 32;

constexpr std::int64_t chunk_size(std::int64_t rows, std::int64_t keys) {
  if (rows > kSplitRows) return keys;
  const std::int64_t least = ((keys + kMaxChunks - 1) / kMaxChunks + 63) / 64 * 64;
  return least < kMinChunk ? kMinChunk : least;
}
constexpr std::int64_t chunks_of(std::int64_t rows, std::int64_t keys) {
  return rows > kSplitRows || keys <= kMinChunk ? 1 : (keys + chunk_size(rows, keys) - 1) / chunk_size(rows, keys);
}
// Of any sequence that the call may hold. Padded, they all have max_q queries.
constexpr std::int64_t most_chunks(const Problem& p) {
  if (p.max_q == 0 || (!p.packed && p.max_q * p.group() > kSplitRows)) return 1;
  const std::int64_t n = (p.max_k + kMinChunk - 1) / kMinChunk;
  return n < 1 ? 1 : n > kMaxChunks ? kMaxChunks : n;
}

// The workspace: a counter for each sequence and key head, then what each chunk found: rows of d sums, their largest
// score and the sum of their weights.
constexpr std::int64_t partial_rows(const Problem& p) {
  return p.max_q * p.group() < kSplitRows ? p.max_q * p.group() : kSplitRows;
}
constexpr std::size_t counter_bytes(const Problem& p) {
  return static_cast<std::size_t>((p.batch * p.kv_heads + 1) / 2 * 16);
}
constexpr std::size_t workspace_bytes(const Problem& p) {
  const std::int64_t chunks = most_chunks(p);
  if (chunks == 1) return 0;
  return counter_bytes(p) + static_cast<std::size_t>(p.batch * p.kv_heads * chunks * partial_rows(p) * (p.d + 2)) * 4;
}

// What the oracle finds, a row for each (b, h, i), i < max_q, of d values; rows beyond a sequence's end are 0.
struct Expected {
  double* out;     // the result
  double* spread;  // sum of weight times |v|
  double* reach;   // one a row: the largest scale sum |q||k| + |bias| of a key of weight
};
// The oracle: one thread, double precision, as plain as the formula. Inputs in host memory.
void reference(const Problem& problem, const Expected& expected);

// Host memory, SIMD, all cores.
Status run_cpu(const Problem& problem);

// Device memory, one kernel on `stream`. The current device must be the inputs'.
Status run_cuda(const Problem& problem, void* stream);

}  // namespace strop::attn

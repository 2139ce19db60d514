// Attention on CUDA: which part of the work a block has.
//
// A block has a tile of rows: queries of one sequence, with all heads that share a key head (row r is query r / group
// of head r % group), so that a key is read once for the group. Few rows with many keys are cut into chunks of keys, a
// block each.
#pragma once

#include "base/convert.cuh"
#include "base/divisor.h"
#include "kernels/attention/attention.h"
#include "kernels/attention/attention_tuning.h"

namespace strop::attn {

struct Args {
  Problem p;
  Tuning tuning;
  unsigned units = 1;                           // blocks for each sequence and key head
  std::uint64_t tag = 0;                        // of the launch
  unsigned batch = 0, kv_heads = 1, group = 1;  // the problem's
  Divisor per_unit, per_kv_head, per_group;     // by units, kv_heads and group
  std::int64_t k_step = 0, v_step = 0;          // elements from row to row of those that a thread copies
  int left = 0, right = 0;                      // the window, at most kFar
  bool plain = false;                           // scores are scaled dots: no mask, no bias, a scale above 0
  bool natural = false;                         // scores are in natural units (attention_warp.cuh)
  float factor = 1;                             // from the units of scores to those of log 2
};
// As far as unlimited, among the 2^30 queries and keys that there may be.
inline constexpr std::int64_t kFar = (std::int64_t{1} << 30) - 1;

__device__ __forceinline__ float nothing() { return -INFINITY; }

struct Span {
  int begin, end;
};
// A row's keys, and where its mask and bias begin; null where there is none.
struct RowKeys {
  int begin = 0, end = 0;
  const char *mask = nullptr, *bias = nullptr;

  // The score of key j, given the dot; -inf where it is not admitted.
  __device__ __forceinline__ float score(const Problem& p, int j, float dot) const {
    if (j < begin || j >= end) return nothing();
    if (mask != nullptr && !admits(p, j)) return nothing();
    if (bias == nullptr) return dot * p.scale;
    const float b = p.bias.dtype == DType::kFloat64   ? bias_at<double>(p, j)
                    : p.bias.dtype == DType::kFloat32 ? bias_at<float>(p, j)
                                                      : bias_at<std::uint16_t>(p, j);
    return fmaf(dot, p.scale, b);
  }
  __device__ __forceinline__ bool admits(const Problem& p, int j) const { return mask[j * p.mask.stride_k] != 0; }
  template <class T>
  __device__ __forceinline__ float bias_at(const Problem& p, int j) const {
    const T b = reinterpret_cast<const T*>(bias)[j * p.bias.stride_k];
    if constexpr (sizeof(T) == 2) {
      return to_float(b, p.bias.dtype);
    } else {
      return static_cast<float>(b);
    }
  }
  static __device__ __forceinline__ int dtype_bytes(DType dtype) {
    return dtype == DType::kFloat64 ? 8 : float_bytes(dtype);
  }
};

// An integer on its way from memory: nothing here depends on its width but addresses, so that several come together.
struct Entry {
  std::uint32_t low, high;
  bool wide;

  __device__ __forceinline__ Entry(const Integers& all, std::int64_t i) : wide(all.wide) {
    const std::uint32_t* const word = static_cast<const std::uint32_t*>(all.data) + (i * all.stride << int{wide});
    low = word[0], high = word[int{wide}];
  }
  __device__ __forceinline__ std::int64_t value() const {
    return wide ? static_cast<std::int64_t>(std::uint64_t{high} << 32 | low) : static_cast<std::int32_t>(low);
  }
};

// A block's part of the work.
struct Unit {
  Sequence s;
  std::int64_t before = 0, behind = 0;  // packed: the first row of any sequence, and the one behind their last
  unsigned segment, b;                  // segment: sequence and key head
  unsigned kv, group;
  Divisor per_group;
  int first, rows;  // of rows [0, rows) those from `first` on, a tile of them
  int chunk, chunks;
  int begin, end;         // keys of any of the rows, in this chunk
  int shift;              // from a query's number to where the diagonal meets it
  std::uint32_t inverse;  // the launch's
  unsigned by;

  __device__ __forceinline__ bool find(const Args& a) {
    const Problem& p = a.p;
    segment = a.per_unit.divide(blockIdx.x), b = a.per_kv_head.divide(segment);
    if (b >= a.batch) return false;  // there are none, and all rows are to be cleared
    const auto unit = static_cast<int>(blockIdx.x - segment * a.units);
    kv = segment - b * a.kv_heads, group = a.group, per_group = a.per_group;
    find_sequence(a);
    rows = static_cast<int>(s.q) * static_cast<int>(group), chunks = 1, chunk = 0, first = unit * a.tuning.rows;
    begin = 0, end = static_cast<int>(s.k);
    if (rows <= kSplitRows && end > kMinChunk) {
      const auto size = static_cast<int>(chunk_size(rows, s.k));
      chunks = static_cast<int>(chunks_of(rows, s.k)), chunk = unit, first = 0;
      begin = chunk * size, end = min(begin + size, end);
    }
    if (chunk >= chunks || first >= rows) return false;
    shift = p.bottom_right ? static_cast<int>(s.k - s.q) : 0;
    const int low = span(a, first).begin, high = span(a, min(first + a.tuning.rows, rows) - 1).end;
    begin = min(low, end), end = max(high, 0);
    return true;
  }
  // As sequence_of, but that all loads start before the first one's value is needed.
  __device__ __forceinline__ void find_sequence(const Args& a) {
    const Problem& p = a.p;
    s = {0, p.max_q, 0, p.max_k};
    if (p.packed) {
      const Entry q(p.cu_q, b), q_end(p.cu_q, b + 1), k(p.cu_k, b), k_end(p.cu_k, b + 1);
      const Entry all(p.cu_q, 0), all_end(p.cu_q, a.batch);
      s = {q.value(), q_end.value() - q.value(), k.value(), k_end.value() - k.value()};
      before = all.value(), behind = all_end.value();
    }
    if (p.key_lengths.data != nullptr) {
      const std::int64_t n = Entry(p.key_lengths, b).value();
      s.k = n < 0 ? 0 : n < s.k ? n : s.k;
    }
  }

  // Without sign, as products of 64 bits by those take fewer instructions.
  __device__ __forceinline__ unsigned query(int r) const { return per_group.divide(static_cast<unsigned>(r)); }
  __device__ __forceinline__ unsigned head(int r) const {
    return kv * group + static_cast<unsigned>(r) - query(r) * group;
  }
  // Row r's keys, of this chunk's; begin >= end: none.
  __device__ __forceinline__ Span span(const Args& a, int r) const {
    const int at = static_cast<int>(query(r)) + shift;
    return {max(at - a.left, begin), min(at + a.right + 1, end)};
  }
  // Row r's first element, from the tensor's.
  __device__ __forceinline__ std::int64_t row_of(const Tensor& t, int r) const {
    return b * t.stride_b + head(r) * t.stride_h + (s.q_begin + query(r)) * t.stride_l;
  }
  // That of key 0.
  __device__ __forceinline__ std::int64_t keys_at(const Tensor& t) const {
    return b * t.stride_b + kv * t.stride_h + s.k_begin * t.stride_l;
  }

  __device__ __forceinline__ RowKeys keys(const Args& a, int r) const {
    const Problem& p = a.p;
    RowKeys row;
    if (r >= rows) return row;
    const Span own = span(a, r);
    row.begin = own.begin, row.end = own.end;
    const auto place = [&](const Mask& m) { return b * m.stride_b + head(r) * m.stride_h + query(r) * m.stride_q; };
    if (p.mask.data != nullptr) row.mask = static_cast<const char*>(p.mask.data) + place(p.mask);
    if (p.bias.data != nullptr)
      row.bias = static_cast<const char*>(p.bias.data) + place(p.bias) * RowKeys::dtype_bytes(p.bias.dtype);
    return row;
  }

  // Row r's sums in the workspace, as `of` left them; behind them its largest score and the sum of its weights.
  __device__ __forceinline__ float* partial(const Problem& p, int of, int r) const {
    auto* const floats = reinterpret_cast<float*>(static_cast<char*>(p.workspace) + counter_bytes(p));
    return floats + ((std::int64_t{segment} * most_chunks(p) + of) * partial_rows(p) + r) * (p.d + 2);
  }
};

}  // namespace strop::attn

// Attention on CUDA: what its kernels share; the maths is in attention.h. attention_mma.cuh has the kernel on the
// tensor cores, attention_any.cuh the one for any dtype and layout.
//
// A block has a tile of rows: queries of one sequence, with all heads that share a key head (row r is query r / group
// of head r % group), so that a key is read once for the group. It goes over the keys of its rows in tiles, with the
// sums of out in registers. Few rows with many keys are cut into chunks of keys, a block each: each leaves its sums in
// the workspace, and the one that comes last merges them in the chunks' order. No block waits for another.
#pragma once

#include <cmath>

#include "base/arrival.cuh"
#include "base/convert.cuh"
#include "base/ptx/grid.cuh"
#include "base/ptx/math.cuh"
#include "kernels/attention/attention.h"
#include "kernels/attention/attention_tuning.h"
#include "strop/launch.h"

namespace strop::attn {

struct Args {
  Problem p;
  Tuning tuning;
  unsigned units = 1;     // blocks for each sequence and key head
  std::uint64_t tag = 0;  // of the launch
};

__device__ __forceinline__ float nothing() { return -INFINITY; }
// exp(x): 2 ulp and the rounding of the product, |x| units of 2^-24; 0 for -inf.
__device__ __forceinline__ float exp_of(float x) { return ptx::exp2_approx(x * 1.44269504f); }
// What is taken off a row's scores: its largest; nothing while it has no key.
__device__ __forceinline__ float offset_of(float largest) { return largest == nothing() ? 0.f : largest; }

// A row's keys, and where its mask and bias begin; null where there is none.
struct RowKeys {
  int begin = 0, end = 0;
  const char *mask = nullptr, *bias = nullptr;

  // The score of key j, given the dot; -inf where it is not admitted.
  __device__ __forceinline__ float score(const Problem& p, int j, float dot) const {
    if (j < begin || j >= end) return nothing();
    if (mask != nullptr && mask[j * p.mask.stride_k] == 0) return nothing();
    if (bias == nullptr) return dot * p.scale;
    const char* at = bias + j * p.bias.stride_k * dtype_bytes(p.bias.dtype);
    const float b = p.bias.dtype == DType::kFloat64 ? static_cast<float>(*reinterpret_cast<const double*>(at))
                    : p.bias.dtype == DType::kFloat32
                        ? *reinterpret_cast<const float*>(at)
                        : to_float(*reinterpret_cast<const std::uint16_t*>(at), p.bias.dtype);
    return fmaf(dot, p.scale, b);
  }
  static __device__ __forceinline__ int dtype_bytes(DType dtype) {
    return dtype == DType::kFloat64 ? 8 : float_bytes(dtype);
  }
};

// A block's part of the work.
struct Unit {
  Sequence s;
  std::int64_t segment, b;     // segment: sequence and key head
  int kv, group, first, rows;  // of rows [0, rows) those from `first` on, a tile of them
  int chunk, chunks;
  int begin, end;  // keys of any of the rows, in this chunk

  __device__ __forceinline__ bool find(const Args& a) {
    const Problem& p = a.p;
    segment = blockIdx.x / a.units;
    const auto unit = static_cast<int>(blockIdx.x % a.units);
    b = segment / p.kv_heads, kv = static_cast<int>(segment % p.kv_heads);
    s = sequence_of(p, b);
    group = static_cast<int>(p.group()), rows = static_cast<int>(s.q) * group;
    chunks = static_cast<int>(chunks_of(rows, s.k));
    chunk = chunks > 1 ? unit : 0, first = chunks > 1 ? 0 : unit * a.tuning.rows;
    if (chunk >= chunks || first >= rows) return false;
    const int last = min(first + a.tuning.rows, rows) - 1;
    const std::int64_t size = chunk_size(rows, s.k), from = chunks > 1 ? chunk * size : 0;
    const std::int64_t low = keys_of(p, s, first / group).begin, high = keys_of(p, s, last / group).end;
    begin = static_cast<int>(low < from ? from : low < s.k ? low : s.k);
    end = static_cast<int>(chunks > 1 && from + size < high ? from + size : high < 0 ? 0 : high);
    return true;
  }

  __device__ __forceinline__ int query(int r) const { return r / group; }
  __device__ __forceinline__ int head(int r) const { return kv * group + r % group; }
  // The element of row r, in bytes from the tensor's first one.
  __device__ __forceinline__ std::int64_t row_of(const Tensor& t, int r) const {
    return b * t.stride_b + head(r) * t.stride_h + (s.q_begin + query(r)) * t.stride_l;
  }
  // That of key 0.
  __device__ __forceinline__ std::int64_t keys_at(const Tensor& t) const {
    return b * t.stride_b + kv * t.stride_h + s.k_begin * t.stride_l;
  }

  __device__ __forceinline__ RowKeys keys(const Problem& p, int r) const {
    RowKeys row;
    if (r >= rows) return row;
    const Keys k = keys_of(p, s, query(r));
    row.begin = static_cast<int>(k.begin < begin ? begin : k.begin < end ? k.begin : end);
    row.end = static_cast<int>(k.end < end ? k.end : end);
    const auto place = [&](const Mask& m) { return b * m.stride_b + head(r) * m.stride_h + query(r) * m.stride_q; };
    if (p.mask.data != nullptr) row.mask = static_cast<const char*>(p.mask.data) + place(p.mask);
    if (p.bias.data != nullptr)
      row.bias = static_cast<const char*>(p.bias.data) + place(p.bias) * RowKeys::dtype_bytes(p.bias.dtype);
    return row;
  }

  // Row r's sums in the workspace, as `of` left them; behind them its largest score and the sum of its weights.
  __device__ __forceinline__ float* partial(const Problem& p, int of, int r) const {
    auto* const floats = reinterpret_cast<float*>(static_cast<char*>(p.workspace) + counter_bytes(p));
    return floats + ((segment * most_chunks(p) + of) * partial_rows(p) + r) * (p.d + 2);
  }
};

__device__ __forceinline__ char* out_at(const Problem& p, const Unit& u, int r, int c) {
  return static_cast<char*>(p.out.data) + (u.row_of(p.out, r) + c * p.out.stride_d) * float_bytes(p.dtype);
}
__device__ __forceinline__ void store_out(const Problem& p, const Unit& u, int r, int c, float v) {
  char* const to = out_at(p, u, r, c);
  const std::uint32_t bits = from_float(v, p.dtype);
  if (p.dtype == DType::kFloat32) {
    *reinterpret_cast<std::uint32_t*>(to) = bits;
  } else {
    *reinterpret_cast<std::uint16_t*>(to) = static_cast<std::uint16_t>(bits);
  }
}
__device__ __forceinline__ float inverse_of(float weight) { return weight == 0.f ? 0.f : 1.f / weight; }

// All of a block, once its sums are in the workspace: the last one of the segment writes out.
__device__ __forceinline__ void merge(const Args& a, const Unit& u) {
  const Problem& p = a.p;
  unsigned& last = dynamic_shared<unsigned>();  // in place of q, which is not read any more
  __syncthreads();  // the block's sums are in the workspace before one thread hands them over; q has been read
  if (threadIdx.x == 0)
    last = last_to_arrive(static_cast<std::uint64_t*>(p.workspace) + u.segment, a.tag, static_cast<unsigned>(u.chunks));
  __syncthreads();  // read after write: `last`, and with it what the other blocks handed over
  if (last == 0) return;
  for (int e = static_cast<int>(threadIdx.x); e < u.rows * p.d; e += kThreads) {
    const int r = e / p.d, c = e % p.d;
    float largest = nothing(), weight = 0, sum = 0;
    for (int k = 0; k < u.chunks; ++k) largest = fmaxf(largest, u.partial(p, k, r)[p.d]);
    const float off = offset_of(largest);
    for (int k = 0; k < u.chunks; ++k) {
      const float* const part = u.partial(p, k, r);
      const float w = exp_of(part[p.d] - off);
      weight = fmaf(w, part[p.d + 1], weight), sum = fmaf(w, part[c], sum);
    }
    store_out(p, u, r, c, sum * inverse_of(weight));
  }
}

}  // namespace strop::attn

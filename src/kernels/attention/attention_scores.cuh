// Attention on the tensor cores: what becomes of a warp's dots before their largest is looked for.
#pragma once

#include "kernels/attention/attention.cuh"

namespace strop::attn {

// f of each of row i's scores and its key's number, that of the lane's first being `key`. A lane has two columns of 8,
// in two rows.
template <int kTiles, class F>
__device__ __forceinline__ void each_score(float (&x)[kTiles][4], int i, int key, F&& f) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) f(x[n][2 * i + e], key + (8 * n + e));
  }
}

// Those of keys outside of `span` become -inf.
template <int kTiles>
__device__ __forceinline__ void cut(float (&x)[kTiles][4], Span span, int i, int key) {
  const int begin = span.begin - key, end = span.end - key;
  each_score(x, i, 0, [&](float& s, int j) { s = j >= begin && j < end ? s : nothing(); });
}

// Scale, bias and mask, and cut. Where a row has no key it reads what is the nearest one's. `row`: the unit's, of i =
// 0.
template <int kTiles>
__device__ __forceinline__ void score(const Args& args, const Unit& u, float (&x)[kTiles][4], int row, int i, int key) {
  const Problem& p = args.p;
  const RowKeys keys = u.keys(args, row + 8 * i);
  if (keys.begin < keys.end) {
    const auto each = [&](auto&& f) {
      each_score(x, i, key, [&](float& s, int j) { f(s, min(max(j, keys.begin), keys.end - 1)); });
    };
    if (p.bias.data == nullptr) {
      if (args.natural) each([&](float& s, int) { s *= p.scale; });
    } else if (p.bias.dtype == DType::kFloat32) {
      each([&](float& s, int j) { s = fmaf(s, p.scale, keys.bias_at<float>(p, j)); });
    } else if (p.bias.dtype == DType::kFloat64) {
      each([&](float& s, int j) { s = fmaf(s, p.scale, keys.bias_at<double>(p, j)); });
    } else {
      each([&](float& s, int j) { s = fmaf(s, p.scale, keys.bias_at<std::uint16_t>(p, j)); });
    }
    if (keys.mask != nullptr) each([&](float& s, int j) { s = keys.admits(p, j) ? s : nothing(); });
  }
  cut(x, {keys.begin, keys.end}, i, key);
}

}  // namespace strop::attn

// Attention on the tensor cores: what one warp does with its rows and a tile of keys.
//
// Scores (q k^T) and weights never leave the registers: the accumulator of one product has the layout of the other's
// first operand (base/ptx/mma.cuh). A tile goes one of three ways, all lanes the same: whole, where all rows meet all
// of its keys, it is products, maxima and exponentials alone; cut by lengths, diagonal or window, it is compared and
// selected from; and masks and biases are read.
//
// Units. Maxima are taken of dots as they are; the scale and log2(e) go into the multiply-add before the exponential.
// Where a bias is added, or the scale is not above 0, scores are in natural units instead and the largest is taken off
// before they are changed: a bias of -3.4e38 in units of log 2 would be -inf, and a row of those the same as an empty
// one.
#pragma once

#include "base/ptx/mma.cuh"
#include "base/reduce.cuh"
#include "kernels/attention/attention_scores.cuh"

namespace strop::attn {

// 16 kTiles rows: of the 16 of tile t a lane has g = lane / 4 and g + 8, and of 8 columns two, 2 (lane % 4) and the
// next.
template <int kHead, int kTiles, bool kBf16>
struct Warp {
  static constexpr int kKeys = mma_keys(kHead), kPitch = mma_pitch(kHead);
  static constexpr bool kKept = kHead <= 128;  // q stays in registers
  static constexpr DType kDType = kBf16 ? DType::kBFloat16 : DType::kFloat16;
  using Element = std::uint16_t;
  using Scores = float[kKeys / 8][4];  // of 16 rows

  float sums[kTiles][kHead / 8][4];
  float largest[kTiles][2], weight[kTiles][2];  // weight: of this lane's columns
  std::uint32_t kept[kTiles][kKept ? kHead / 16 : 1][4];
  int row;        // this lane's first one
  Span any, all;  // keys of any of the warp's rows, and of all of them

  static __device__ __forceinline__ void multiply(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                                  std::uint32_t b1) {
    const std::uint32_t b[2] = {b0, b1};
    if constexpr (kBf16) {
      ptx::mma_m16n8k16_bf16(c, a, b);
    } else {
      ptx::mma_m16n8k16_f16(c, a, b);
    }
  }

  // `first`: the warp's first row of the unit's.
  __device__ __forceinline__ void begin(const Args& args, const Unit& u, int first) {
    row = first + static_cast<int>(threadIdx.x) % 32 / 4;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int n = 0; n < kHead / 8; ++n) sums[t][n][0] = sums[t][n][1] = sums[t][n][2] = sums[t][n][3] = 0;
#pragma unroll
      for (int i = 0; i < 2; ++i) largest[t][i] = nothing(), weight[t][i] = 0;
    }
    const Span low = u.span(args, first), high = u.span(args, min(first + 16 * kTiles, u.rows) - 1);
    any = {low.begin, first < u.rows ? high.end : low.begin}, all = {high.begin, low.end};
  }

  // Pointers are this lane's, to fragments.
  static __device__ __forceinline__ void load_q(std::uint32_t (&a)[4], const Element* q, int t, int c) {
    ptx::ldmatrix_x4(a, q + 16 * t * kPitch + c);
  }
  __device__ __forceinline__ void keep(const Element* q) {
    if constexpr (kKept) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int c = 0; c < kHead; c += 16) load_q(kept[t][c / 16], q, t, c);
      }
    }
  }

  // One tile of keys, of which the first is key `first`.
  __device__ __forceinline__ void add(const Args& args, const Unit& u, const Element* q, const Element* k,
                                      const Element* v, int first) {
    float x[kTiles][kKeys / 8][4] = {};
#pragma unroll
    for (int c = 0; c < kHead; c += 16) {
      std::uint32_t a[kTiles][4], b[4];
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        if constexpr (!kKept) load_q(a[t], q, t, c);
      }
#pragma unroll
      for (int n = 0; n < kKeys; n += 16) {
        ptx::ldmatrix_x4(b, k + n * kPitch + c);
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          const std::uint32_t(&rows)[4] = kKept ? kept[t][c / 16 % (kKept ? kHead / 16 : 1)] : a[t];
          multiply(x[t][n / 8], rows, b[0], b[1]), multiply(x[t][n / 8 + 1], rows, b[2], b[3]);
        }
      }
    }
    const int key = first + static_cast<int>(threadIdx.x) % 4 * 2;  // of this lane's first column
    // A kernel of more tiles than one is not started where there is more to scores than dots (tune).
    const bool plain = kTiles > 1 || args.plain;
    const bool whole = all.begin <= first && first + kKeys <= all.end;
    if (!plain) {
#pragma unroll
      for (int i = 0; i < 2; ++i) score(args, u, x[0], row, i, key);
    } else if (!whole) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int i = 0; i < 2; ++i) cut(x[t], u.span(args, row + 16 * t + 8 * i), i, key);
      }
    }
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 2; ++i) weigh(args, x[t], t, i, kTiles == 1 && args.natural);
    }
#pragma unroll
    for (int n = 0; n < kKeys; n += 16) {
      std::uint32_t a[kTiles][4], b[4];
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float* const two = x[t][n / 8 + e / 2] + e % 2 * 2;
          a[t][e] = from_float2({two[0], two[1]}, kDType);
        }
      }
#pragma unroll
      for (int c = 0; c < kHead; c += 16) {
        ptx::ldmatrix_x4_trans(b, v + n * kPitch + c);
#pragma unroll
        for (int t = 0; t < kTiles; ++t)
          multiply(sums[t][c / 8], a[t], b[0], b[1]), multiply(sums[t][c / 8 + 1], a[t], b[2], b[3]);
      }
    }
  }

  // Those of a row's other columns are in the neighbouring lanes.
  __device__ __forceinline__ void add_up_weights() {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 2; ++i) weight[t][i] = group_sum(weight[t][i], 4);
    }
  }

  // Row i's scores to weights.
  __device__ __forceinline__ void weigh(const Args& args, Scores& x, int t, int i, bool natural) {
    float most[2] = {largest[t][i], largest[t][i]};
    each_score(x, i, 0, [&](float& s, int j) { most[j % 2] = fmaxf(most[j % 2], s); });
    // A row's columns are in four neighbouring lanes.
    float now = fmaxf(most[0], most[1]);
    now = fmaxf(now, __shfl_xor_sync(kFullWarp, now, 1));
    now = fmaxf(now, __shfl_xor_sync(kFullWarp, now, 2));
    const float off = offset_of(now), factor = args.factor;
    float last = largest[t][i], taken = __fmul_rn(off, factor);
    if (natural) {
      each_score(x, i, 0, [&](float& s, int) { s -= off; });
      last -= off, taken = 0;
    }
    // Not contracted: 1 where the largest is what it was.
    const float before = ptx::exp2_approx(__fmul_rn(last, factor) - taken);
    float sum[2] = {};
    each_score(x, i, 0, [&](float& s, int j) { s = ptx::exp2_approx(fmaf(s, factor, -taken)), sum[j % 2] += s; });
    largest[t][i] = now;
    weight[t][i] = fmaf(weight[t][i], before, sum[0] + sum[1]);
#pragma unroll
    for (int n = 0; n < kHead / 8; ++n) sums[t][n][2 * i] *= before, sums[t][n][2 * i + 1] *= before;
  }
};

}  // namespace strop::attn

// Attention on the tensor cores (sm_80 and later), for fp16 and bf16 in rows that 16-byte copies can move.
//
// Purpose. Four warps of 16 rows. Keys and values come in tiles by cp.async, one tile ahead of the one in use; q stays
// in shared memory. Scores (q k^T) and weights never leave the registers: the accumulator of one product has the
// layout of the other's first operand (base/ptx/mma.cuh). Head sizes below the kernel's are filled up with zeros, which
// add nothing to dots, and whose sums are not written.
//
// Floor. 4 D operations a query and key at about 620 TFLOP/s (mma.sync on an H100), and an exponential each: 16 a cycle
// and multiprocessor, as long as the products at D = 128. The tile's bytes come from L2: 64 rows use each 64 times.
#pragma once

#include "base/ptx/async_copy.cuh"
#include "base/ptx/mma.cuh"
#include "base/reduce.cuh"
#include "kernels/attention/attention.cuh"

namespace strop::attn {

// The part of one warp: 16 rows, of which a lane holds two, g and g + 8, and of 8 columns two, 2 t and 2 t + 1.
template <int kHead, bool kBf16>
struct MmaTile {
  static constexpr int kKeys = mma_keys(kHead), kPitch = mma_pitch(kHead);
  static constexpr DType kDType = kBf16 ? DType::kBFloat16 : DType::kFloat16;
  using Element = std::uint16_t;

  float sums[kHead / 8][4];
  float largest[2], weight[2];  // weight: of this lane's columns
  RowKeys keys[2];

  static __device__ __forceinline__ void multiply(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                                  std::uint32_t b1) {
    const std::uint32_t b[2] = {b0, b1};
    if constexpr (kBf16) {
      ptx::mma_m16n8k16_bf16(c, a, b);
    } else {
      ptx::mma_m16n8k16_f16(c, a, b);
    }
  }

  // One tile of keys, of which the first is key `begin`.
  __device__ __forceinline__ void add(const Problem& p, const Element* q, const Element* k, const Element* v,
                                      int begin) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    float x[kKeys / 8][4] = {};
#pragma unroll
    for (int c = 0; c < kHead; c += 16) {
      if (c >= p.d) break;
      std::uint32_t a[4], b[4];
      ptx::ldmatrix_x4(a, q + lane % 16 * kPitch + c + lane / 16 * 8);
#pragma unroll
      for (int n = 0; n < kKeys; n += 16) {
        ptx::ldmatrix_x4(b, k + (n + lane / 16 * 8 + lane % 8) * kPitch + c + lane / 8 % 2 * 8);
        multiply(x[n / 8], a, b[0], b[1]);
        multiply(x[n / 8 + 1], a, b[2], b[3]);
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) weigh(p, x, i, begin + lane % 4 * 2);
#pragma unroll
    for (int n = 0; n < kKeys; n += 16) {
      const auto pair = [&](int tile, int i) { return from_float2({x[tile][2 * i], x[tile][2 * i + 1]}, kDType); };
      const std::uint32_t a[4] = {pair(n / 8, 0), pair(n / 8, 1), pair(n / 8 + 1, 0), pair(n / 8 + 1, 1)};
      std::uint32_t b[4];
#pragma unroll
      for (int c = 0; c < kHead; c += 16) {
        if (c >= p.d) break;
        ptx::ldmatrix_x4_trans(b, v + (n + lane % 16) * kPitch + c + lane / 16 * 8);
        multiply(sums[c / 8], a, b[0], b[1]);
        multiply(sums[c / 8 + 1], a, b[2], b[3]);
      }
    }
  }

  // Row i's dots to weights. `key` is that of the lane's first column.
  __device__ __forceinline__ void weigh(const Problem& p, float (&x)[kKeys / 8][4], int i, int key) {
    const RowKeys& row = keys[i];
    const int first = key - key % 8;
    const bool all = row.mask == nullptr && row.bias == nullptr && row.begin <= first && first + kKeys <= row.end;
    float most = largest[i];
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& dot = x[n][2 * i + e];
        dot = all ? dot * p.scale : row.score(p, key + 8 * n + e, dot);
        most = fmaxf(most, dot);
      }
    }
    // A row's columns are in four neighbouring lanes.
    most = fmaxf(most, __shfl_xor_sync(kFullWarp, most, 1));
    most = fmaxf(most, __shfl_xor_sync(kFullWarp, most, 2));
    const float off = offset_of(most), before = exp_of(largest[i] - off);
    float sum = 0;
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& w = x[n][2 * i + e];
        w = exp_of(w - off);
        sum += w;
      }
    }
    largest[i] = most;
    weight[i] = fmaf(weight[i], before, sum);
#pragma unroll
    for (int c = 0; c < kHead / 8; ++c) sums[c][2 * i] *= before, sums[c][2 * i + 1] *= before;
  }
};

// `rows` rows of up to kHead elements into shared memory; zeros beyond d, and for rows that `source` has not.
template <int kHead, int kRows, class Source>
__device__ __forceinline__ void copy_rows(std::uint16_t* to, int d, const void* anywhere, Source&& source) {
  constexpr int kVectors = kHead / 8;
#pragma unroll 4
  for (int e = static_cast<int>(threadIdx.x); e < kRows * kVectors; e += kThreads) {
    const int row = e / kVectors, c = e % kVectors * 8;
    const std::uint16_t* const from = c < d ? source(row) : nullptr;
    ptx::copy_async_16(to + row * mma_pitch(kHead) + c, from != nullptr ? from + c : anywhere,
                       from != nullptr ? 16 : 0);
  }
}

template <int kHead, bool kBf16>
__global__ void __launch_bounds__(kThreads, kHead == 64 ? 3 : 1) attention_mma_kernel(const __grid_constant__ Args a) {
  ptx::wait_for_previous_kernel();
  using Tile = MmaTile<kHead, kBf16>;
  using Element = typename Tile::Element;
  constexpr int kKeys = Tile::kKeys, kPitch = Tile::kPitch, kTile = kKeys * kPitch;
  const Problem& p = a.p;
  Unit u;
  if (!u.find(a)) return;
  Element* const q = &dynamic_shared<Element>();
  Element* const kv = q + kMmaRows * kPitch;  // k and v of each stage
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const auto copy_keys = [&](int begin, int stage) {
    const auto copy = [&](const Tensor& t, Element* to) {
      const Element* const from = static_cast<const Element*>(t.data) + u.keys_at(t);
      copy_rows<kHead, kKeys>(to, p.d, t.data, [&](int row) -> const Element* {
        return begin + row < u.s.k ? from + (begin + row) * t.stride_l : nullptr;
      });
    };
    copy(p.k, kv + 2 * stage * kTile);
    copy(p.v, kv + (2 * stage + 1) * kTile);
  };
  Tile tile = {};
  const int own = u.first + 16 * warp, row = own + lane / 4;
  for (int i = 0; i < 2; ++i) tile.largest[i] = nothing(), tile.keys[i] = u.keys(p, row + 8 * i);

  const int from = u.begin / kKeys * kKeys;
  if (from < u.end) {
    copy_rows<kHead, kMmaRows>(q, p.d, p.q.data, [&](int r) -> const Element* {
      return u.first + r < u.rows ? static_cast<const Element*>(p.q.data) + u.row_of(p.q, u.first + r) : nullptr;
    });
    copy_keys(from, 0);
    ptx::copy_async_commit();
  }
  for (int begin = from, stage = 0; begin < u.end; begin += kKeys, stage ^= 1) {
    if (begin + kKeys < u.end) copy_keys(begin + kKeys, stage ^ 1);
    ptx::copy_async_commit();
    ptx::copy_async_wait<1>();
    __syncthreads();  // read after write: this tile, copied by all threads
    if (own < u.rows) tile.add(p, q + 16 * warp * kPitch, kv + 2 * stage * kTile, kv + (2 * stage + 1) * kTile, begin);
    __syncthreads();  // write after read: the next turn's copies go where this tile is
  }

#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int r = row + 8 * i;
    tile.weight[i] += __shfl_xor_sync(kFullWarp, tile.weight[i], 1);
    tile.weight[i] += __shfl_xor_sync(kFullWarp, tile.weight[i], 2);
    if (r >= u.rows) continue;
    float* const partial = u.chunks > 1 ? u.partial(p, u.chunk, r) : nullptr;
    const float inverse = inverse_of(tile.weight[i]);
#pragma unroll
    for (int n = 0; n < kHead / 8; ++n) {
      const int c = 8 * n + lane % 4 * 2;
      if (c >= p.d) break;
      const float2 sum = {tile.sums[n][2 * i], tile.sums[n][2 * i + 1]};
      if (partial != nullptr) {
        *reinterpret_cast<float2*>(partial + c) = sum;
      } else {
        *reinterpret_cast<std::uint32_t*>(out_at(p, u, r, c)) =
            from_float2({sum.x * inverse, sum.y * inverse}, Tile::kDType);
      }
    }
    if (partial != nullptr && lane % 4 == 0) partial[p.d] = tile.largest[i], partial[p.d + 1] = tile.weight[i];
  }
  if (u.chunks > 1) merge(a, u);
}

}  // namespace strop::attn

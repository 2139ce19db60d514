// Attention on the tensor cores (sm_80 and later), for fp16 and bf16 in rows that 16-byte copies can move.
//
// Purpose. Four warps of 16 rows, or of 32 where there are many (attention_warp.cuh). Keys and values come in tiles by
// cp.async, up to two tiles ahead of the one in use. A thread copies the same 16 bytes of rows that are a step apart:
// an addition each, and zeros behind the last key. Head sizes below the kernel's are filled up with zeros, which add
// nothing to dots, and whose sums are not written.
//
// Floor. 4 D operations a query and key at about 620 TFLOP/s (mma.sync on an H100), and an exponential each: 16 a cycle
// and multiprocessor, as long as the products at D = 128. Fragments of k and v come from shared memory at 128 bytes a
// cycle and multiprocessor: for 16 rows as long as their products, for 32 half as long. The tile's bytes come from L2:
// 64 rows use each 64 times.
#pragma once

#include "base/ptx/async_copy.cuh"
#include "kernels/attention/attention_warp.cuh"

namespace strop::attn {

// What a thread copies of each tile of keys: one column of rows kStep apart.
template <int kHead>
struct KeyCopies {
  static constexpr int kVectors = kHead / 8, kStep = mma_step(kHead), kKeys = mma_keys(kHead);
  static constexpr int kTile = kKeys * mma_pitch(kHead);
  const std::uint16_t *k, *v;  // the next row's
  int left;                    // rows from there on; none beyond d
  int to;                      // in a tile

  __device__ __forceinline__ KeyCopies(const Problem& p, const Unit& u, int from) {
    const int row = static_cast<int>(threadIdx.x) / kVectors, c = static_cast<int>(threadIdx.x) % kVectors * 8;
    k = static_cast<const std::uint16_t*>(p.k.data) + u.keys_at(p.k) +
        static_cast<unsigned>(from + row) * p.k.stride_l + c;
    v = static_cast<const std::uint16_t*>(p.v.data) + u.keys_at(p.v) +
        static_cast<unsigned>(from + row) * p.v.stride_l + c;
    left = c < p.d ? static_cast<int>(u.s.k) - from - row : 0;
    to = row * mma_pitch(kHead) + c;
  }
  // The next tile, into a stage.
  __device__ __forceinline__ void start(const Args& a, std::uint16_t* stage) {
#pragma unroll
    for (int row = 0; row < kKeys; row += kStep, k += a.k_step)
      ptx::copy_async_16(stage + to + row * mma_pitch(kHead), k, row < left ? 16 : 0);
#pragma unroll
    for (int row = 0; row < kKeys; row += kStep, v += a.v_step)
      ptx::copy_async_16(stage + kTile + to + row * mma_pitch(kHead), v, row < left ? 16 : 0);
    left -= kKeys;
  }
};

// The block's rows of q; zeros beyond d, and for rows that are not there.
template <int kHead, int kRows>
__device__ __forceinline__ void copy_q(std::uint16_t* to, const Problem& p, const Unit& u) {
  constexpr int kVectors = kHead / 8, kStep = mma_step(kHead);
  const int own = static_cast<int>(threadIdx.x) / kVectors, c = static_cast<int>(threadIdx.x) % kVectors * 8;
#pragma unroll
  for (int row = 0; row < kRows; row += kStep) {
    const int r = u.first + row + own;
    const std::uint16_t* const from = static_cast<const std::uint16_t*>(p.q.data) + u.row_of(p.q, r) + c;
    ptx::copy_async_16(to + (row + own) * mma_pitch(kHead) + c, from, r < u.rows && c < p.d ? 16 : 0);
  }
}

// What a warp found, to out, by way of shared memory that it alone uses, so that 16 bytes are written at a time.
template <int kHead, int kTiles, bool kBf16>
__device__ __forceinline__ void write_out(const Warp<kHead, kTiles, kBf16>& warp, const Problem& p, const Unit& u,
                                          int first, std::uint16_t* own) {
  constexpr int kPitch = mma_pitch(kHead), kVectors = kHead / 8;
  const int lane = static_cast<int>(threadIdx.x) % 32, c = lane % kVectors * 8;
  __syncwarp();  // write after read: q, by other lanes
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float inverse = inverse_of(warp.weight[t][i]);
      std::uint16_t* const to = own + (16 * t + 8 * i + lane / 4) * kPitch + lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < kVectors; ++n)
        *reinterpret_cast<std::uint32_t*>(to + 8 * n) =
            from_float2({warp.sums[t][n][2 * i] * inverse, warp.sums[t][n][2 * i + 1] * inverse}, warp.kDType);
    }
  }
  __syncwarp();  // read after write: the rows, of all lanes
#pragma unroll
  for (int row = lane / kVectors; row < 16 * kTiles; row += 32 / kVectors) {
    if (first + row < u.rows && c < p.d)
      *reinterpret_cast<uint4*>(static_cast<std::uint16_t*>(p.out.data) + u.row_of(p.out, first + row) + c) =
          *reinterpret_cast<const uint4*>(own + row * kPitch + c);
  }
}

// A chunk's sums, to the workspace; its rows are 16 at most.
template <int kHead, int kTiles, bool kBf16>
__device__ __forceinline__ void write_sums(const Warp<kHead, kTiles, kBf16>& warp, const Args& a, const Unit& u) {
  static_assert(kSplitRows <= 16);
  const Problem& p = a.p;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int r = warp.row + 8 * i, c = static_cast<int>(threadIdx.x) % 4 * 2;
    if (r >= u.rows) continue;
    float* const to = u.partial(p, u.chunk, r);
#pragma unroll
    for (int n = 0; n < kHead / 8; ++n)
      if (8 * n < p.d)
        *reinterpret_cast<float2*>(to + 8 * n + c) = {warp.sums[0][n][2 * i], warp.sums[0][n][2 * i + 1]};
    if (c > 0) continue;
    // In natural units, which another chunk's may not be.
    to[p.d] = a.natural ? warp.largest[0][i] : warp.largest[0][i] * p.scale, to[p.d + 1] = warp.weight[0][i];
  }
}

template <int kHead, int kTiles, bool kBf16>
__global__ void __launch_bounds__(kThreads, mma_blocks(kHead, kTiles))
    attention_mma_kernel(const __grid_constant__ Args a) {
  ptx::wait_for_previous_kernel();
  using Element = std::uint16_t;
  constexpr int kKeys = mma_keys(kHead), kPitch = mma_pitch(kHead), kTile = kKeys * kPitch;
  constexpr int kStages = mma_stages(kHead), kRows = 64 * kTiles;
  const Problem& p = a.p;
  Unit u;
  const bool found = u.find(a);
  clear_rest<uint4, 8>(a, u);
  if (!found) return;
  Element* const q = &dynamic_shared<Element>();
  Element* const kv = q + kRows * kPitch;  // k and v of each stage
  const int lane = static_cast<int>(threadIdx.x) % 32, in_block = static_cast<int>(threadIdx.x) / 32 * 16 * kTiles;
  const int from = u.begin / kKeys * kKeys;

  // Each turn commits a group, an empty one where there is no tile any more: so the newest kStages - 2 are those that
  // need not be there.
  KeyCopies<kHead> copies(p, u, from);
  if (from < u.end) copy_q<kHead, kRows>(q, p, u);
#pragma unroll
  for (int tile = 0; tile < kStages - 1; ++tile) {
    if (from + tile * kKeys < u.end) copies.start(a, kv + 2 * tile * kTile);
    ptx::copy_async_commit();
  }
  Warp<kHead, kTiles, kBf16> warp;
  warp.begin(a, u, u.first + in_block);

  // This lane's part of fragments: q's and v's quarters lie side by side, k's are taken the other way round.
  const int side = lane % 16 * kPitch + lane / 16 * 8, turned = (lane / 16 * 8 + lane % 8) * kPitch + lane / 8 % 2 * 8;
  const Element* const own = q + in_block * kPitch;
  for (int begin = from, stage = 0; begin < u.end; begin += kKeys, stage = stage + 1 == kStages ? 0 : stage + 1) {
    ptx::copy_async_wait<kStages - 2>();
    // Read after write: this tile, copied by all threads. Write after read: the next copies go where the last tile is.
    __syncthreads();
    if (begin == from) warp.keep(own + side);
    if (begin + (kStages - 1) * kKeys < u.end) copies.start(a, kv + 2 * (stage == 0 ? kStages - 1 : stage - 1) * kTile);
    ptx::copy_async_commit();
    const Element* const k = kv + 2 * stage * kTile;
    if (begin + kKeys > warp.any.begin && begin < warp.any.end)
      warp.add(a, u, own + side, k + turned, k + kTile + side, begin);
  }
  warp.add_up_weights();
  if (u.chunks == 1) return write_out(warp, p, u, u.first + in_block, q + in_block * kPitch);
  write_sums(warp, a, u);
  merge(a, u);
}

}  // namespace strop::attn

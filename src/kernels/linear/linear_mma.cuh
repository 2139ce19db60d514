// Linear layers on the tensor cores (sm_80 and later), for fp16 and bf16 in rows that 16-byte copies can move.
//
// Purpose. A block has kM x kN sums in registers, a warp 64 x 32 or fewer of them. K goes by in turns of 64 elements,
// each with a tile of x and one of w by cp.async, three or two turns ahead. A row's eight 16-byte vectors are stored
// with their number turned by the row's (xor), so that the eight rows that ldmatrix takes at a time lie in different
// banks. The sums go through shared memory to whoever stores them in vectors. Of a gate, groups of 8 columns of the one
// weight and of the other take turns, so that a warp has both.
//
// Floor. Few rows: the weights once, 2 N K bytes. Many: 2 M N K operations at about 620 TFLOP/s (mma.sync on an H100).
// A tile of 128 x 128 takes 32 KiB a turn from L2 for 2.1 MFLOP, 64 to a byte: 620 TFLOP/s would ask L2 for 9.7 TB/s,
// more than it gives. Large products are a library's, and this kernel is for few rows and for epilogues that pay.
#pragma once

#include "base/ptx/async_copy.cuh"
#include "base/ptx/grid.cuh"
#include "base/ptx/mma.cuh"
#include "kernels/linear/linear.cuh"

namespace strop::lin {

using Element = std::uint16_t;

// Vector v of a row of a tile in shared memory.
__device__ __forceinline__ Element* vector_at(Element* tile, int row, int v) {
  return tile + row * kDepth + (v ^ row % 8) * 8;
}

// The rows of a matrix that a thread copies of each tile: one vector each of rows `row`, `row` + `row_step`, …
struct MmaRows {
  const Element* first;  // at the beginning of K
  std::int64_t step;     // elements from row to row
  int row, row_step, rows;

  __device__ __forceinline__ MmaRows(const Matrix& m, int row, int row_step, std::int64_t rows)
      : first(static_cast<const Element*>(m.data) + row * m.stride_row),
        step(row_step * m.stride_row),
        row(row),
        row_step(row_step),
        rows(static_cast<int>(rows)) {}

  // Elements [k, k + 64) of kCount rows; zeros beyond the matrix.
  template <int kCount, int kThreads>
  __device__ __forceinline__ void copy(Element* to, const Matrix& m, std::int64_t k, std::int64_t depth) const {
    constexpr int kCopies = kCount * 8 / kThreads, kRowStep = kThreads / 8;
    static_assert(kRowStep % 8 == 0);  // a thread's rows turn their vectors alike
    const int v = threadIdx.x % 8;
    Element* const at = vector_at(to, threadIdx.x / 8, v);
    const Element* from = first + k + 8 * v;
    if (k + kDepth <= depth && row + (kCopies - 1) * row_step < rows) {  // nearly always
#pragma unroll
      for (int i = 0; i < kCopies; ++i, from += step) ptx::copy_async_16(at + i * kRowStep * kDepth, from);
      return;
    }
    const std::int64_t left = depth - (k + 8 * v);
    const int bytes = left >= 8 ? 16 : left > 0 ? static_cast<int>(left) * 2 : 0;
#pragma unroll 1
    for (int i = 0; i < kCopies; ++i, from += step) {
      const bool there = row + i * row_step < rows && bytes > 0;
      ptx::copy_async_16(at + i * kRowStep * kDepth, there ? from : m.data, there ? bytes : 0);
    }
  }
};

template <int kM, int kN, bool kBf16>
struct MmaTile {
  static constexpr int kThreads = kN == 128 ? 256 : 128, kWarpRows = kM <= 32 ? 1 : 2;
  static constexpr int kWarpM = kM / kWarpRows, kWarpN = kN / (kThreads / 32 / kWarpRows);
  static constexpr int kTilesM = kWarpM / 16, kTilesN = kWarpN / 8;
  static constexpr int kStages = mma_stages(kM), kStage = (kM + kN) * kDepth;
  static_assert(kWarpM % 16 == 0 && kWarpN % 16 == 0);

  float sums[kTilesM * kTilesN][4] = {};  // C's fragments (base/ptx/mma.cuh)

  using Words2 = std::uint32_t[2];
  static __device__ __forceinline__ void multiply(float (&c)[4], const std::uint32_t (&a)[4], const Words2& b) {
    if constexpr (kBf16) return ptx::mma_m16n8k16_bf16(c, a, b);
    if constexpr (!kBf16) ptx::mma_m16n8k16_f16(c, a, b);
  }

  // One turn, with the warp's rows of both tiles.
  __device__ __forceinline__ void add(const Element* x, const Element* w) {
    // Where the lane's row for ldmatrix has its vector of the first 16 elements; those behind it differ in bits above
    // the lowest of the vector's number, which the row's number turns independently.
    const int lane = static_cast<int>(threadIdx.x) % 32, turned = lane % 8;
    const int of_x = lane % 16 * kDepth + (lane / 16 ^ turned) * 8;
    const int of_w = (lane / 16 * 8 + turned) * kDepth + (lane / 8 % 2 ^ turned) * 8;
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      std::uint32_t a[kTilesM][4], b[4];
#pragma unroll
      for (int i = 0; i < kTilesM; ++i) ptx::ldmatrix_x4(a[i], x + (of_x ^ k) + i * 16 * kDepth);
#pragma unroll
      for (int j = 0; j < kTilesN; j += 2) {
        ptx::ldmatrix_x4(b, w + (of_w ^ k) + j * 8 * kDepth);
#pragma unroll
        for (int i = 0; i < kTilesM; ++i) {
          multiply(sums[i * kTilesN + j], a[i], {b[0], b[1]});
          multiply(sums[i * kTilesN + j + 1], a[i], {b[2], b[3]});
        }
      }
    }
  }
};

template <int kM, int kN, bool kBf16>
__global__ void __launch_bounds__(MmaTile<kM, kN, kBf16>::kThreads, kN == 128 ? 2 : 3)
    linear_mma_kernel(const __grid_constant__ Args a) {
  ptx::wait_for_previous_kernel();
  ptx::let_next_kernel_begin();
  using Tile = MmaTile<kM, kN, kBf16>;
  constexpr int kThreads = Tile::kThreads, kStages = Tile::kStages;
  const Problem& p = a.p;
  const Epilogue& e = p.epilogue;
  const Unit u(a);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int warp_row = warp % Tile::kWarpRows * Tile::kWarpM, warp_column = warp / Tile::kWarpRows * Tile::kWarpN;
  Element* const shared = &dynamic_shared<Element>();

  const int own = thread / 8;  // row of a tile; of a gate's 16 rows of w, 8 are of either weight
  const Matrix& weight = p.weight[e.gated ? own / 8 % 2 : 0];
  const MmaRows x(p.x, u.row + own, kThreads / 8, e.m);
  const MmaRows w(weight, u.column + (e.gated ? own / 16 * 8 + own % 8 : own), e.gated ? kThreads / 16 : kThreads / 8,
                  e.n);
  const auto copy = [&](int k, int stage) {
    if (k < u.end) {
      Element* const to = shared + stage * Tile::kStage;
      x.template copy<kM, kThreads>(to, p.x, k, p.k);
      w.template copy<kN, kThreads>(to + kM * kDepth, weight, k, p.k);
    }
    ptx::copy_async_commit();  // an empty group where there is no more, so that the waits count the same
  };

#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) copy(u.begin + stage * kDepth, stage);

  // Biases of the columns that this thread will store: few rows wait for everything, so they come meanwhile, behind the
  // copies, which would wait for them otherwise; large tiles need the registers.
  const int vectors = e.gated ? kN / 16 : kN / 8, v = thread % vectors;
  Columns<8> columns;
  if constexpr (kM <= kFewRows) columns = Columns<8>(e, u.column + 8 * v, 1, a.vectors);

  Tile tile;
  for (int k = u.begin, stage = 0; k < u.end; k += kDepth, stage = stage + 1 == kStages ? 0 : stage + 1) {
    ptx::copy_async_wait<kStages - 2>();
    __syncthreads();  // read after write: this turn's tiles, copied by all threads; and write after read: the copies
                      // below go where all warps have read the last turn's tiles
    copy(k + (kStages - 1) * kDepth, stage == 0 ? kStages - 1 : stage - 1);
    Element* const from = shared + stage * Tile::kStage;
    tile.add(from + warp_row * kDepth, from + (kM + warp_column) * kDepth);
  }

  const int row = warp_row + lane / 4;  // and 8 more: of a fragment's upper and lower half
  if constexpr (kM <= kFewRows) {
    if (a.tuning.along_k.count > 1) {
      unsigned used = 0;
#pragma unroll
      for (int i = 0; i < Tile::kTilesM; ++i) {
        if (u.row + row + i * 16 < e.m) used |= ((1u << Tile::kTilesN) - 1) << i * Tile::kTilesN;
      }
      if (!merge(a, u, tile.sums, used, thread, kThreads)) return;
    }
  }

  constexpr int kPitch = mma_sum_pitch(kN);
  float* const sums = &dynamic_shared<float>();
  __syncthreads();  // write after read: the sums go where other warps may still read the last tiles, or merge's word
#pragma unroll
  for (int i = 0; i < Tile::kTilesM; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::kTilesN; ++j) {
      const float(&c)[4] = tile.sums[i * Tile::kTilesN + j];
      float* const to = sums + (row + i * 16) * kPitch + warp_column + j * 8 + lane % 4 * 2;
      *reinterpret_cast<float2*>(to) = make_float2(c[0], c[1]);
      *reinterpret_cast<float2*>(to + 8 * kPitch) = make_float2(c[2], c[3]);
    }
  }
  __syncthreads();  // read after write: the sums, from here on by rows
  if constexpr (kM > kFewRows) columns = Columns<8>(e, u.column + 8 * v, 1, a.vectors);
  if (columns.inside == 0) return;
  for (int r = thread / vectors; r < kM && u.row + r < e.m; r += kThreads / vectors) {
    // Of eight lanes, whose sums are 32 or 64 bytes apart, half begin with the second 16: they meet in no bank.
    const bool turned = v / (e.gated ? 2 : 4) % 2 != 0;
    const auto load = [&](float(&y)[8], const float* from) {
      const float4 first = *reinterpret_cast<const float4*>(from + (turned ? 4 : 0));
      const float4 second = *reinterpret_cast<const float4*>(from + (turned ? 0 : 4));
      const float4 low = turned ? second : first, high = turned ? first : second;
      y[0] = low.x, y[1] = low.y, y[2] = low.z, y[3] = low.w;
      y[4] = high.x, y[5] = high.y, y[6] = high.z, y[7] = high.w;
    };
    const float* const from = sums + r * kPitch + v * (e.gated ? 16 : 8);
    float y[2][8] = {};
    load(y[0], from);
    if (e.gated) load(y[1], from + 8);
    columns.finish(e, u.row + r, y[0], y[1]);
  }
}

}  // namespace strop::lin

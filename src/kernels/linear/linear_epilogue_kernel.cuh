// What follows a product that a library made, as a kernel of its own.
//
// Floor. y and out once, and the residual: 2 M N elements. 4096 x 3072 in fp16: 50 MB, 15 us on an H100 (3.35 TB/s). A
// thread has one vector of columns of four rows or, where that makes too few blocks, of one.
#pragma once

#include "base/ptx/grid.cuh"
#include "kernels/linear/linear_epilogue.cuh"

namespace strop::lin {

inline constexpr int kEpilogueThreads = 256, kEpilogueWarps = kEpilogueThreads / 32;  // of a block; 32 vectors wide
inline constexpr int kEpilogueOwn = 4;  // rows of a thread, unless that makes too few blocks

struct EpilogueArgs {
  Epilogue e;
  Matrix y[2];
  bool vectors = false;
  unsigned column_blocks = 1;
};

// kOwn rows a thread, kEpilogueWarps apart. kAlone: y is all there is, in vectors; then its rows come at once, together
// with the biases, as 24 warps with a vector each would be 12 KB in flight where 3 TB/s ask for 40. Where nothing can
// be moved in vectors, neighbouring lanes have neighbouring elements.
template <int kE, int kOwn, bool kAlone>
__global__ void __launch_bounds__(kEpilogueThreads, 3) linear_epilogue_kernel(const __grid_constant__ EpilogueArgs a) {
  ptx::wait_for_previous_kernel();
  ptx::let_next_kernel_begin();
  using V = strop::Vector<kE, 16 / kE>;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x % a.column_blocks) * 32 * kE;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x / a.column_blocks) * (kOwn * kEpilogueWarps) + warp;
  [[maybe_unused]] V own[kAlone ? kOwn : 1] = {};
  if constexpr (kAlone) {
    const char* const from = static_cast<const char*>(a.y[0].data) + (column + lane * kE) * V::kSize;
    if (column + lane * kE + kE <= a.e.n) {
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        const std::int64_t row = first + i * kEpilogueWarps;
        if (row >= a.e.m) continue;
        const uint4 w = *reinterpret_cast<const uint4*>(from + row * a.y[0].stride_row * V::kSize);
        own[i] = {w.x, w.y, w.z, w.w};
      }
    }
  }
  const Columns<kE> columns(a.e, column + (a.vectors ? lane * kE : lane), a.vectors ? 1 : 32, a.vectors);
  if (columns.inside == 0) return;
  if constexpr (kAlone) {
    if (columns.vector) {
      float f[kOwn * kE];  // all at once: the activation is chosen once
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        float y[kE];
        own[i].to_floats(y, a.e.dtype);
#pragma unroll
        for (int e = 0; e < kE; ++e) f[i * kE + e] = y[e] + columns.bias[0][e];
      }
      activate<kE == 8>(a.e.activation, f);
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        float y[kE];
#pragma unroll
        for (int e = 0; e < kE; ++e) y[e] = f[i * kE + e];
        if (first + i * kEpilogueWarps < a.e.m) columns.store(a.e.out, a.e.dtype, first + i * kEpilogueWarps, y);
      }
      return;
    }
  }
#pragma unroll 1
  for (int i = 0; i < kOwn; ++i) {
    const std::int64_t row = first + i * kEpilogueWarps;
    if (row >= a.e.m) break;
    float y0[kE], y1[kE] = {};
    columns.load(a.y[0], a.e.dtype, row, y0);
    if (a.e.gated) columns.load(a.y[1], a.e.dtype, row, y1);
    columns.finish(a.e, row, y0, y1);
  }
}

}  // namespace strop::lin

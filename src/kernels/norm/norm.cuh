// LayerNorm and RMSNorm of a sum (a residual, embedding tables) on CUDA; the maths is in norm.h.
//
// Purpose. A row's mean and variance need all of it before any of it can be written: a row is read once, kept in
// registers as fp32 (s, the sum of its terms, unrounded), and normalised there. Short rows have a warp each and no
// barrier, longer ones a block; rows beyond what a block's registers hold are read once a pass, the later times from L2
// (kept apart, in norm_long_kernel). norm_tuning.h says which.
//
// Bytes. (R, n) of b bytes: 2 b R n, and 2 b R n more with the residual; weight and bias once from memory, else from
// L1 and L2. On an H100 at 3.35 TB/s: 4096 x 768 fp16 3.8 us, with the residual 7.5 us; 8192 x 4096 bf16 with the
// residual 80 us. The smallest kernels are bound by launch and latency: 128 x 768 fp16 moves 0.4 MB, 0.1 us.
//
// In place. An element is read and written by one thread, the read first (in norm_long_kernel: the last of its reads),
// so outputs may lie on inputs exactly: no copy in the read-only cache is read after the write that makes it stale.
#pragma once

#include "base/ptx/grid.cuh"
#include "base/reduce.cuh"
#include "kernels/norm/norm_part.cuh"
#include "strop/launch.h"

namespace strop::norm {

// A row held in registers by a warp or, where the tuning has more threads for it, the block: rows that end within a
// vector, single elements, weights of another dtype. The usual rows have norm_vectors_kernel.
template <class Slot, int kFloats>
__global__ void __launch_bounds__(kMaxThreads, kFloats <= 16 ? 2 : 1) norm_kernel(const __grid_constant__ Args a) {
  ptx::wait_for_previous_kernel();
  ptx::let_next_kernel_begin();
  Shared& shared = dynamic_shared<Shared>();
  const bool by_warp = a.tuning.threads == 32;
  const int rows_a_block = static_cast<int>(blockDim.x) / a.tuning.threads;
  const int rank = static_cast<int>(threadIdx.x) % a.tuning.threads;
  const std::int64_t step = std::int64_t{gridDim.x} * rows_a_block;
  std::int64_t row = std::int64_t{blockIdx.x} * rows_a_block + threadIdx.x / a.tuning.threads;
  for (; row < a.p.rows; row += step) {  // the same rows for all threads that meet: of a warp, or of the block
    Part<Slot, kFloats> part{a, row, 0, rank, {}};
    part.load();
    if (a.p.residual_out.data != nullptr) part.store(a.p.residual_out);
    float mean = 0, first = 0, second = 0, offset, scale;
    if (a.p.kind == Kind::kLayer) {
      const float sum = part.sum();
      mean = (by_warp ? warp_sum(sum) : block_sum(sum, shared.first)) * a.inverse_n;
    }
    part.shift(mean, first, second);
    if (by_warp) {
      first = warp_sum(first), second = warp_sum(second);
    } else {
      block_sum(first, second, shared.first, shared.second);
    }
    statistics(a.p.kind, a.inverse_n, a.p.eps, first, second, offset, scale);
    part.normalize(offset, scale);
    part.store(a.p.out);
  }
}

// A row of any length, by a block.
template <class Slot>
__global__ void __launch_bounds__(kLongThreads) norm_long_kernel(const __grid_constant__ Args a) {
  ptx::wait_for_previous_kernel();
  ptx::let_next_kernel_begin();
  Shared& shared = dynamic_shared<Shared>();
  constexpr int kFloats = Slot::kE == 1 ? kMaxStridedFloats / 2 : kMaxFloats / 2;
  const int n = static_cast<int>(a.p.n), held = kFloats * a.tuning.threads;
  for (std::int64_t row = blockIdx.x; row < a.p.rows; row += gridDim.x) {
    Part<Slot, kFloats> part{a, row, 0, static_cast<int>(threadIdx.x), {}};
    float mean = 0, first = 0, second = 0, offset, scale;
    if (a.p.kind == Kind::kLayer) {
      float sum = 0;
      for (part.base = 0; part.base < n; part.base += held) {
        part.load();
        sum += part.sum();
      }
      mean = block_sum(sum, shared.first) * a.inverse_n;
    }
    for (part.base = 0; part.base < n; part.base += held) {
      part.load();
      float t = 0, squares = 0;  // of a part first: fewer roundings than one long chain
      part.shift(mean, t, squares);
      first += t, second += squares;
    }
    block_sum(first, second, shared.first, shared.second);
    statistics(a.p.kind, a.inverse_n, a.p.eps, first, second, offset, scale);
    for (part.base = 0; part.base < n; part.base += held) {
      part.load();
      if (a.p.residual_out.data != nullptr) part.store(a.p.residual_out);
      part.shift(mean, first, second);
      part.normalize(offset, scale);
      part.store(a.p.out);
    }
  }
}

}  // namespace strop::norm

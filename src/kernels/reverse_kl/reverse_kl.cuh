// Reverse KL and its gradient in one launch, each logit read once.
//
// Purpose   reverse_kl.h has the maths, reverse_kl_online.cuh the recurrence.
// Design    A row belongs to `parts` blocks. Each streams its part through registers into its State and, for the
//           gradient, keeps the raw logits in shared memory; the parts' States meet through distributed shared memory
//           (a cluster, sm_90) or through the workspace and a grid barrier (sm_80); then the gradient is computed from
//           shared memory. Three small blocks share a multiprocessor, so that one loads while others wait or write.
//           Every thread reads back only what it stored itself: no barrier for the row.
// Bytes     2 reads and 1 write an element: at (8, 1024, 248320) bf16 12.2 GB fused.
// Floor     bytes over the copy rate: 4.04 ms there on an H100. Instructions come close to it: about 26 an element.
#pragma once

#include "base/ptx/grid.cuh"
#include "kernels/reverse_kl/reverse_kl_online.cuh"
#include "kernels/reverse_kl/reverse_kl_rows.cuh"
#include "strop/launch.h"

namespace strop::reverse_kl {

struct Shared {
  State slots[2][kMaxParts];  // of the row's parts, by the row's parity
  State warps[2][kMaxWarps];
  unsigned long long counts[32];
  float losses[32];
};

// In the workspace.
struct Exchange {
  State slots[2][kMaxBlocks];  // as Shared's, of all blocks
  float losses[kMaxGroups];    // of each group of parts
};
static_assert(sizeof(Exchange) <= 64 * 1024, "the workspace is too small");

// Valid tokens of the whole mask. Every block reads all of it, which is cheaper than a barrier.
__device__ __forceinline__ unsigned long long count_valid(const Args& a, Shared& shared) {
  constexpr int kN = 8;
  unsigned long long n = 0;
  for (std::int64_t i = 0; i < a.p.outer; ++i) {
    for (std::int64_t j = threadIdx.x; j < a.p.inner; j += static_cast<std::int64_t>(blockDim.x) * kN) {
      unsigned inside = 0;
#pragma unroll
      for (int k = 0; k < kN; ++k) inside |= static_cast<unsigned>(j + k * blockDim.x < a.p.inner) << k;
      const char* p = static_cast<const char*>(a.p.mask.data) +
                      (i * a.p.mask.stride_outer + j * a.p.mask.stride_inner) * a.mask.bytes;
      n += __popc(load_strided_mask<kN>(p, a.p.mask.stride_inner * blockDim.x * a.mask.bytes, a.mask, inside));
    }
  }
  return block_sum(n, shared.counts);
}

// The State of the whole row in every thread, from each thread's own.
__device__ __forceinline__ State exchange(const Args& a, Shared& shared, State s, int rank, int parity) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32, parts = a.tuning.parts;
  s = warp_merge(s);
  if (lane == 0) shared.warps[parity][warp] = s;
  __syncthreads();  // read after write: every warp's State. The other parity keeps the next row's apart.
  const bool shares = parts > 1;
  if (!shares || warp == 0)
    s = warp_merge<kMaxWarps>(lane % kMaxWarps < warps ? shared.warps[parity][lane % kMaxWarps] : State{});
  if (!shares) return s;
  State* slots = a.tuning.clusters ? shared.slots[parity]
                                   : static_cast<Exchange*>(a.p.workspace)->slots[parity] + (blockIdx.x - rank);
  // Read after write: the parts' slots. Write after read: a slot of this parity is written again for the row after
  // next, that is, after every reader has arrived at the next row's barrier.
  if (a.tuning.clusters) {
    if (warp == 0 && lane < parts) store_cluster(&slots[rank], lane, s);
    ptx::cluster_arrive();
    ptx::cluster_wait();
    s = lane % kMaxParts < parts ? slots[lane % kMaxParts] : State{};
  } else {
    if (threadIdx.x == 0) slots[rank] = s;
    ptx::grid_barrier();
    s = lane % kMaxParts < parts ? load_l2(&slots[lane % kMaxParts]) : State{};
  }
  return warp_merge<kMaxParts>(s);
}

// Logits of the two tensors in vectors X and Y of as many elements.
template <class X, class Y, bool kFused>
__global__ void __launch_bounds__(max_threads(X::kSize, Y::kSize), blocks_wanted(X::kSize, Y::kSize))
    reverse_kl_kernel(const __grid_constant__ Args a) {
  constexpr int kE = X::kE, kU = kVectorsInFlight;
  static_assert(X::kE == Y::kE);
  Shared& shared = dynamic_shared<Shared>();
  const DType x_dtype = a.p.student.dtype, y_dtype = a.p.teacher.dtype;
  const int parts = a.tuning.parts, rank = blockIdx.x % parts, group = blockIdx.x / parts, groups = gridDim.x / parts;
  const std::int64_t rows = a.p.outer * a.p.inner;
  // The wider vectors first, so that both arrays are aligned.
  const int held = a.tuning.held_vectors;
  constexpr bool kXFirst = sizeof(X) >= sizeof(Y);
  char* const first = reinterpret_cast<char*>(&shared + 1);
  char* const second = first + held * (kXFirst ? sizeof(X) : sizeof(Y));
  X* const held_x = reinterpret_cast<X*>(kXFirst ? first : second);
  Y* const held_y = reinterpret_cast<Y*>(kXFirst ? second : first);

  const unsigned long long n = count_valid(a, shared);
  const float weight = 1.f / static_cast<float>(n > 0 ? n : 1);
  if (a.tuning.clusters) {  // a block's shared memory may be written from outside only once it runs
    ptx::cluster_arrive();
    ptx::cluster_wait();
  }
  float loss = 0;
  int parity = 0;
  bool next_valid = group < rows && mask_is_valid(mask_at(a, group), a.mask);
  for (std::int64_t first_row = 0; first_row < rows; first_row += groups) {
    const std::int64_t row = first_row + group, next_row = row + groups;
    const bool exists = row < rows, valid = next_valid;
    next_valid = next_row < rows && mask_is_valid(mask_at(a, next_row), a.mask);
    const Row x_row = row_at<X>(a, a.p.student, row), y_row = row_at<Y>(a, a.p.teacher, row);
    const Span span(a, x_row, rank, kE);
    State s;
    for (int v0 = span.begin + threadIdx.x; valid && v0 < span.end; v0 += kU * blockDim.x) {
      X x[kU];
      Y y[kU];
#pragma unroll
      for (int u = 0; u < kU; ++u) {
        const int v = v0 + u * blockDim.x;
        x[u].fill_negative_infinity(x_dtype), y[u].fill_negative_infinity(y_dtype);
        if (v < span.end) x[u].load(x_row, v), y[u].load(y_row, v);
      }
      float xmax = -INFINITY, ymax = -INFINITY;
#pragma unroll
      for (int u = 0; u < kU; ++u) {
        const int i = v0 + u * blockDim.x - span.begin;
        if (kFused && i < held) held_x[i] = x[u], held_y[i] = y[u];
        xmax = fmaxf(xmax, x[u].max(x_dtype)), ymax = fmaxf(ymax, y[u].max(y_dtype));
      }
      raise(s, xmax, ymax);
      const float shift_x = shift_of(s.xmax), shift_y = shift_of(s.ymax);
#pragma unroll
      for (int u = 0; u < kU; ++u) {
        float xf[kE], yf[kE];
        x[u].to_floats(xf, x_dtype), y[u].to_floats(yf, y_dtype);
        add(s, xf, yf, shift_x, shift_y);
      }
    }
    for (std::int64_t i = threadIdx.x; valid && i < span.singles(); i += blockDim.x) {
      const float x[1] = {X::load_element(x_row, span.single(i), x_dtype)};
      const float y[1] = {Y::load_element(y_row, span.single(i), y_dtype)};
      raise(s, x[0], y[0]);
      add(s, x, y, shift_of(s.xmax), shift_of(s.ymax));
    }
    // The next row comes into L2 while this one's parts meet, and its gradient is written.
    if (next_valid && threadIdx.x == 0) {
      const Row next = row_at<X>(a, a.p.student, next_row);
      prefetch<X>(next, Span(a, next, rank, kE));
      prefetch<Y>(row_at<Y>(a, a.p.teacher, next_row), Span(a, next, rank, kE));
    }
    // Blocks that meet at grid barriers all come, whatever their row; a cluster's blocks have the same row.
    if (valid || (parts > 1 && !a.tuning.clusters)) s = exchange(a, shared, s, rank, parity), parity ^= 1;
    if (valid) loss += divergence(s);
    if (!kFused || !exists) continue;

    const Row grad_row = row_at<X>(a, a.p.grad, row);
    const Gradient gradient(s, weight);
#pragma unroll 2
    for (int v = span.begin + threadIdx.x; v < span.end; v += blockDim.x) {
      float g[kE] = {};
      if (valid) {
        X x;
        Y y;
        if (v - span.begin < held) {
          x = held_x[v - span.begin], y = held_y[v - span.begin];
        } else {
          x.load(x_row, v), y.load(y_row, v);
        }
        float xf[kE], yf[kE];
        x.to_floats(xf, x_dtype), y.to_floats(yf, y_dtype);
#pragma unroll
        for (int e = 0; e < kE; ++e) g[e] = gradient(xf[e], yf[e]);
      }
      X out;
      out.from_floats(g, x_dtype);
      out.store(grad_row, v);
    }
    for (std::int64_t i = threadIdx.x; i < span.singles(); i += blockDim.x) {
      const std::int64_t e = span.single(i);
      const float g = valid ? gradient(X::load_element(x_row, e, x_dtype), Y::load_element(y_row, e, y_dtype)) : 0.f;
      X::store_element(grad_row, e, g, x_dtype);
    }
  }

  float* losses = static_cast<Exchange*>(a.p.workspace)->losses;
  if (rank == 0 && threadIdx.x == 0) losses[group] = loss;
  ptx::GridArrival arrival = ptx::grid_arrive();  // read after write: block 0 reads every group's loss
  if (blockIdx.x != 0) return;
  ptx::grid_wait(static_cast<ptx::GridArrival&&>(arrival));
  float sum = 0;
  for (int i = threadIdx.x; i < groups; i += blockDim.x) sum += __ldcg(&losses[i]);
  sum = block_sum(sum, shared.losses);
  if (threadIdx.x == 0) *a.p.loss = sum * weight;
}

}  // namespace strop::reverse_kl

// GRPO and BNPO losses, and their gradient, in one launch.
//
// Purpose   policy_loss.h has the maths. A *segment* is what a mean is taken over: a row (GRPO) or all tokens (BNPO).
// Design    A tile is up to 8 tokens a thread of one row, all loads in flight before the first use. A group of threads
//           (a block; a few lanes for short rows) walks its tiles. The gradient needs the segment's count of valid
//           tokens before it can be written: the last tile's gradients wait in registers, of earlier tiles only the
//           mask is read first. Where several blocks share a segment (`splits` > 1) the count crosses a grid barrier.
// Bytes     policy_loss.h: 17 a token, fp32. At the published shapes every group has one tile: each byte moves once.
// Floor     bytes over the copy rate, plus one trip to memory and one grid barrier (1.6 us on an H100): at (16, 1024)
//           the latter are all there is.
#pragma once

#include "base/launch.h"
#include "base/ptx/grid.cuh"
#include "base/reduce.cuh"
#include "kernels/policy_loss/policy_loss_tile.cuh"

namespace strop::policy_loss {

struct Partial {  // of one block, in the workspace
  float loss;
  std::uint32_t pad;
  unsigned long long count;
};
static_assert(2 * kMaxBlocks * sizeof(Partial) <= 64 * 1024, "the workspace is too small");

struct Shared {
  float f[32];
  unsigned long long u[32];
};

// The tiles of one group: first, first + step, … below end. Tile i is chunk i of `row`, or, where row is negative,
// chunk i % chunks of row i / chunks.
struct Walk {
  std::int64_t row, first, step, end;

  __device__ __forceinline__ Tile tile(const Args& a, std::int64_t i, int rank) const {
    return row >= 0 ? Tile(a, row, i, rank) : Tile(a, i / a.tuning.chunks, i % a.tuning.chunks, rank);
  }
  __device__ __forceinline__ std::int64_t last() const { return first + (end - 1 - first) / step * step; }
};

// d (mean) / d (sum) of a segment.
__device__ __forceinline__ float weight_of(const Args& a, unsigned long long count) {
  return a.segment_scale / static_cast<float>(count > 0 ? count : 1);
}

// Sums `n` partials; every lane gets both sums.
__device__ __forceinline__ void warp_sum_partials(const Partial* partials, int n, float& loss,
                                                  unsigned long long& count) {
  loss = 0, count = 0;
  for (int i = threadIdx.x % 32; i < n; i += 32) loss += __ldcg(&partials[i].loss), count += __ldcg(&partials[i].count);
  loss = warp_sum(loss), count = warp_sum(count);
}

// One block sums what all left, a warp a segment of `splits` partials, and writes the loss.
__device__ __forceinline__ void finish(const Args& a, Shared& shared, const Partial* partials, int segments, int splits,
                                       bool weighted) {
  float sum = 0;
  for (int i = threadIdx.x / 32; i < segments; i += blockDim.x / 32) {
    float loss;
    unsigned long long count;
    warp_sum_partials(partials + i * splits, splits, loss, count);
    sum += weighted ? loss : loss * weight_of(a, count);
  }
  sum = block_sum(threadIdx.x % 32 == 0 ? sum : 0.f, shared.f);
  if (threadIdx.x == 0) *a.p.loss = sum;
}

// Publishes this block's weighted loss; block 0 waits for the others' and finishes.
__device__ __forceinline__ void finish_weighted(const Args& a, Shared& shared, Partial* partials, float loss) {
  loss = block_sum(loss, shared.f);
  if (threadIdx.x == 0) partials[blockIdx.x] = {loss, 0, 0};
  ptx::GridArrival arrival = ptx::grid_arrive();  // read after write: block 0 reads every block's partial
  if (blockIdx.x != 0) return;
  ptx::grid_wait(static_cast<ptx::GridArrival&&>(arrival));
  finish(a, shared, partials, 1, gridDim.x, true);
}

template <bool kFused>
__global__ void __launch_bounds__(1024, 1) policy_loss_kernel(const __grid_constant__ Args a) {
  Shared& shared = dynamic_shared<Shared>();
  Partial* partials = static_cast<Partial*>(a.p.workspace);
  const int group = a.tuning.group, groups = blockDim.x / group;
  const int rank = threadIdx.x & (group - 1), my_group = threadIdx.x / group;

  if (a.p.reduction == Reduction::kSequenceMean && a.tuning.splits == 1) {  // a group has whole rows
    float loss = 0;
    // Bounds are the warp's, not the lane's: all lanes take part in the group sums.
    for (std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * groups; row < a.p.batch;
         row += gridDim.x * groups) {
      const Walk walk{row + my_group, 0, 1, row + my_group < a.p.batch ? a.tuning.chunks : 0};
      Tokens held, rest;
      const std::int64_t last = walk.last();
      for (std::int64_t i = 0; i < last; ++i) {
        if (kFused) held.count += __popc(walk.tile(a, i, rank).valid(a));
        if (!kFused) walk.tile(a, i, rank).compute(a, held);
      }
      if (last >= 0) walk.tile(a, last, rank).compute(a, held);
      const unsigned long long n = held.count;
      const float weight = weight_of(a, group <= 32 ? group_sum(n, group) : block_sum(n, shared.u));
      if (kFused && last >= 0) walk.tile(a, last, rank).store(a, held, weight);
      for (std::int64_t i = 0; kFused && i < last; ++i) {
        const Tile tile = walk.tile(a, i, rank);
        tile.compute(a, rest);
        tile.store(a, rest, weight);
      }
      loss += (held.loss + rest.loss) * weight;
    }
    return finish_weighted(a, shared, partials, loss);
  }

  // Blocks share a segment: all of them the batch (BNPO), or `splits` a row (GRPO).
  const bool whole = a.p.reduction == Reduction::kTokenMean;
  const int splits = a.tuning.splits, segment = blockIdx.x / splits;
  const Walk walk = whole ? Walk{-1, static_cast<std::int64_t>(blockIdx.x) * groups + my_group,
                                 static_cast<std::int64_t>(gridDim.x) * groups, a.p.batch * a.tuning.chunks}
                          : Walk{segment, static_cast<std::int64_t>(blockIdx.x) % splits, splits, a.tuning.chunks};
  const std::int64_t last = walk.first < walk.end ? walk.last() : -1;
  Tokens held, rest;
  for (std::int64_t i = walk.first; i < last; i += walk.step) {
    if (kFused) held.count += __popc(walk.tile(a, i, rank).valid(a));
    if (!kFused) walk.tile(a, i, rank).compute(a, held);
  }
  if (last >= 0) walk.tile(a, last, rank).compute(a, held);

  const float block_loss = block_sum(held.loss, shared.f);
  unsigned long long count = block_sum(static_cast<unsigned long long>(held.count), shared.u);
  if (threadIdx.x == 0) partials[blockIdx.x] = {block_loss, 0, count};
  ptx::GridArrival arrival = ptx::grid_arrive();  // read after write: the segment's blocks, or block 0, read it
  if (!kFused && blockIdx.x != 0) return;
  ptx::grid_wait(static_cast<ptx::GridArrival&&>(arrival));
  if (kFused) {
    float unused;
    warp_sum_partials(partials + segment * splits, splits, unused, count);
    const float weight = weight_of(a, count);
    if (last >= 0) walk.tile(a, last, rank).store(a, held, weight);
    for (std::int64_t i = walk.first; i < last; i += walk.step) {
      const Tile tile = walk.tile(a, i, rank);
      tile.compute(a, rest);
      tile.store(a, rest, weight);
    }
    // Losses of the later tiles have reached nobody yet. The second half of the workspace: others may still be reading
    // the first.
    if (a.tuning.several_tiles)
      return finish_weighted(a, shared, partials + kMaxBlocks, (held.loss + rest.loss) * weight);
  }
  if (blockIdx.x == 0) finish(a, shared, partials, gridDim.x / splits, splits, false);
}

}  // namespace strop::policy_loss

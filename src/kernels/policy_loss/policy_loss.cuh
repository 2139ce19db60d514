// GRPO and BNPO losses, and their gradient, in one launch.
//
// Purpose   policy_loss.h has the maths. A *segment* is what a mean is taken over: a row (GRPO) or all tokens (BNPO).
// Design    A tile is up to 8 tokens a thread of one row, all loads in flight before the first use. A group of threads
//           (a block; a few lanes for short rows) walks its tiles. A gradient can be written only when the segment's
//           valid tokens are counted: the first tile's data is on its way into registers meanwhile, of further tiles
//           only the mask is read before. Where blocks share a segment the counts cross a grid barrier.
// Bytes     policy_loss.h: 17 a token, fp32. At the published shapes every group has one tile: each byte moves once.
// Floor     bytes over the copy rate, plus one trip to memory and one grid barrier (1.6 us on an H100): at (16, 1024)
//           the latter are all there is.
#pragma once

#include "base/ptx/grid.cuh"
#include "base/reduce.cuh"
#include "kernels/policy_loss/policy_loss_tile.cuh"
#include "strop/launch.h"

namespace strop::policy_loss {

struct Partial {  // of one block, in the workspace
  float loss;
  std::uint32_t pad;
  unsigned long long count;
};
static_assert(2 * kMaxBlocks * sizeof(Partial) <= 64 * 1024, "the workspace is too small");

struct Shared {
  float losses[32];
  std::uint32_t counts[32];
  unsigned long long totals[32];
};

// The tiles of one group: first, first + step, … below end. Tile i is chunk i of `row`, or, where row is negative,
// chunk i % chunks of row i / chunks.
template <class Tile>
struct Walk {
  std::int64_t row, first, step, end;

  __device__ __forceinline__ Tile tile(const Args& a, std::int64_t i, int rank) const {
    return row >= 0 ? Tile(a, row, i, rank) : Tile(a, i / a.tuning.chunks, i % a.tuning.chunks, rank);
  }
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
  if (segments > 1) sum = block_sum(threadIdx.x % 32 == 0 ? sum : 0.f, shared.losses);
  if (threadIdx.x == 0) *a.p.loss = sum;
}

template <bool kFused, class Tile>
__global__ void __launch_bounds__(1024, 1) policy_loss_kernel(const __grid_constant__ Args a) {
  Shared& shared = dynamic_shared<Shared>();
  Partial* partials = static_cast<Partial*>(a.p.workspace);
  const Tuning& t = a.tuning;
  const int group = t.group, groups = blockDim.x / group;
  const int rank = threadIdx.x & (group - 1), my_group = threadIdx.x / group;
  const bool whole = a.p.reduction == Reduction::kTokenMean;  // one segment, all blocks'
  const bool own_rows = !whole && t.splits == 1;              // a segment a group; else blocks share segments
  const int splits = t.splits, segment = blockIdx.x / splits;

  float loss = 0;  // of this thread's tokens, weighted
  const std::int64_t rows = own_rows ? a.p.batch : 1;
  const std::int64_t row_step = own_rows ? static_cast<std::int64_t>(gridDim.x) * groups : 1;
  // Bounds are the block's, not the group's: all lanes take part in the sums.
  for (std::int64_t row = own_rows ? static_cast<std::int64_t>(blockIdx.x) * groups : 0; row < rows; row += row_step) {
    const Walk<Tile> walk = own_rows ? Walk<Tile>{row + my_group, 0, 1, row + my_group < rows ? t.chunks : 0}
                            : whole
                                ? Walk<Tile>{-1, static_cast<std::int64_t>(blockIdx.x) * groups + my_group,
                                             static_cast<std::int64_t>(gridDim.x) * groups, a.p.batch * t.chunks}
                                : Walk<Tile>{segment, static_cast<std::int64_t>(blockIdx.x) % splits, splits, t.chunks};
    typename Tile::Raw raw;
    typename Tile::Mask mask;
    unsigned valid = 0;  // of the first tile
    const bool any = walk.first < walk.end;
    if (any) {
      const Tile tile = walk.tile(a, walk.first, rank);
      tile.load(a, mask);
      if (own_rows || !kFused) tile.load(a, raw);
      valid = tile.valid(a, mask);
    }
    std::uint32_t n = __popc(valid);
    float weight = 1;
    if (kFused) {  // the count first, so that gradients are stored as soon as they are computed
      for (std::int64_t i = walk.first + walk.step; i < walk.end; i += walk.step) {
        const Tile tile = walk.tile(a, i, rank);
        tile.load(a, mask);
        n += __popc(tile.valid(a, mask));
      }
      unsigned long long count;
      if (own_rows && group <= 32) {
        count = group_sum(n, group);
      } else {
        count = block_sum(n, shared.counts);
      }
      if (!own_rows) {
        if (threadIdx.x == 0) partials[blockIdx.x] = {0, 0, count};
        // Read after write: the blocks of a segment read each other's counts. The data comes while they meet; asked for
        // before, it would hold the arrival up, which waits for thread 0's loads.
        ptx::GridArrival arrival = ptx::grid_arrive();
        if (any) walk.tile(a, walk.first, rank).load(a, raw);
        ptx::grid_wait(static_cast<ptx::GridArrival&&>(arrival));
        // Each count once a block: if every warp read them all, the chip would queue at their few lines of L2.
        count = 0;
        for (int i = threadIdx.x; i < splits; i += blockDim.x) count += __ldcg(&partials[segment * splits + i].count);
        count = block_sum(count, shared.totals);
      }
      weight = weight_of(a, count);
    }
    float sum = any ? walk.tile(a, walk.first, rank).template compute<kFused>(a, raw, valid, weight) : 0.f;
    for (std::int64_t i = walk.first + walk.step; i < walk.end; i += walk.step) {
      const Tile tile = walk.tile(a, i, rank);
      tile.load(a, mask);
      tile.load(a, raw);
      valid = tile.valid(a, mask);
      if (!kFused) n += __popc(valid);
      sum += tile.template compute<kFused>(a, raw, valid, weight);
    }
    if (kFused) {
      loss += sum * weight;
    } else if (own_rows && group <= 32) {
      loss += sum * weight_of(a, group_sum(n, group));
    } else {
      sum = block_sum(sum, shared.losses), n = block_sum(n, shared.counts);
      if (threadIdx.x == 0) {
        if (own_rows) loss += sum * weight_of(a, n);
        if (!own_rows) partials[blockIdx.x] = {sum, 0, n};
      }
    }
  }

  const bool weighted = kFused || own_rows;
  if (weighted) {
    // The second half of the workspace: others may still be reading the first.
    partials += kMaxBlocks;
    loss = block_sum(loss, shared.losses);
    if (threadIdx.x == 0) partials[blockIdx.x] = {loss, 0, 0};
  }
  ptx::GridArrival arrival = ptx::grid_arrive();  // read after write: block 0 reads every block's partial
  if (blockIdx.x != 0) return;
  ptx::grid_wait(static_cast<ptx::GridArrival&&>(arrival));
  finish(a, shared, partials, weighted ? 1 : gridDim.x / splits, weighted ? gridDim.x : splits, weighted);
}

}  // namespace strop::policy_loss

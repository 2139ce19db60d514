// GRPO and BNPO losses, and their gradient, in one launch.
//
// Purpose   policy_loss.h has the maths. A *segment* is what a mean is taken over: a row (GRPO) or all tokens (BNPO).
// Design    The general kernel; the usual shapes take policy_loss_row.cuh's. A tile is 8 tokens a thread of one row,
// all loads in flight before the first use. A group of threads
//           (a block; a few lanes for short rows) walks its tiles. A gradient can be written only when the segment's
//           valid tokens are counted: the first tile's data is on its way into registers meanwhile, of further tiles
//           only the mask is read before. Blocks tell each other counts and losses by messages (message.cuh): each
//           block its loss to the last one, which adds them up; and, where blocks share a segment, its count to all of
//           them.
// Bytes     policy_loss.h: 17 a token, fp32. At the published shapes every group has one tile: each byte moves once.
// Floor     bytes over the copy rate, plus a launch, one trip to memory and one message: at (16, 1024) the latter are
//           all there is (lab/003-launch-floor).
#pragma once

#include "base/ptx/grid.cuh"
#include "kernels/policy_loss/policy_loss_exchange.cuh"
#include "strop/launch.h"

namespace strop::policy_loss {

// The tiles of one group: first, first + step, … below end. Tile i is chunk i of `row`, or, where row is negative,
// chunk i % chunks of row i / chunks.
template <class Tile>
struct Walk {
  std::int64_t row, first, step, end;

  __device__ __forceinline__ Tile tile(const Args& a, std::int64_t i, int rank) const {
    return row >= 0 ? Tile(a, row, i, rank) : Tile(a, i / a.tuning.chunks, i % a.tuning.chunks, rank);
  }
};

template <bool kFused, class Tile>
__global__ void __launch_bounds__(1024, 1) policy_loss_kernel(const __grid_constant__ Args a) {
  ptx::wait_for_previous_kernel();
  Shared& shared = dynamic_shared<Shared>();
  Exchange& exchange = *static_cast<Exchange*>(a.p.workspace);
  const Tuning& t = a.tuning;
  const bool lanes = t.group <= 32;  // a group is a part of a warp, not the block
  const int groups = lanes ? blockDim.x / t.group : 1, my_group = lanes ? threadIdx.x / t.group : 0;
  const int rank = lanes ? threadIdx.x & (t.group - 1) : threadIdx.x;
  const bool whole = a.p.reduction == Reduction::kTokenMean;  // one segment, all blocks'
  const bool own_rows = !whole && t.splits == 1;              // a segment a group; else blocks share segments
  const int splits = t.splits, segment = blockIdx.x / splits;

  float loss = 0;             // of this thread's tokens, weighted; or the block's, not weighted, with
  std::uint32_t counted = 0;  // its valid tokens
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
      tile.load(a, raw);
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
      unsigned long long count = own_rows && lanes ? group_sum(n, t.group) : block_sum(n, shared.counts);
      if (!own_rows) count = count_of_segment(a, shared, exchange, segment * splits, count);
      weight = weight_of(a, count);
    }
    float sum = any ? compute<kFused>(a, walk.tile(a, walk.first, rank), raw, valid, weight) : 0.f;
    for (std::int64_t i = walk.first + walk.step; i < walk.end; i += walk.step) {
      const Tile tile = walk.tile(a, i, rank);
      tile.load(a, mask);
      tile.load(a, raw);
      valid = tile.valid(a, mask);
      if (!kFused) n += __popc(valid);
      sum += compute<kFused>(a, tile, raw, valid, weight);
    }
    if (kFused) {
      loss += sum * weight;
    } else if (own_rows && lanes) {
      loss += sum * weight_of(a, group_sum(n, t.group));
    } else {
      block_sum(sum, n, shared.losses, shared.counts);
      if (!own_rows) loss = sum, counted = n;
      if (own_rows && threadIdx.x == 0) loss += sum * weight_of(a, n);
    }
  }

  const bool weighted = kFused || own_rows;
  if (weighted) loss = block_sum(loss, shared.losses);
  finish(a, shared, exchange, loss, counted, weighted, kFused && !own_rows);
}

}  // namespace strop::policy_loss

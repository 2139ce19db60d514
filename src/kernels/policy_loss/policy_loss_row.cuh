// Policy losses where a block holds a row in one tile and each row has a block: the usual shapes.
//
// What policy_loss.cuh says, without its loops: a third of the instructions. They matter, since a call at (16, 1024) is
// over in 2 us, and they, too, come from memory when a kernel has not run for a while.
#pragma once

#include "base/ptx/grid.cuh"
#include "kernels/policy_loss/policy_loss_dense.cuh"
#include "kernels/policy_loss/policy_loss_exchange.cuh"
#include "strop/launch.h"

namespace strop::policy_loss {

template <bool kFused, class Tile>
__global__ void __launch_bounds__(1024, 1) policy_loss_row_kernel(const __grid_constant__ Args a) {
  ptx::wait_for_previous_kernel();
  Shared& shared = dynamic_shared<Shared>();
  Exchange& exchange = *static_cast<Exchange*>(a.p.workspace);
  const bool whole = a.p.reduction == Reduction::kTokenMean;  // the mean is over all rows

  const Tile tile(a, blockIdx.x, 0, threadIdx.x);
  typename Tile::Mask mask;
  typename Tile::Raw raw;
  tile.load(a, mask);
  tile.load(a, raw);
  const unsigned valid = tile.valid(a, mask);
  std::uint32_t n = __popc(valid);
  float weight = 1, loss;
  if (kFused) {  // the count first, so that gradients are stored as soon as they are computed
    unsigned long long count = block_sum(n, shared.counts);
    if (whole) count = count_of_segment(a, shared, exchange, 0, count);
    weight = weight_of(a, count);
    loss = block_sum(compute<true>(a, tile, raw, valid, weight), shared.losses) * weight;
  } else {
    loss = compute<false>(a, tile, raw, valid, weight);
    block_sum(loss, n, shared.losses, shared.counts);
    if (!whole) loss *= weight_of(a, n);
  }
  finish(a, shared, exchange, loss, n, kFused || !whole, kFused && whole);
}

}  // namespace strop::policy_loss

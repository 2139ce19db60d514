// The barrier over a whole cooperative launch. The driver owns its counters, one set a launch, so concurrent streams,
// threads and replayed graphs cannot meet in them (lab/000-grid-barrier prices it against the alternatives).
#pragma once

#include <cooperative_groups.h>

namespace strop::ptx {

// Global writes of every block before it are seen by every block after it. All threads of all blocks.
__device__ __forceinline__ void grid_barrier() { cooperative_groups::this_grid().sync(); }

// The same in halves, for a kernel whose last act is that one block reads what the others wrote: those arrive and
// leave, the one arrives and waits.
using GridArrival = cooperative_groups::grid_group::arrival_token;
__device__ __forceinline__ GridArrival grid_arrive() { return cooperative_groups::this_grid().barrier_arrive(); }
__device__ __forceinline__ void grid_wait(GridArrival&& arrival) {
  cooperative_groups::this_grid().barrier_wait(static_cast<GridArrival&&>(arrival));
}

}  // namespace strop::ptx

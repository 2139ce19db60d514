// What a kernel may do about the whole launch and the one before it.
#pragma once

#include <cooperative_groups.h>

#include "base/ptx/emulated.cuh"

namespace strop::ptx {

// The barrier over a whole cooperative launch. The driver owns its counters, one set a launch, so concurrent streams,
// threads and replayed graphs cannot meet in them (lab/000-grid-barrier prices it against the alternatives). Global
// writes of every block before it are seen by every block after it. All threads of all blocks.
__device__ __forceinline__ void grid_barrier() { cooperative_groups::this_grid().sync(); }

// griddepcontrol.wait (sm_90): a kernel launched with LaunchConfig::overlaps begins while the one before it on the
// stream may still run; after this, that has ended and its writes are seen. Nothing elsewhere.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if !STROP_EMULATED && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// griddepcontrol.launch_dependents (sm_90), behind wait_for_previous_kernel: once all blocks have been here, those of
// the next kernel on the stream may be placed beside them, if it overlaps, and wait there: its launch takes no time of
// its own. Nothing elsewhere.
__device__ __forceinline__ void let_next_kernel_begin() {
#if !STROP_EMULATED && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace strop::ptx

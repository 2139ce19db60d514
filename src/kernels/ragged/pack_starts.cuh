// Where packed sequences begin, on CUDA; the maths is in pack_starts.h.
//
// Purpose   What fills the memory of a CUDA graph in one launch, where copies and fills would be four.
// Design    A thread a number.
// Bytes     pack_starts.h.
// Floor     A launch with one trip to memory.
#pragma once

#include "base/ptx/grid.cuh"
#include "kernels/ragged/pack_starts.h"
#include "strop/launch.h"

namespace strop::ragged {

inline constexpr int kStartsThreads = 128;

__global__ void __launch_bounds__(kStartsThreads) pack_starts_kernel(const __grid_constant__ PackStarts p) {
  ptx::wait_for_previous_kernel();
  const std::int64_t i = std::int64_t{blockIdx.x} * kStartsThreads + threadIdx.x;
  if (i <= p.most) pack_start(p, i);
}

}  // namespace strop::ragged

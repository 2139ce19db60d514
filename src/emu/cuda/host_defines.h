// CUDA's keywords, as a C++ compiler understands them.
#pragma once

// Before __noinline__ becomes a macro: libstdc++ writes __attribute__((__noinline__)) in it.
#include <memory>

// To a compiler, functions and variables of host and device are the same.
#define __host__
#define __device__
#define __global__
#define __constant__
#define __managed__
// One address for all blocks: the emulator swaps the contents. Each on pages of its own, for something that is nobody's
// to lie between them.
#define __shared__ static __attribute__((aligned(4096)))

#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))

// For a GPU's compiler alone.
#define __grid_constant__
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __block_size__(...)
#define __maxnreg__(...)

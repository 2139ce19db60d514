// Planted: launches that are refused, and waits for what never comes.
#include "emu/planted/planted.h"

namespace strop::planted {
namespace {

constexpr unsigned kThreads = 64;

__global__ void fill(float* out) { out[blockIdx.x * blockDim.x + threadIdx.x] = 1; }
__global__ void fill_shared(float* out) {
  float* s = &dynamic_shared<float>();
  s[threadIdx.x] = 1;
  out[blockIdx.x * blockDim.x + threadIdx.x] = s[threadIdx.x];
}
float one(int) { return 1; }

// ---- Refused --------------------------------------------------------------------------------------------------------

PLANT(block_too_large, kLaunch, kMemcheck, "Rounding up to whole warps goes past 1024 threads.") {
  Buffer<float> out(1056);
  const unsigned block = kBroken ? 1056 : 1024;
  if (!kBroken) out.fill(0);
  const Status s = launch("planted", fill, {.block = block}, out);  // planted: block_too_large
  return s.ok() && out.holds([](int i) { return i < 1024; });
}

PLANT(empty_grid, kLaunch, kMemcheck,
      "No rows, so a grid of 0 blocks, which CUDA refuses: n = 0 needs a case of its own.") {
  Buffer<float> out(kThreads);
  const unsigned rows = kBroken ? 0 : 1;
  const Status s = launch("planted", fill, {.grid = rows, .block = kThreads}, out);  // planted: empty_grid
  return s.ok() && out.holds(one);
}

PLANT(shared_not_allowed, kLaunch, kMemcheck,
      "More than 48 KiB of shared memory, for which the kernel was not allowed.") {
  Buffer<float> out(kThreads);
  constexpr int kBytes = 64 * 1024;
  if (!kBroken) (void)cudaFuncSetAttribute(fill_shared, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  const Status s = launch("planted", fill_shared, {1, kThreads, kBytes}, out);  // planted: shared_not_allowed
  (void)cudaFuncSetAttribute(fill_shared, cudaFuncAttributeMaxDynamicSharedMemorySize, 48 * 1024);
  return s.ok() && out.holds(one);
}

PLANT(shared_above_the_limit, kLaunch, kMemcheck,
      "A tile that does not fit: no block has more than 227 KiB of shared memory.") {
  Buffer<float> out(kThreads);
  const int bytes = (kBroken ? 256 : 227) * 1024;
  if (cudaFuncSetAttribute(fill_shared, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes) != cudaSuccess)
    (void)cudaGetLastError();
  const std::size_t shared = static_cast<std::size_t>(bytes);
  const Status s = launch("planted", fill_shared, {1, kThreads, shared}, out);  // planted: shared_above_the_limit
  (void)cudaFuncSetAttribute(fill_shared, cudaFuncAttributeMaxDynamicSharedMemorySize, 48 * 1024);
  return s.ok() && out.holds(one);
}

PLANT(cluster_too_large, kLaunch, kMemcheck,
      "Clusters of 16 blocks need cudaFuncAttributeNonPortableClusterSizeAllowed.") {
  Buffer<float> out(16 * kThreads);
  const unsigned cluster = kBroken ? 16 : 8;
  const Status s = launch("planted", fill, {16, kThreads, 0, nullptr, cluster}, out);  // planted: cluster_too_large
  return s.ok() && out.holds(one);
}

PLANT(grid_not_of_clusters, kLaunch, kMemcheck, "The grid is no multiple of the cluster.") {
  Buffer<float> out(8 * kThreads);
  const unsigned grid = kBroken ? 6 : 8;
  const Status s = launch("planted", fill, {grid, kThreads, 0, nullptr, 4}, out);  // planted: grid_not_of_clusters
  return s.ok() && out.holds(one);
}

PLANT(cooperative_too_large, kLaunch, kMemcheck,
      "A cooperative launch of more blocks than the device can run at once.") {
  const unsigned grid = kBroken ? 10000 : 8;
  Buffer<float> out(grid * 1024);
  const Status s = launch("planted", fill, {grid, 1024, 0, nullptr, 1, true}, out);  // planted: cooperative_too_large
  return s.ok() && out.holds(one);
}

// ---- Waits for ever -------------------------------------------------------------------------------------------------

template <bool kBroken>
__global__ void flag_that_nobody_sets(unsigned* flags, float* out) {
  volatile unsigned* const f = flags;
  if (blockIdx.x == 0) {
    f[kBroken ? 0 : 1] = 1;
  } else {
    while (f[1] == 0) {  // planted: flag_that_nobody_sets
    }
    *out = 1;
  }
}
PLANT_THAT_HANGS(flag_that_nobody_sets, kDeadlock, kNone, "Block 1 polls a flag, but block 0 sets another.") {
  Buffer<unsigned> flags(2, zero);
  Buffer<float> out(1);
  (void)launch("planted", flag_that_nobody_sets<kBroken>, {.grid = 2}, flags, out);
  return out.holds(one);
}

template <bool kBroken>
__global__ void waits_for_a_later_block(unsigned* started, float* out) {
  if (threadIdx.x == 0) {
    atomicAdd(started, 1u);
    while (atomicAdd(started, 0u) < gridDim.x) {  // planted: waits_for_a_later_block
    }
  }
  __syncthreads();  // for thread 0
  if (threadIdx.x == 0) out[blockIdx.x] = 1;
}
PLANT_THAT_HANGS(waits_for_a_later_block, kDeadlock, kNone,
                 "Blocks wait for all others, of which some cannot start before these have finished.") {
  const unsigned grid = kBroken ? 2000 : 8;
  Buffer<unsigned> started(1, zero);
  Buffer<float> out(grid);
  (void)launch("planted", waits_for_a_later_block<kBroken>, {.grid = grid, .block = 1024}, started, out);
  return out.holds(one);
}

// ---- Taken to last --------------------------------------------------------------------------------------------------

template <bool kBroken>
__global__ void shared_of_another_block(const float* in, float* out) {
  __shared__ float scale;
  if (threadIdx.x == 0 && (!kBroken || blockIdx.x == 0)) scale = in[0];
  __syncthreads();                                     // read after write: the scale
  out[blockIdx.x * blockDim.x + threadIdx.x] = scale;  // planted: shared_of_another_block
}
PLANT(shared_of_another_block, kUninitialised, kInitcheck,
      "Block 0 sets a __shared__ variable, and all take it for theirs.") {
  Buffer<float> in(1, one), out(4 * kThreads);
  (void)launch("planted", shared_of_another_block<kBroken>, {.grid = 4, .block = kThreads}, in, out);
  return out.holds(one);
}

template <bool kBroken>
__global__ void shared_of_the_launch_before(const float* in, float* out, bool first) {
  float* scale = &dynamic_shared<float>();
  if (threadIdx.x == 0 && (!kBroken || first)) *scale = in[0];
  __syncthreads();            // read after write: the scale
  out[threadIdx.x] = *scale;  // planted: shared_of_the_launch_before
}
PLANT(shared_of_the_launch_before, kUninitialised, kInitcheck,
      "The second launch relies on what the first left in shared memory.") {
  Buffer<float> in(1, one), out(kThreads);
  for (const bool first : {true, false}) {
    (void)launch("planted", shared_of_the_launch_before<kBroken>, {.block = kThreads, .shared_bytes = 4}, in, out,
                 first);
  }
  return out.holds(one);
}

}  // namespace
}  // namespace strop::planted

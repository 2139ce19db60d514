// Planted: races in the shared memory of a cluster, blocks that exit too early, and barriers of a whole grid.
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include "base/ptx/cluster.cuh"
#include "base/ptx/grid.cuh"
#include "emu/planted/planted.h"

namespace strop::planted {
namespace {

using cooperative_groups::this_cluster;

constexpr int kThreads = 64;

__device__ void cluster_barrier() { ptx::cluster_arrive(), ptx::cluster_wait(); }

// ---- Distributed shared memory --------------------------------------------------------------------------------------

template <bool kBroken>
__global__ void cluster_read_after_write(const float* in, float* out) {
  float* s = &dynamic_shared<float>();
  const unsigned t = threadIdx.x, other = this_cluster().block_rank() ^ 1;
  s[t] = 0;
  cluster_barrier();                       // the other block is there
  s[t] = in[blockIdx.x * blockDim.x + t];  // planted: cluster_read_after_write
  if (!kBroken) cluster_barrier();         // read after write: the other block's element
  out[blockIdx.x * blockDim.x + t] = this_cluster().map_shared_rank(s, other)[t];  // planted: cluster_read_after_write
  cluster_barrier();  // the other block has read this one's
}
PLANT(cluster_read_after_write, kRace, kRacecheck,
      "A block reads its neighbour's tile without a barrier of the cluster.") {
  Buffer<float> in(4 * kThreads, index), out(4 * kThreads);
  (void)launch("planted", cluster_read_after_write<kBroken>, {4, kThreads, 256, nullptr, 2}, in, out);
  return out.holds([](int i) { return i ^ kThreads; });
}

template <bool kBroken>
__global__ void cluster_write_after_read(const float* in, float* out) {
  float* s = &dynamic_shared<float>();
  const unsigned t = threadIdx.x, other = this_cluster().block_rank() ^ 1;
  s[t] = in[blockIdx.x * blockDim.x + t];
  cluster_barrier();                                            // read after write: the other block's element
  const float v = this_cluster().map_shared_rank(s, other)[t];  // planted: cluster_write_after_read
  if (!kBroken) cluster_barrier();  // write after read: the other block may still need this one's
  if (kBroken) __syncthreads();
  s[t] = v;  // planted: cluster_write_after_read
  out[blockIdx.x * blockDim.x + t] = s[t];
  cluster_barrier();  // the other block has read this one's
}
PLANT(cluster_write_after_read, kRace, kRacecheck,
      "__syncthreads in place of a barrier of the cluster: the neighbour is still reading.") {
  Buffer<float> in(4 * kThreads, index), out(4 * kThreads);
  (void)launch("planted", cluster_write_after_read<kBroken>, {4, kThreads, 256, nullptr, 2}, in, out);
  return out.holds([](int i) { return i ^ kThreads; });
}

template <bool kBroken>
__global__ void cluster_write_after_write(const float* in, float* out) {
  float* s = &dynamic_shared<float>();
  const unsigned rank = this_cluster().block_rank();
  cluster_barrier();  // block 0 is there
  float* to = &s[kBroken ? 0 : rank];
  if (threadIdx.x == 0) ptx::store_cluster_f32(to, 0, in[blockIdx.x]);  // planted: cluster_write_after_write
  cluster_barrier();                                                    // read after write: all blocks' sums
  if (rank == 0 && threadIdx.x == 0) out[blockIdx.x / 2] = s[0] + s[kBroken ? 0 : 1];
}
PLANT(cluster_write_after_write, kRace, kRacecheck, "All blocks of a cluster send their sum to the same place.") {
  Buffer<float> in(4, index), out(2);
  (void)launch("planted", cluster_write_after_write<kBroken>, {4, kThreads, 256, nullptr, 2}, in, out);
  return out.holds([](int i) { return 4 * i + 1; });
}

template <bool kBroken>
__global__ void cluster_arrival_only(const float* in, float* out) {
  __shared__ float s[kThreads];
  const unsigned t = threadIdx.x, other = this_cluster().block_rank() ^ 1;
  s[t] = 0;
  cluster_barrier();                       // the other block is there
  s[t] = in[blockIdx.x * blockDim.x + t];  // planted: cluster_arrival_only
  ptx::cluster_arrive();
  if (!kBroken) ptx::cluster_wait();  // read after write: the other block's element
  out[blockIdx.x * blockDim.x + t] = this_cluster().map_shared_rank(s, other)[t];  // planted: cluster_arrival_only
  if (kBroken) ptx::cluster_wait();
  cluster_barrier();  // the other block has read this one's
}
PLANT(cluster_arrival_only, kRace, kRacecheck, "The wait of a split barrier comes after the read that it is for.") {
  Buffer<float> in(4 * kThreads, index), out(4 * kThreads);
  (void)launch("planted", cluster_arrival_only<kBroken>, {4, kThreads, 0, nullptr, 2}, in, out);
  return out.holds([](int i) { return i ^ kThreads; });
}

template <bool kBroken>
__global__ void block_not_begun(const float* in, float* out) {
  float* s = &dynamic_shared<float>();
  const unsigned rank = this_cluster().block_rank();
  if (threadIdx.x >= 32) return;    // barriers of a cluster do not wait for threads that have exited
  if (!kBroken) cluster_barrier();  // block 0 is there
  if (threadIdx.x == 0) ptx::store_cluster_f32(&s[rank], 0, in[blockIdx.x]);  // planted: block_not_begun
  cluster_barrier();                                                          // read after write: all blocks' sums
  if (rank == 0 && threadIdx.x == 0) out[blockIdx.x / 2] = s[0] + s[1];
}
PLANT(block_not_begun, kExitedBlock, kNone,
      "Nothing says that the neighbour has begun: its shared memory may be another's yet.") {
  Buffer<float> in(4, index), out(2);
  (void)launch("planted", block_not_begun<kBroken>, {4, kThreads, 256, nullptr, 2}, in, out);
  return out.holds([](int i) { return 4 * i + 1; });
}

template <bool kBroken>
__global__ void block_exits_first(const float* in, float* out) {
  float* s = &dynamic_shared<float>();
  const unsigned t = threadIdx.x, other = this_cluster().block_rank() ^ 1;
  s[t] = in[blockIdx.x * blockDim.x + t];
  cluster_barrier();  // read after write: the other block's element
  out[blockIdx.x * blockDim.x + t] = this_cluster().map_shared_rank(s, other)[t];  // planted: block_exits_first
  if (!kBroken) cluster_barrier();  // the other block has read this one's
}
PLANT(block_exits_first, kExitedBlock, kMemcheck,
      "Nothing keeps a block from exiting while its neighbour reads its shared memory.") {
  Buffer<float> in(4 * kThreads, index), out(4 * kThreads);
  (void)launch("planted", block_exits_first<kBroken>, {4, kThreads, 256, nullptr, 2}, in, out);
  return out.holds([](int i) { return i ^ kThreads; });
}

template <bool kBroken>
__global__ void beyond_the_cluster(const float* in, float* out) {
  float* s = &dynamic_shared<float>();
  const unsigned rank = this_cluster().block_rank(), next = kBroken ? rank + 1 : (rank + 1) % 2;
  if (threadIdx.x == 0) *s = in[blockIdx.x];
  cluster_barrier();  // read after write: the next block's element
  if (threadIdx.x == 0) out[blockIdx.x] = *this_cluster().map_shared_rank(s, next);  // planted: beyond_the_cluster
  cluster_barrier();  // the other block has read this one's
}
PLANT(beyond_the_cluster, kOutOfBounds, kMemcheck, "The last block of a cluster asks for the memory of the next one.") {
  Buffer<float> in(4, index), out(4);
  (void)launch("planted", beyond_the_cluster<kBroken>, {4, kThreads, 256, nullptr, 2}, in, out);
  return out.holds([](int i) { return i ^ 1; });
}

// ---- The grid -------------------------------------------------------------------------------------------------------

// Written by hand: good for one launch, in which all blocks run at once.
__device__ void counting_barrier(unsigned* arrived) {
  __syncthreads();  // thread 0 arrives for all
  if (threadIdx.x == 0) {
    __threadfence();
    atomicAdd(arrived, 1u);
    while (atomicAdd(arrived, 0u) < gridDim.x) {
    }
    __threadfence();
  }
  __syncthreads();  // thread 0 has waited for all
}

template <bool kBroken>
__global__ void counter_not_reset(const float* in, float* partial, unsigned* arrived, float* out) {
  if (threadIdx.x == 0) partial[blockIdx.x] = in[blockIdx.x];  // planted: counter_not_reset
  counting_barrier(arrived);
  if (threadIdx.x == 0) out[blockIdx.x] = partial[(blockIdx.x + 1) % gridDim.x];  // planted: counter_not_reset
}
PLANT(counter_not_reset, kRace, kNone,
      "A grid barrier made of a counter that the launch before has left full: it holds nobody.") {
  Buffer<float> in(4, index), partial(4, zero), out(4);
  Buffer<unsigned> arrived(1, zero);
  for (int i = 0; i < 2; ++i) {
    if (!kBroken) arrived.fill(0);
    (void)launch("planted", counter_not_reset<kBroken>, {.grid = 4, .block = kThreads}, in, partial, arrived, out);
  }
  return out.holds([](int i) { return (i + 1) % 4; });
}

template <bool kBroken>
__global__ void block_returns_early(const float* in, float* partial, float* out, unsigned n) {
  if (kBroken && blockIdx.x >= n) return;
  if (threadIdx.x == 0) partial[blockIdx.x] = blockIdx.x < n ? in[blockIdx.x] : 0;
  ptx::grid_barrier();  // read after write: the next block's element.  planted: block_returns_early
  if (threadIdx.x == 0 && blockIdx.x < n) out[blockIdx.x] = partial[blockIdx.x + 1];
}
PLANT_THAT_HANGS(block_returns_early, kDeadlock, kNone,
                 "A block without work returns, and the others wait for it at the grid's barrier.") {
  Buffer<float> in(3, index), partial(4, zero), out(3);
  (void)launch("planted", block_returns_early<kBroken>, {4, kThreads, 0, nullptr, 1, true}, in, partial, out, 3);
  return out.holds([](int i) { return i < 2 ? i + 1 : 0; });
}

template <bool kBroken>
__global__ void not_cooperative(const float* in, float* partial, float* out) {
  if (threadIdx.x == 0) partial[blockIdx.x] = in[blockIdx.x];
  ptx::grid_barrier();  // read after write: the next block's element.  planted: not_cooperative
  if (threadIdx.x == 0) out[blockIdx.x] = partial[(blockIdx.x + 1) % gridDim.x];
}
PLANT_THAT_HANGS(not_cooperative, kLaunch, kNone, "A barrier of the grid in a launch that is not cooperative.") {
  Buffer<float> in(4, index), partial(4), out(4);
  (void)launch("planted", not_cooperative<kBroken>, {4, kThreads, 0, nullptr, 1, !kBroken}, in, partial, out);
  return out.holds([](int i) { return (i + 1) % 4; });
}

}  // namespace
}  // namespace strop::planted

// Experiment 000: what does a sum over the whole grid cost inside one launch?
//
// Candidates: (a) nothing, the launch itself; (b) cooperative launch, no barrier; (c) cooperative launch and one
// cooperative_groups grid barrier; (d) slots of {value, tag}: every block publishes, block 0 waits and finishes;
// (e) the same, every block waits (needs co-scheduling, so cooperative); (f) last block done, with a counter.
//
// Build: nvcc -O3 -std=c++20 -gencode=arch=compute_90a,code=sm_90a grid_barrier.cu -o grid_barrier
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <vector>

#define CHECK(x)                                                                              \
  do {                                                                                        \
    cudaError_t e = (x);                                                                      \
    if (e != cudaSuccess) {                                                                   \
      std::printf("%s:%d %s: %s\n", __FILE__, __LINE__, #x, cudaGetErrorString(e));           \
    }                                                                                         \
  } while (0)

namespace cg = cooperative_groups;

struct alignas(16) Slot {
  float v0, v1;
  unsigned long long tag;
};

__device__ void publish(Slot* s, float v0, float v1, unsigned long long tag) {
  unsigned long long lo = (unsigned long long)__float_as_uint(v0) | ((unsigned long long)__float_as_uint(v1) << 32);
  asm volatile("{ .reg .b128 q; mov.b128 q, {%1, %2}; st.relaxed.gpu.global.b128 [%0], q; }" ::"l"(s), "l"(lo), "l"(tag)
               : "memory");
}
__device__ bool poll(const Slot* s, float& v0, float& v1, unsigned long long tag) {
  unsigned long long lo, hi;
  asm volatile("{ .reg .b128 q; ld.relaxed.gpu.global.b128 q, [%2]; mov.b128 {%0, %1}, q; }" : "=l"(lo), "=l"(hi) : "l"(s) : "memory");
  v0 = __uint_as_float((unsigned)lo);
  v1 = __uint_as_float((unsigned)(lo >> 32));
  return hi == tag;
}

__device__ float block_sum(float v) {
  __shared__ float s[32];
  for (int d = 16; d; d >>= 1) v += __shfl_xor_sync(~0u, v, d);
  __syncthreads();
  if (threadIdx.x % 32 == 0) s[threadIdx.x / 32] = v;
  __syncthreads();
  v = threadIdx.x % 32 < blockDim.x / 32 ? s[threadIdx.x % 32] : 0.f;
  for (int d = 16; d; d >>= 1) v += __shfl_xor_sync(~0u, v, d);
  return v;
}

__global__ void k_empty(float* out) {
  if (threadIdx.x == 0 && blockIdx.x == 0) *out = 1.f;
}
__global__ void k_cg(float* out, Slot* slots) {
  if (threadIdx.x == 0) slots[blockIdx.x].v0 = 1.f;
  cg::this_grid().sync();
  float v = threadIdx.x < gridDim.x ? __ldcg(&slots[threadIdx.x].v0) : 0.f;
  v = block_sum(v);
  if (threadIdx.x == 0 && blockIdx.x == 0) *out = v;
}
template <bool All>
__global__ void k_tag(float* out, Slot* slots, unsigned long long tag) {
  if (threadIdx.x == 0) publish(slots + blockIdx.x, 1.f, 2.f, tag);
  if (All || blockIdx.x == 0) {
    float a = 0, b = 0;
    if (threadIdx.x < gridDim.x) {
      while (!poll(slots + threadIdx.x, a, b, tag)) {
      }
      if (!All) slots[threadIdx.x].tag = 0;
    }
    a = block_sum(a);
    if (threadIdx.x == 0 && blockIdx.x == 0) *out = a;
  }
}
__global__ void k_counter(float* out, Slot* slots, unsigned* counter) {
  __shared__ bool last;
  if (threadIdx.x == 0) {
    slots[blockIdx.x].v0 = 1.f;
    __threadfence();
    last = atomicInc(counter, gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last) return;
  float v = threadIdx.x < gridDim.x ? __ldcg(&slots[threadIdx.x].v0) : 0.f;
  v = block_sum(v);
  if (threadIdx.x == 0) *out = v;
}
__global__ void k_cluster(float* out) {
  cg::cluster_group c = cg::this_cluster();
  __shared__ float s;
  if (threadIdx.x == 0) s = 1.f;
  c.sync();
  float v = threadIdx.x < c.num_blocks() ? *c.map_shared_rank(&s, threadIdx.x) : 0.f;
  v = block_sum(v);
  if (threadIdx.x == 0 && c.block_rank() == 0) *out = v;
  c.sync();
}

template <class... P, class... A>
cudaError_t launch(void (*k)(P...), int grid, int block, int cluster, bool coop, cudaStream_t st, A... a) {
  cudaLaunchConfig_t c = {};
  c.gridDim = grid;
  c.blockDim = block;
  c.stream = st;
  cudaLaunchAttribute at[2];
  int n = 0;
  if (coop) {
    at[n].id = cudaLaunchAttributeCooperative;
    at[n++].val.cooperative = 1;
  }
  if (cluster > 1) {
    at[n].id = cudaLaunchAttributeClusterDimension;
    at[n].val.clusterDim.x = cluster;
    at[n].val.clusterDim.y = at[n].val.clusterDim.z = 1;
    ++n;
  }
  c.attrs = at;
  c.numAttrs = n;
  return cudaLaunchKernelEx(&c, k, P(a)...);
}

template <class F>
void bench(const char* name, int grid, int block, F f) {
  cudaStream_t st;
  CHECK(cudaStreamCreate(&st));
  CHECK(f(st));
  CHECK(cudaStreamSynchronize(st));
  const int n = 200;
  cudaGraph_t g;
  cudaGraphExec_t ge;
  CHECK(cudaStreamBeginCapture(st, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < n; ++i) f(st);
  CHECK(cudaStreamEndCapture(st, &g));
  CHECK(cudaGraphInstantiate(&ge, g, 0));
  cudaEvent_t e0, e1;
  cudaEventCreate(&e0);
  cudaEventCreate(&e1);
  std::vector<float> us;
  for (int r = 0; r < 10; ++r) {
    cudaEventRecord(e0, st);
    CHECK(cudaGraphLaunch(ge, st));
    cudaEventRecord(e1, st);
    CHECK(cudaStreamSynchronize(st));
    float ms;
    cudaEventElapsedTime(&ms, e0, e1);
    us.push_back(ms * 1e3f / n);
  }
  std::sort(us.begin(), us.end());
  std::vector<double> host, wall;
  for (int r = 0; r < 50; ++r) {
    auto t0 = std::chrono::steady_clock::now();
    for (int i = 0; i < 20; ++i) f(st);
    auto t1 = std::chrono::steady_clock::now();
    CHECK(cudaStreamSynchronize(st));
    host.push_back(std::chrono::duration<double, std::micro>(t1 - t0).count() / 20);
    t0 = std::chrono::steady_clock::now();
    f(st);
    cudaStreamSynchronize(st);
    t1 = std::chrono::steady_clock::now();
    wall.push_back(std::chrono::duration<double, std::micro>(t1 - t0).count());
  }
  std::sort(host.begin(), host.end());
  std::sort(wall.begin(), wall.end());
  std::printf("%-34s grid %4d x %4d  graph %6.2f us  enqueue %6.2f us  wall+sync %6.2f us\n", name, grid, block, us[5],
              host[25], wall[25]);
}

int main() {
  float* out;
  Slot* slots;
  unsigned* counter;
  CHECK(cudaMalloc(&out, 4));
  CHECK(cudaMalloc(&slots, 4096 * sizeof(Slot)));
  CHECK(cudaMemset(slots, 0xff, 4096 * sizeof(Slot)));
  CHECK(cudaMalloc(&counter, 4));
  CHECK(cudaMemset(counter, 0, 4));
  unsigned long long tag = 0x1234567812345678ull;
  for (int grid : {16, 132, 264})
    for (int block : {256, 512, 1024}) {
      bench("empty", grid, block, [&](cudaStream_t s) { return launch(k_empty, grid, block, 1, false, s, out); });
      bench("empty, cooperative", grid, block, [&](cudaStream_t s) { return launch(k_empty, grid, block, 1, true, s, out); });
      bench("cooperative + cg grid barrier", grid, block, [&](cudaStream_t s) { return launch(k_cg, grid, block, 1, true, s, out, slots); });
      bench("tags, block 0 waits", grid, block, [&](cudaStream_t s) { return launch(k_tag<false>, grid, block, 1, false, s, out, slots, ++tag); });
      bench("tags, all wait, cooperative", grid, block, [&](cudaStream_t s) { return launch(k_tag<true>, grid, block, 1, true, s, out, slots, ++tag); });
      bench("tags, all wait, not cooperative", grid, block, [&](cudaStream_t s) { return launch(k_tag<true>, grid, block, 1, false, s, out, slots, ++tag); });
      bench("counter, last block", grid, block, [&](cudaStream_t s) { return launch(k_counter, grid, block, 1, false, s, out, slots, counter); });
      bench("cluster of 8", grid, block, [&](cudaStream_t s) { return launch(k_cluster, grid / 8 * 8, block, 8, false, s, out); });
      bench("cluster of 8, cooperative", grid, block, [&](cudaStream_t s) { return launch(k_cluster, grid / 8 * 8, block, 8, true, s, out); });
    }
  CHECK(cudaDeviceSynchronize());
}

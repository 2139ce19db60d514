// Experiment 000, second part: do grid barriers of cooperative launches keep apart when launches run at the same time,
// from streams and from replayed graphs? Every kernel delays one block, meets at the barrier, and block 0 counts what
// it misses from the others.
//
// Build: nvcc -O3 -std=c++20 -gencode=arch=compute_90a,code=sm_90a concurrent_graphs.cu -o concurrent_graphs
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <cstdio>
#include <vector>

#define CHECK(x)                                                                              \
  do {                                                                                        \
    cudaError_t e = (x);                                                                      \
    if (e != cudaSuccess) std::printf("%s:%d %s\n", __FILE__, __LINE__, cudaGetErrorString(e)); \
  } while (0)

namespace cg = cooperative_groups;

// slots[b] counts this launch's visits of block b: before the launch they are all equal.
__global__ void meet(unsigned* slots, unsigned* errors, int leave, unsigned long long* where) {
  const bool late = blockIdx.x == gridDim.x - 1;
  if (late) {
    const long long t = clock64();
    while (clock64() - t < 20000) {
    }
  }
  if (threadIdx.x == 0) slots[blockIdx.x] += 1;
  auto grid = cg::this_grid();
  if (leave) {
    auto arrival = grid.barrier_arrive();
    if (blockIdx.x != 0) return;
    grid.barrier_wait(static_cast<decltype(arrival)&&>(arrival));
  } else {
    grid.sync();
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    const unsigned mine = __ldcg(&slots[0]);
    for (int b = 0; b < gridDim.x; ++b)
      if (__ldcg(&slots[b]) != mine) atomicAdd(errors, 1u);
    unsigned lo, hi;
    asm volatile("mov.u32 %0, %%envreg1; mov.u32 %1, %%envreg2;" : "=r"(hi), "=r"(lo));
    *where = (static_cast<unsigned long long>(hi) << 32) | lo;
  }
}

int main() {
  constexpr int kGraphs = 6, kNodes = 3, kGrid = 16;
  for (int mode = 0; mode < 4; ++mode) {  // bit 0: leave after arriving; bit 1: graphs
    std::vector<cudaStream_t> streams(kGraphs);
    std::vector<cudaGraphExec_t> execs(kGraphs);
    unsigned *slots, *errors;
    unsigned long long* where;
    CHECK(cudaMalloc(&slots, kGraphs * kNodes * 4096 * 4));
    CHECK(cudaMemset(slots, 0, kGraphs * kNodes * 4096 * 4));
    CHECK(cudaMalloc(&errors, 4));
    CHECK(cudaMemset(errors, 0, 4));
    CHECK(cudaMalloc(&where, kGraphs * kNodes * 8));
    auto launch = [&](int g, int n) {
      cudaLaunchConfig_t c = {};
      c.gridDim = kGrid;
      c.blockDim = 128;
      c.stream = streams[g];
      cudaLaunchAttribute a;
      a.id = cudaLaunchAttributeCooperative;
      a.val.cooperative = 1;
      c.attrs = &a;
      c.numAttrs = 1;
      CHECK(cudaLaunchKernelEx(&c, meet, slots + (g * kNodes + n) * 4096, errors, mode & 1, where + g * kNodes + n));
    };
    for (int g = 0; g < kGraphs; ++g) {
      CHECK(cudaStreamCreateWithFlags(&streams[g], cudaStreamNonBlocking));
      if (mode & 2) {
        cudaGraph_t graph;
        CHECK(cudaStreamBeginCapture(streams[g], cudaStreamCaptureModeThreadLocal));
        for (int n = 0; n < kNodes; ++n) launch(g, n);
        CHECK(cudaStreamEndCapture(streams[g], &graph));
        CHECK(cudaGraphInstantiate(&execs[g], graph, 0));
      }
    }
    for (int r = 0; r < 300; ++r)
      for (int g = 0; g < kGraphs; ++g) {
        if (mode & 2) {
          CHECK(cudaGraphLaunch(execs[g], streams[g]));
        } else {
          for (int n = 0; n < kNodes; ++n) launch(g, n);
        }
      }
    CHECK(cudaDeviceSynchronize());
    unsigned e;
    unsigned long long w[kGraphs * kNodes];
    CHECK(cudaMemcpy(&e, errors, 4, cudaMemcpyDeviceToHost));
    CHECK(cudaMemcpy(w, where, sizeof(w), cudaMemcpyDeviceToHost));
    std::printf("%s, %s: %u slots missed in %d launches; barriers at", mode & 2 ? "graphs" : "streams",
                mode & 1 ? "arrive and leave" : "sync", e, 300 * kGraphs * kNodes);
    for (int g = 0; g < kGraphs; ++g) std::printf(" %llx", w[g * kNodes]);
    std::printf("\n");
  }
}

// Experiment 003: what does each part of a policy loss cost, from an empty kernel to the whole?
//
// Times as Triton's do_bench: 256 MB overwritten, event, kernel, event; median of 120, variants in turn. Also in a
// graph of 100 (L2 warm). Build: nvcc -O3 -std=c++20 -gencode=arch=compute_90a,code=sm_90a launch_floor.cu -o
// launch_floor
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#define CHECK(x)                                                                                        \
  do {                                                                                                  \
    cudaError_t e = (x);                                                                                \
    if (e != cudaSuccess) std::printf("%s:%d %s: %s\n", __FILE__, __LINE__, #x, cudaGetErrorString(e)); \
  } while (0)

namespace cg = cooperative_groups;

struct Args {
  const float *policy, *old, *ref, *adv;
  const unsigned char* mask;
  float *grad, *loss;
  void* slots;
  unsigned* counter;
  unsigned long long tag;
  int rows, tokens, splits;
};
struct BigArgs {
  Args a;
  char pad[400];
};

enum : int {
  kLoad = 1,          // tiles from memory
  kCompute = 2,       // the tokens' arithmetic
  kCount = 4,         // the row's count over the block before gradients
  kGrad = 8,          // gradients stored
  kReduce = 16,       // the loss over the block
  kSlots = 32,        // published with a tag; block 0 polls
  kCounter = 64,      // last block done
  kCoop = 128,        // cooperative_groups: arrive, block 0 waits
  kCluster = 256,     // the sum over a cluster through distributed shared memory, then slots of clusters if several
  kAllWait = 512,     // the count over all blocks first, by slots that every block polls (BNPO)
  kReadMask = 1024,   // BNPO: the count by reading the whole mask in each block
  kFast = 2048,       // exponentials by ex2.approx
  kLossFirst = 4096,  // the loss is published before the gradients are stored
  kPdl = 8192,        // waits for the kernel before it, launched programmatically dependent
};

using Word = unsigned long long;
struct alignas(16) Slot {
  Word value, tag;
};
__device__ __forceinline__ Slot ld_poll(const Slot* p) {
  Slot v;
  asm volatile("{ .reg .b128 q; ld.relaxed.gpu.global.b128 q, [%2]; mov.b128 {%0, %1}, q; }"
               : "=l"(v.value), "=l"(v.tag)
               : "l"(p)
               : "memory");
  return v;
}
__device__ __forceinline__ void st_slot(Slot* p, Slot v) {
  asm volatile("{ .reg .b128 q; mov.b128 q, {%1, %2}; st.relaxed.gpu.global.b128 [%0], q; }" ::"l"(p), "l"(v.value),
               "l"(v.tag)
               : "memory");
}
__device__ __forceinline__ float4 ld4(const float* p) {
  float4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.f32 {%0,%1,%2,%3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "l"(p));
  return v;
}
__device__ __forceinline__ unsigned ld1(const void* p) {
  unsigned v;
  asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(p));
  return v;
}
__device__ __forceinline__ float wsum(float v) {
  for (int d = 16; d; d >>= 1) v += __shfl_xor_sync(~0u, v, d);
  return v;
}

template <int M, int kV, class P>
__global__ void __launch_bounds__(1024, 1) k(const __grid_constant__ P big) {
  const Args& a = *reinterpret_cast<const Args*>(&big);
  __shared__ float s_f[32];
  __shared__ unsigned s_u[32];
  __shared__ float s_cluster[16];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const int row = blockIdx.x / a.splits, part = blockIdx.x % a.splits;
  const long long base = (long long)row * a.tokens;
  if (M & kPdl) asm volatile("griddepcontrol.wait;" ::: "memory");
  float loss = 0;
  float4 p[kV], o[kV], r[kV];
  unsigned m[kV], n = 0;
  float adv = 0;
  int t[kV];
  if (M & kLoad) {
#pragma unroll
    for (int j = 0; j < kV; ++j) {
      t[j] = ((part * kV + j) * blockDim.x + threadIdx.x) * 4;
      m[j] = 0;
      if (t[j] < a.tokens) m[j] = ld1(a.mask + base + t[j]);
    }
#pragma unroll
    for (int j = 0; j < kV; ++j) {
      p[j] = o[j] = r[j] = {0, 0, 0, 0};
      if (t[j] < a.tokens)
        p[j] = ld4(a.policy + base + t[j]), o[j] = ld4(a.old + base + t[j]), r[j] = ld4(a.ref + base + t[j]);
    }
    adv = __ldg(a.adv + row);
#pragma unroll
    for (int j = 0; j < kV; ++j) n += __popc(__vcmpne4(m[j], 0) & 0x01010101u);
    if (!(M & kCompute)) {
#pragma unroll
      for (int j = 0; j < kV; ++j) loss += p[j].x + o[j].y + r[j].z + m[j];
      if (loss == 12345.f) *a.loss = adv;
    }
  }
  float weight = 1;
  if (M & kReadMask) {
    unsigned c = 0;
    const uint4* q = reinterpret_cast<const uint4*>(a.mask);
    for (int i = threadIdx.x; i < a.rows * a.tokens / 16; i += blockDim.x) {
      const uint4 w = __ldg(q + i);
      c += __popc((__vcmpne4(w.x, 0) & 0x01010101u) | (__vcmpne4(w.y, 0) & 0x02020202u) |
                  (__vcmpne4(w.z, 0) & 0x04040404u) | (__vcmpne4(w.w, 0) & 0x08080808u));
    }
    c = __reduce_add_sync(~0u, c);
    if (lane == 0) s_u[warp] = c;
    __syncthreads();
    c = __reduce_add_sync(~0u, lane < warps ? s_u[lane] : 0);
    weight = 1.f / c;
  }
  if (M & kCount) {
    unsigned c = __reduce_add_sync(~0u, n);
    if (lane == 0) s_u[warp] = c;
    __syncthreads();
    c = __reduce_add_sync(~0u, lane < warps ? s_u[lane] : 0);
    if (M & kAllWait) {
      Slot* slots = static_cast<Slot*>(a.slots) + 1024;
      if (threadIdx.x == 0) st_slot(slots + blockIdx.x, {c, a.tag});
      unsigned total = 0;
      for (int i = threadIdx.x; i < gridDim.x; i += blockDim.x) {
        Slot v;
        do v = ld_poll(slots + i);
        while (v.tag != a.tag);
        total += (unsigned)v.value;
      }
      __syncthreads();
      total = __reduce_add_sync(~0u, total);
      if (lane == 0) s_u[warp] = total;
      __syncthreads();
      c = __reduce_add_sync(~0u, lane < warps ? s_u[lane] : 0);
    }
    weight = 1.f / c;
  }
  float4 g[kV];
  if (M & kCompute) {
#pragma unroll
    for (int j = 0; j < kV; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float x = (&p[j].x)[e], rr = (M & kFast) ? __expf(x - (&o[j].x)[e]) : expf(x - (&o[j].x)[e]),
                    cl = fminf(fmaxf(rr, 0.8f), 1.2f);
        const float u = rr * adv, w = cl * adv, d = (&r[j].x)[e] - x, em = (M & kFast) ? __expf(d) - 1.f : expm1f(d);
        const bool v = m[j] >> (8 * e) & 0xff;
        loss += v ? -fminf(u, w) + 0.1f * (em - d) : 0.f;
        (&g[j].x)[e] = v ? weight * ((!(u >= w) || cl == rr ? -u : u == w ? -0.5f * u : 0.f) - 0.1f * em) : 0.f;
      }
    }
    loss *= weight;
    if ((M & kGrad) && !(M & kLossFirst)) {
#pragma unroll
      for (int j = 0; j < kV; ++j)
        if (t[j] < a.tokens) __stcs(reinterpret_cast<float4*>(a.grad + base + t[j]), g[j]);
    }
    if (!(M & kReduce) && loss == 12345.f) *a.loss = loss + g[0].x;
  }
  if (M & kReduce) {
    loss = wsum(loss);
    if (lane == 0) s_f[warp] = loss;
    __syncthreads();
    if (warp == 0) loss = wsum(lane < warps ? s_f[lane] : 0.f);
  }
  int out_block = blockIdx.x, out_blocks = gridDim.x;
  if (M & kCluster) {
    cg::cluster_group c = cg::this_cluster();
    if (threadIdx.x == 0) *c.map_shared_rank(&s_cluster[c.block_rank()], 0) = loss;
    c.sync();
    if (c.block_rank() != 0) return;
    if (warp == 0) loss = wsum(lane < c.num_blocks() ? s_cluster[lane] : 0.f);
    out_block = blockIdx.x / c.num_blocks(), out_blocks = gridDim.x / c.num_blocks();
    if (!(M & kSlots) && threadIdx.x == 0 && out_block == 0) *a.loss = loss;
  }
  if (M & kSlots) {
    Slot* slots = static_cast<Slot*>(a.slots);
    if (threadIdx.x == 0) st_slot(slots + out_block, {__float_as_uint(loss), a.tag});
    if ((M & kGrad) && (M & kLossFirst)) {
#pragma unroll
      for (int j = 0; j < kV; ++j)
        if (t[j] < a.tokens) __stcs(reinterpret_cast<float4*>(a.grad + base + t[j]), g[j]);
    }
    if (out_block != out_blocks - 1 || warp > 0) return;
    float sum = 0;
    for (int i = lane; i < out_blocks; i += 32) {
      Slot v;
      do v = ld_poll(slots + i);
      while (v.tag != a.tag);
      sum += __uint_as_float((unsigned)v.value);
    }
    sum = wsum(sum);
    if (lane == 0) *a.loss = sum;
    for (int i = lane; i < out_blocks; i += 32) slots[i] = {0, 0};
  }
  if (M & kCounter) {
    float* partials = static_cast<float*>(a.slots);
    if (warp > 0) return;
    unsigned last = 0;
    if (lane == 0) {
      partials[blockIdx.x] = loss;
      __threadfence();
      last = atomicInc(a.counter, gridDim.x - 1) == gridDim.x - 1;
    }
    last = __shfl_sync(~0u, last, 0);
    if (!last) return;
    float sum = 0;
    for (int i = lane; i < gridDim.x; i += 32) sum += __ldcg(partials + i);
    sum = wsum(sum);
    if (lane == 0) *a.loss = sum;
  }
  if (M & kCoop) {
    float* partials = static_cast<float*>(a.slots);
    if (threadIdx.x == 0) partials[blockIdx.x] = loss;
    auto token = cg::this_grid().barrier_arrive();
    if (blockIdx.x != 0) return;
    cg::this_grid().barrier_wait(std::move(token));
    if (warp > 0) return;
    float sum = 0;
    for (int i = lane; i < gridDim.x; i += 32) sum += __ldcg(partials + i);
    sum = wsum(sum);
    if (lane == 0) *a.loss = sum;
  }
  if (M == 0 && threadIdx.x == 0 && blockIdx.x == 0) *a.loss = 1.f;
}

__global__ void add1(float* x) { *x += 1.f; }

cudaStream_t st;
int* cache;
unsigned long long tag = 0x123456789abcdefull;

struct Variant {
  std::string name;
  int grid, block;
  std::function<cudaError_t()> f;
  std::vector<float> us, graph_us;
};
std::vector<Variant> variants;
void bench(const char* name, int grid, int block, std::function<cudaError_t()> f) {
  variants.push_back({name, grid, block, f, {}, {}});
}

// Events of different batches lie in different places, which moves all times by up to 0.5 us: one pair for all.
void measure() {
  cudaEvent_t e0, e1;
  cudaEventCreate(&e0), cudaEventCreate(&e1);
  auto elapsed = [&] {
    CHECK(cudaEventSynchronize(e1));
    float ms;
    cudaEventElapsedTime(&ms, e0, e1);
    return ms * 1000;
  };
  for (int r = 0; r < 60; ++r) {
    for (auto& v : variants) {
      for (int i = 0; i < 3; ++i) {
        cudaMemsetAsync(cache, 0, 256 << 20, st);
        cudaEventRecord(e0, st);
        CHECK(v.f());
        cudaEventRecord(e1, st);
        const float us = elapsed();
        if (i > 0) v.us.push_back(us);
      }
    }
  }
  for (auto& v : variants) {
    cudaGraph_t g;
    cudaGraphExec_t ge;
    CHECK(cudaStreamBeginCapture(st, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < 100; ++i) v.f();
    CHECK(cudaStreamEndCapture(st, &g));
    CHECK(cudaGraphInstantiate(&ge, g, 0));
    for (int r = 0; r < 8; ++r) {
      cudaEventRecord(e0, st);
      cudaGraphLaunch(ge, st);
      cudaEventRecord(e1, st);
      v.graph_us.push_back(elapsed() / 100);
    }
    cudaGraphExecDestroy(ge), cudaGraphDestroy(g);
    std::sort(v.us.begin(), v.us.end()), std::sort(v.graph_us.begin(), v.graph_us.end());
    std::printf("%-44s %4d x %4d  do_bench %6.2f (%5.2f to %5.2f)  graph %6.2f\n", v.name.c_str(), v.grid, v.block,
                v.us[v.us.size() / 2], v.us[v.us.size() / 4], v.us[v.us.size() * 3 / 4], v.graph_us[4]);
  }
  variants.clear();
}

template <class P>
void run(const char* name, void (*kernel)(P), P p, int grid, int block, int cluster = 1, bool coop = false,
         bool pdl = false) {
  cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  bench(name, grid, block, [=]() mutable {
    cudaLaunchConfig_t c = {};
    c.gridDim = grid, c.blockDim = block, c.stream = st;
    cudaLaunchAttribute at[3];
    if (coop) at[c.numAttrs].id = cudaLaunchAttributeCooperative, at[c.numAttrs++].val.cooperative = 1;
    if (cluster > 1)
      at[c.numAttrs].id = cudaLaunchAttributeClusterDimension,
      at[c.numAttrs++].val.clusterDim = {(unsigned)cluster, 1, 1};
    if (pdl)
      at[c.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization,
      at[c.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
    c.attrs = at;
    reinterpret_cast<Args*>(&p)->tag = tag += 0x9e3779b97f4a7c15ull;
    return cudaLaunchKernelEx(&c, kernel, p);
  });
}

int main() {
  CHECK(cudaStreamCreate(&st));
  CHECK(cudaMalloc(&cache, 256 << 20));
  const size_t n = 128 * 8192;
  Args a = {};
  float* f;
  CHECK(cudaMalloc(&f, n * 5 * 4 + 4096));
  std::vector<float> h(3 * n + 128);
  for (size_t i = 0; i < h.size(); ++i) h[i] = -(float)(rand() % 1000) / 2000.f;
  a.policy = f, a.old = f + n, a.ref = f + 2 * n, a.grad = f + 3 * n, a.adv = f + 4 * n;
  cudaMemcpy(f, h.data(), 3 * n * 4, cudaMemcpyHostToDevice);
  cudaMemcpy((void*)a.adv, h.data(), 512, cudaMemcpyHostToDevice);
  unsigned char* mask;
  CHECK(cudaMalloc(&mask, n));
  cudaMemset(mask, 1, n);
  a.mask = mask;
  CHECK(cudaMalloc(&a.loss, 512));
  CHECK(cudaMalloc(&a.slots, 65536));
  cudaMemset(a.slots, 0, 65536);
  CHECK(cudaMalloc(&a.counter, 512));
  cudaMemset(a.counter, 0, 512);
  BigArgs b = {};
  b.a = a;

  struct Shape {
    int rows, tokens, block, v;
  };
  constexpr int kFwd = kLoad | kCompute | kReduce | kSlots, kFused = kFwd | kCount | kGrad;
  for (Shape s : {Shape{16, 1024, 256, 1},
                  {16, 1024, 128, 2},
                  {32, 2048, 512, 1},
                  {32, 2048, 256, 2},
                  {64, 4096, 1024, 1},
                  {64, 4096, 512, 2},
                  {128, 8192, 1024, 2}}) {
    std::printf("-- %d x %d\n", s.rows, s.tokens);
    a.rows = s.rows, a.tokens = s.tokens, a.splits = 1;
    b.a = a;
#define RUN(label, M, ...)                                                   \
  (s.v == 1 ? run(label, k<(M), 1, Args>, a, s.rows, s.block, ##__VA_ARGS__) \
            : run(label, k<(M), 2, Args>, a, s.rows, s.block, ##__VA_ARGS__))
    bench("add_ of one element", 1, 1, [&] {
      add1<<<1, 1, 0, st>>>(a.loss);
      return cudaGetLastError();
    });
    RUN("empty", 0);
    run("empty, 512 bytes of arguments", k<0, 1, BigArgs>, b, s.rows, s.block);
    RUN("empty, cooperative", 0, 1, true);
    RUN("load", kLoad);
    RUN("load, compute", kLoad | kCompute);
    RUN("load, compute, grad", kLoad | kCompute | kGrad);
    RUN("load, compute, reduce", kLoad | kCompute | kReduce);
    RUN("fwd, slots", kFwd);
    RUN("fwd, slots, fast", kFwd | kFast);
    RUN("fwd, slots, programmatic", kFwd | kPdl, 1, false, true);
    RUN("fwd, counter", kLoad | kCompute | kReduce | kCounter);
    RUN("fwd, coop", kLoad | kCompute | kReduce | kCoop, 1, true);
    RUN("fused, slots", kFused);
    RUN("fused, slots, fast", kFused | kFast);
    RUN("fused, slots, loss first", kFused | kLossFirst);
    RUN("fused, slots, loss first, fast", kFused | kLossFirst | kFast);
    RUN("fused, slots, programmatic", kFused | kPdl, 1, false, true);
    RUN("fused, coop", kLoad | kCompute | kCount | kGrad | kReduce | kCoop, 1, true);
    RUN("fused bnpo, all wait, coop launch", kFused | kAllWait, 1, true);
    RUN("fused bnpo, reads the mask", kLoad | kCompute | kReadMask | kGrad | kReduce | kSlots);
    measure();
  }
  CHECK(cudaDeviceSynchronize());
  return 0;
}

// Planted: barriers of a block that its threads do not reach together.
#include "emu/planted/planted.h"

namespace strop::planted {
namespace {

constexpr int kThreads = 64;

template <bool kBroken>
__global__ void two_syncthreads(const float* in, float* out) {
  __shared__ float s[kThreads];
  const unsigned t = threadIdx.x;
  if (t < 32 || !kBroken) {
    s[t] = in[t];
    __syncthreads();  // planted: two_syncthreads
    out[t] = s[kThreads - 1 - t];
  } else {
    s[t] = 2 * in[t];
    __syncthreads();  // planted: two_syncthreads
    out[t] = s[kThreads - 1 - t] + 1;
  }
}
PLANT(two_syncthreads, kDivergentBarrier, kSynccheck,
      "Both branches have a barrier of their own: whether different ones meet is undefined.") {
  Buffer<float> in(kThreads, index), out(kThreads);
  (void)launch("planted", two_syncthreads<kBroken>, {.block = kThreads}, in, out);
  return out.holds([](int i) { return kThreads - 1 - i; });
}

template <bool kBroken>
__global__ void barrier_of_one_warp(const float* in, float* out) {
  __shared__ float s[kThreads];
  const unsigned t = threadIdx.x;
  s[t] = in[t];
  if (!kBroken || t < 32) {
    __syncthreads();  // planted: barrier_of_one_warp
    if (t < 32) s[t] += s[t + 32];
  }
  __syncthreads();  // planted: barrier_of_one_warp
  out[t] = s[t % 32];
}
PLANT(barrier_of_one_warp, kDivergentBarrier, kSynccheck,
      "One warp has a barrier to itself, which meets the next one of the others: all that follow are off by one.") {
  Buffer<float> in(kThreads, index), out(kThreads);
  (void)launch("planted", barrier_of_one_warp<kBroken>, {.block = kThreads}, in, out);
  return out.holds([](int i) { return 2 * (i % 32) + 32; });
}

template <bool kBroken>
__global__ void return_before_barrier(const float* in, float* out, int n) {
  __shared__ float s[kThreads];
  const int t = static_cast<int>(threadIdx.x);
  if (kBroken && t >= n) return;
  s[t] = t < n ? in[t] : 0;
  __syncthreads();  // planted: return_before_barrier
  if (t < n) out[t] = s[n - 1 - t];
}
PLANT(return_before_barrier, kDivergentBarrier, kSynccheck, "Threads without an element return before the barrier.") {
  Buffer<float> in(50, index), out(50);
  (void)launch("planted", return_before_barrier<kBroken>, {.block = kThreads}, in, out, 50);
  return out.holds([](int i) { return 49 - i; });
}

template <bool kBroken>
__global__ void uneven_loop(const float* in, float* out, int n) {
  __shared__ float s[2][kThreads];
  const int t = static_cast<int>(threadIdx.x);
  float sum = 0;
  for (int i = 0; i + (kBroken ? t : 0) < n; i += kThreads) {
    s[i / kThreads][t] = i + t < n ? in[i + t] : 0;
    __syncthreads();  // read after write: the first element.  planted: uneven_loop
    sum += s[i / kThreads][0];
  }
  out[t] = sum;
}
PLANT(uneven_loop, kDivergentBarrier, kSynccheck,
      "A loop with a barrier in it, in which threads past the end stop a turn earlier.") {
  Buffer<float> in(100, [](int i) { return i / kThreads; }), out(kThreads);
  (void)launch("planted", uneven_loop<kBroken>, {.block = kThreads}, in, out, 100);
  return out.holds([](int) { return 1; });
}

template <bool kBroken>
__global__ void named_barrier_count(const float* in, float* out) {
  __shared__ float s[32];
  const unsigned t = threadIdx.x;
  if (t < 64) {
    if (t < 32) s[t] = in[t];
    __barrier_sync_count(1, kBroken ? 96 : 64);  // planted: named_barrier_count
    if (t >= 32) out[t - 32] = s[t - 32];
  }
}
PLANT_THAT_HANGS(named_barrier_count, kDeadlock, kSynccheck,
                 "A named barrier for 96 threads at which 64 meet: they wait for ever.") {
  Buffer<float> in(32, index), out(32);
  (void)launch("planted", named_barrier_count<kBroken>, {.block = 128}, in, out);
  return out.holds(index);
}

template <bool kBroken>
__global__ void named_barrier_differs(const float* in, float* out) {
  __shared__ float s[kThreads];
  const unsigned t = threadIdx.x;
  s[t] = in[t];
  __barrier_sync_count(1, kBroken && t >= 32 ? 32 : 64);  // planted: named_barrier_differs
  out[t] = s[kThreads - 1 - t];
}
PLANT_THAT_HANGS(named_barrier_differs, kDivergentBarrier, kSynccheck,
                 "The threads at a named barrier do not agree on how many they are.") {
  Buffer<float> in(kThreads, index), out(kThreads);
  (void)launch("planted", named_barrier_differs<kBroken>, {.block = kThreads}, in, out);
  return out.holds([](int i) { return kThreads - 1 - i; });
}

template <bool kBroken>
__global__ void barrier_of_the_wrong_id(const float* in, float* out) {
  __shared__ float s[2][64];
  const unsigned t = threadIdx.x % 64, group = threadIdx.x / 64;
  s[group][t] = in[threadIdx.x];
  __barrier_sync_count(kBroken && threadIdx.x == 64 ? 1 : group + 1, 64);  // planted: barrier_of_the_wrong_id
  out[threadIdx.x] = s[group][63 - t];
}
PLANT_THAT_HANGS(barrier_of_the_wrong_id, kDeadlock, kSynccheck,
                 "A thread goes to the barrier of the other half of the block, and is missed at its own.") {
  Buffer<float> in(128, index), out(128);
  (void)launch("planted", barrier_of_the_wrong_id<kBroken>, {.block = 128}, in, out);
  return out.holds([](int i) { return i / 64 * 64 + 63 - i % 64; });
}

}  // namespace
}  // namespace strop::planted

// Planted: races in global memory, across blocks and within one; what is published without a fence; stale reads.
#include "emu/planted/planted.h"

namespace strop::planted {
namespace {

constexpr int kThreads = 64, kBlocks = 4, kN = kThreads * kBlocks;

__device__ int global_index() { return static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); }

// ---- Across blocks --------------------------------------------------------------------------------------------------

template <bool kBroken>
__global__ void blocks_read_after_write(const float* in, float* x, float* out) {
  const int i = global_index(), first = static_cast<int>(blockIdx.x) * kThreads;
  const int from = kBroken ? kN - 1 - i : first + kThreads - 1 - (i - first);
  x[i] = in[i];      // planted: blocks_read_after_write
  __syncthreads();   // read after write: an element of this block
  out[i] = x[from];  // planted: blocks_read_after_write
}
PLANT(blocks_read_after_write, kRace, kNone,
      "__syncthreads is taken for a barrier of all blocks: others may not have run.") {
  Buffer<float> in(kN, index), x(kN, zero), out(kN);
  (void)launch("planted", blocks_read_after_write<kBroken>, {.grid = kBlocks, .block = kThreads}, in, x, out);
  return out.holds([](int i) { return i / kThreads * kThreads + kThreads - 1 - i % kThreads; });
}

template <bool kBroken>
__global__ void blocks_write_after_read(float* x, float* y) {
  const int i = global_index();
  const float v = x[kN - 1 - i];  // planted: blocks_write_after_read
  (kBroken ? x : y)[i] = v;       // planted: blocks_write_after_read
}
PLANT(blocks_write_after_read, kRace, kNone,
      "A vector is mirrored in place: other blocks still need what is overwritten.") {
  Buffer<float> x(kN, index), y(kN);
  (void)launch("planted", blocks_write_after_read<kBroken>, {.grid = kBlocks, .block = kThreads}, x, y);
  return y.holds([](int i) { return kN - 1 - i; });
}

template <bool kBroken>
__global__ void blocks_write_after_write(const float* in, float* out) {
  if (threadIdx.x == 0) out[kBroken ? 0 : blockIdx.x] = in[blockIdx.x];  // planted: blocks_write_after_write
}
PLANT(blocks_write_after_write, kRace, kNone, "Each block leaves its result in the same element: the last one stays.") {
  Buffer<float> in(kBlocks, index), out(kBlocks, zero);
  (void)launch("planted", blocks_write_after_write<kBroken>, {.grid = kBlocks, .block = kThreads}, in, out);
  return out.holds(index);
}

template <bool kBroken>
__global__ void plain_counter(unsigned* count) {
  if (kBroken && threadIdx.x == 0) *count += kThreads;  // planted: plain_counter
  if (!kBroken && threadIdx.x == 0) atomicAdd(count, kThreads);
}
PLANT(plain_counter, kRace, kNone, "Blocks add to one sum without an atomic: contributions get lost.") {
  Buffer<unsigned> count(1, zero);
  (void)launch("planted", plain_counter<kBroken>, {.grid = kBlocks, .block = kThreads}, count);
  return count.holds([](int) { return kN; });
}

__device__ float exchanged[kN];

template <bool kBroken>
__global__ void device_variable(const float* in, float* out) {
  const int i = global_index(), first = static_cast<int>(blockIdx.x) * kThreads;
  exchanged[i] = in[i];  // planted: device_variable
  __syncthreads();       // read after write: an element of this block
  out[i] = exchanged[kBroken ? kN - 1 - i : first + kThreads - 1 - (i - first)];  // planted: device_variable
}
PLANT(device_variable, kRace, kNone,
      "Blocks pass data on in a __device__ variable, without anything that orders them.") {
  Buffer<float> in(kN, index), out(kN);
  (void)launch("planted", device_variable<kBroken>, {.grid = kBlocks, .block = kThreads}, in, out);
  return out.holds([](int i) { return i / kThreads * kThreads + kThreads - 1 - i % kThreads; });
}

// ---- Within a block -------------------------------------------------------------------------------------------------

template <bool kBroken>
__global__ void scratch_read_after_write(const float* in, float* scratch, float* out) {
  const unsigned t = threadIdx.x;
  scratch[t] = in[t];                  // planted: scratch_read_after_write
  if (!kBroken) __syncthreads();       // read after write: the mirrored element
  out[t] = scratch[kThreads - 1 - t];  // planted: scratch_read_after_write
}
PLANT(scratch_read_after_write, kRace, kNone, "Warps of a block pass on scratch in global memory without a barrier.") {
  Buffer<float> in(kThreads, index), scratch(kThreads, zero), out(kThreads);
  (void)launch("planted", scratch_read_after_write<kBroken>, {.block = kThreads}, in, scratch, out);
  return out.holds([](int i) { return kThreads - 1 - i; });
}

template <bool kBroken>
__global__ void scratch_write_after_read(float* x) {
  const unsigned t = threadIdx.x;
  const float v = x[kThreads - 1 - t];  // planted: scratch_write_after_read
  if (!kBroken) __syncthreads();        // write after read: the other may not have read yet
  x[t] = v;                             // planted: scratch_write_after_read
}
PLANT(scratch_write_after_read, kRace, kNone, "A row is mirrored in place by one block, without a barrier between.") {
  Buffer<float> x(kThreads, index);
  (void)launch("planted", scratch_write_after_read<kBroken>, {.block = kThreads}, x);
  return x.holds([](int i) { return kThreads - 1 - i; });
}

template <bool kBroken>
__global__ void scratch_write_after_write(const int* to, float* out) {
  const unsigned t = threadIdx.x;
  out[to[t]] = static_cast<float>(to[t]);  // planted: scratch_write_after_write
}
PLANT(scratch_write_after_write, kRace, kNone,
      "A scatter whose indices are not all different: warps write the same element.") {
  Buffer<int> to(kThreads, [](int i) { return kBroken ? i % 32 : i; });
  Buffer<float> out(kThreads, zero);
  (void)launch("planted", scratch_write_after_write<kBroken>, {.block = kThreads}, to, out);
  return out.holds(index);
}

// ---- Publishing without a fence -------------------------------------------------------------------------------------

enum class Lacks { kNothing, kRelease, kAcquire };

// Each block leaves a sum; the one that draws the last ticket adds them up.
template <Lacks kLacks>
__device__ void last_block_sum(const float* in, float* partial, unsigned* tickets, float* out) {
  if (threadIdx.x != 0) return;
  partial[blockIdx.x] = in[blockIdx.x];  // planted: last_block_no_release, last_block_no_acquire
  if (kLacks != Lacks::kRelease) __threadfence();
  const unsigned ticket = atomicAdd(tickets, 1u);
  if (ticket != gridDim.x - 1) return;
  if (kLacks != Lacks::kAcquire) __threadfence();
  float sum = 0;
  for (unsigned b = 0; b < gridDim.x; ++b) {
    sum += partial[b];  // planted: last_block_no_release, last_block_no_acquire
  }
  *out = sum;
}

template <bool kBroken>
__global__ void last_block_no_release(const float* in, float* partial, unsigned* tickets, float* out) {
  last_block_sum<kBroken ? Lacks::kRelease : Lacks::kNothing>(in, partial, tickets, out);
}
PLANT(last_block_no_release, kRace, kNone,
      "No __threadfence between a partial sum and the ticket: the ticket may be seen first.") {
  Buffer<float> in(kBlocks, index), partial(kBlocks), out(1);
  Buffer<unsigned> tickets(1, zero);
  (void)launch("planted", last_block_no_release<kBroken>, {.grid = kBlocks, .block = kThreads}, in, partial, tickets,
               out);
  return out.holds([](int) { return kBlocks * (kBlocks - 1) / 2; });
}

template <bool kBroken>
__global__ void last_block_no_acquire(const float* in, float* partial, unsigned* tickets, float* out) {
  last_block_sum<kBroken ? Lacks::kAcquire : Lacks::kNothing>(in, partial, tickets, out);
}
PLANT(last_block_no_acquire, kRace, kNone,
      "No __threadfence behind the ticket: the sums may have been read before it.") {
  Buffer<float> in(kBlocks, index), partial(kBlocks), out(1);
  Buffer<unsigned> tickets(1, zero);
  (void)launch("planted", last_block_no_acquire<kBroken>, {.grid = kBlocks, .block = kThreads}, in, partial, tickets,
               out);
  return out.holds([](int) { return kBlocks * (kBlocks - 1) / 2; });
}

template <bool kBroken>
__global__ void last_block_one_fence(const float* in, float* partial, unsigned* tickets, float* out) {
  __shared__ bool last;
  const unsigned t = threadIdx.x;
  partial[blockIdx.x * blockDim.x + t] = in[t];  // planted: last_block_one_fence
  if (kBroken && t == 0) __threadfence();
  if (!kBroken) __threadfence();
  __syncthreads();  // the ticket stands for all threads
  if (t == 0) last = atomicAdd(tickets, 1u) == gridDim.x - 1;
  __syncthreads();  // read after write: whether it is the last
  if (!last) return;
  __threadfence();
  float sum = 0;
  for (unsigned b = 0; b < gridDim.x; ++b) sum += partial[b * blockDim.x + t];  // planted: last_block_one_fence
  out[t] = sum;
}
PLANT(last_block_one_fence, kRace, kNone,
      "Only thread 0 fences, before the barrier: that does not cover the other threads' sums.") {
  Buffer<float> in(kThreads, index), partial(kN), out(kThreads);
  Buffer<unsigned> tickets(1, zero);
  (void)launch("planted", last_block_one_fence<kBroken>, {.grid = kBlocks, .block = kThreads}, in, partial, tickets,
               out);
  return out.holds([](int i) { return kBlocks * i; });
}

template <bool kBroken>
__global__ void flag_without_fence(float* data, unsigned* flag, float* out) {
  volatile unsigned* const f = flag;
  if (blockIdx.x == 0) {
    *data = 7;  // planted: flag_without_fence
    if (!kBroken) __threadfence();
    *f = 1;
  } else {
    while (*f == 0) {
    }
    __threadfence();
    *out = *data;  // planted: flag_without_fence
  }
}
PLANT(flag_without_fence, kRace, kNone, "volatile orders nothing: the flag may be seen before the data behind it.") {
  Buffer<float> data(1), out(1);
  Buffer<unsigned> flag(1, zero);
  (void)launch("planted", flag_without_fence<kBroken>, {.grid = 2}, data, flag, out);
  return out.holds([](int) { return 7; });
}

// ---- The read-only cache --------------------------------------------------------------------------------------------

template <bool kBroken>
__global__ void stale_read(const float* in, float* x, float* out) {
  const unsigned t = threadIdx.x;
  x[t] = in[t];
  __syncthreads();  // read after write: the mirrored element
  const float* from = &x[kThreads - 1 - t];
  out[t] = kBroken ? __ldg(from) : __ldcg(from);  // planted: stale_read
}
PLANT(stale_read, kStaleRead, kNone,
      "__ldg of what this launch writes: the read-only cache may hold what was there before.") {
  Buffer<float> in(kThreads, index), x(kThreads, zero), out(kThreads);
  (void)launch("planted", stale_read<kBroken>, {.block = kThreads}, in, x, out);
  return out.holds([](int i) { return kThreads - 1 - i; });
}

}  // namespace
}  // namespace strop::planted

// Planted: races in shared memory, across the warps of a block and within one.
#include "emu/planted/planted.h"

namespace strop::planted {
namespace {

constexpr int kThreads = 64;
constexpr unsigned kFullWarp = 0xffffffffu;

__device__ float warp_sum(float v) {
  for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(kFullWarp, v, d);
  return v;
}

template <bool kBroken>
__global__ void read_after_write(const float* in, float* out) {
  __shared__ float s[kThreads];
  const int t = static_cast<int>(threadIdx.x);
  s[kThreads - 1 - t] = 0;
  __syncthreads();                // write after write: the mirrored zero
  s[t] = in[t];                   // planted: read_after_write
  if (!kBroken) __syncthreads();  // read after write: the mirrored element
  out[t] = s[kThreads - 1 - t];   // planted: read_after_write
}
PLANT(read_after_write, kRace, kRacecheck,
      "No barrier between filling a tile and reading it: the zeros may still be there.") {
  Buffer<float> in(kThreads, index), out(kThreads);
  (void)launch("planted", read_after_write<kBroken>, {.block = kThreads}, in, out);
  return out.holds([](int i) { return kThreads - 1 - i; });
}

template <bool kBroken>
__global__ void write_after_read(const float* in, float* out) {
  __shared__ float s[kThreads];
  const int t = static_cast<int>(threadIdx.x);
  s[t] = in[t];
  __syncthreads();                      // read after write: the mirrored element
  const float v = s[kThreads - 1 - t];  // planted: write_after_read
  if (!kBroken) __syncthreads();        // write after read: the other may not have read yet
  s[t] = 2 * v;                         // planted: write_after_read
  out[t] = s[t];
}
PLANT(write_after_read, kRace, kRacecheck,
      "A tile is mirrored in place: an element is overwritten before it was read.") {
  Buffer<float> in(kThreads, index), out(kThreads);
  (void)launch("planted", write_after_read<kBroken>, {.block = kThreads}, in, out);
  return out.holds([](int i) { return 2 * (kThreads - 1 - i); });
}

template <bool kBroken>
__global__ void write_after_write(const float* in, float* out) {
  __shared__ float largest[2];
  const unsigned t = threadIdx.x, warp = t / 32;
  const float v = warp_sum(in[t]);
  if (t % 32 == 0) largest[kBroken ? 0 : warp] = v;  // planted: write_after_write
  __syncthreads();                                   // read after write: the other warp's sum
  if (t == 0) *out = max(largest[0], largest[kBroken ? 0 : 1]);
}
PLANT(write_after_write, kRace, kRacecheck, "Both warps leave their sum in the same place: the last one stays.") {
  Buffer<float> in(kThreads, index), out(1);
  (void)launch("planted", write_after_write<kBroken>, {.block = kThreads}, in, out);
  return out.holds([](int) { return 32 * 32 + 31 * 16; });
}

template <bool kBroken>
__device__ float block_sum(float v, float* scratch) {
  v = warp_sum(v);
  if (!kBroken) __syncthreads();                             // write after read: the sum before may still be read
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;  // planted: block_sum_twice
  __syncthreads();                                           // read after write: every warp's sum is there
  return scratch[0] + scratch[1];                            // planted: block_sum_twice
}
template <bool kBroken>
__global__ void block_sum_twice(const float* in, float* out) {
  __shared__ float scratch[2];
  const float mean = block_sum<kBroken>(in[threadIdx.x], scratch) / kThreads;
  const float off = in[threadIdx.x] - mean;
  out[threadIdx.x] = block_sum<kBroken>(off * off, scratch);
}
PLANT(block_sum_twice, kRace, kRacecheck,
      "The second block sum writes the scratch of the first, which a slower warp is still reading.") {
  Buffer<float> in(kThreads, [](int i) { return i % 2; }), out(kThreads);
  (void)launch("planted", block_sum_twice<kBroken>, {.block = kThreads}, in, out);
  return out.holds([](int) { return kThreads / 4; });
}

template <bool kBroken>
__global__ void one_buffer_too_few(const float* in, float* out, int tiles) {
  __shared__ float buffers[2][kThreads];
  const int t = static_cast<int>(threadIdx.x);
  float sum = 0;
  for (int i = 0; i < tiles; ++i) {
    float* tile = buffers[kBroken ? 0 : i % 2];
    tile[t] = in[i * kThreads + t];  // planted: one_buffer_too_few
    __syncthreads();                 // read after write; with two buffers also write after read, a turn later
    sum += tile[kThreads - 1 - t];   // planted: one_buffer_too_few
  }
  out[t] = sum;
}
PLANT(one_buffer_too_few, kRace, kRacecheck,
      "One barrier a turn is enough for two buffers, not for one: the next tile comes while others read this one.") {
  Buffer<float> in(3 * kThreads, [](int i) { return i % kThreads; }), out(kThreads);
  (void)launch("planted", one_buffer_too_few<kBroken>, {.block = kThreads}, in, out, 3);
  return out.holds([](int i) { return 3 * (kThreads - 1 - i); });
}

template <bool kBroken>
__global__ void no_syncwarp(const float* in, float* out) {
  __shared__ float s[32];
  const unsigned lane = threadIdx.x;
  s[lane ^ 1] = 0;
  __syncwarp();                // write after write: the neighbour's zero
  s[lane] = in[lane];          // planted: no_syncwarp
  if (!kBroken) __syncwarp();  // read after write: the neighbour's element
  out[lane] = s[lane ^ 1];     // planted: no_syncwarp
}
PLANT(no_syncwarp, kRace, kRacecheck,
      "Lanes of a warp need not run in step since Volta: the neighbour may lag behind.") {
  Buffer<float> in(32, index), out(32);
  (void)launch("planted", no_syncwarp<kBroken>, {.block = 32}, in, out);
  return out.holds([](int i) { return i ^ 1; });
}

template <bool kBroken>
__global__ void tree_in_step(const float* in, float* out) {
  __shared__ float s[kThreads];
  const unsigned t = threadIdx.x;
  s[t] = in[t];
  for (unsigned d = kThreads / 2; d > 0; d /= 2) {
    if (!kBroken || d >= 16) __syncthreads();  // read after write, and write after read: both sides of the sum
    if (t < d) s[t] += s[t + d];               // planted: tree_in_step
  }
  if (t == 0) *out = s[0];
}
PLANT(tree_in_step, kRace, kRacecheck, "The last steps of a tree do without barriers, as if a warp ran in step.") {
  Buffer<float> in(kThreads, index), out(1);
  (void)launch("planted", tree_in_step<kBroken>, {.block = kThreads}, in, out);
  return out.holds([](int) { return kThreads * (kThreads - 1) / 2; });
}

template <bool kBroken>
__global__ void plain_histogram(const int* keys, int* counts) {
  __shared__ int bins[4];
  const unsigned t = threadIdx.x;
  if (t < 4) bins[t] = 0;
  __syncthreads();               // read after write: the zeros
  if (kBroken) ++bins[keys[t]];  // planted: plain_histogram
  if (!kBroken) atomicAdd(&bins[keys[t]], 1);
  __syncthreads();  // read after write: everybody's counts
  if (t < 4) counts[t] = bins[t];
}
PLANT(plain_histogram, kRace, kRacecheck, "Threads count in the same bin without an atomic: counts get lost.") {
  Buffer<int> keys(kThreads, [](int i) { return i % 4; }), counts(4);
  (void)launch("planted", plain_histogram<kBroken>, {.block = kThreads}, keys, counts);
  return counts.holds([](int) { return kThreads / 4; });
}

template <bool kBroken>
__global__ void counter_set_late(int* out) {
  __shared__ int count;
  if (threadIdx.x == 0) count = 0;  // planted: counter_set_late
  if (!kBroken) __syncthreads();    // write after write: counting starts from 0
  atomicAdd(&count, 1);             // planted: counter_set_late
  __syncthreads();                  // read after write: all have counted
  if (threadIdx.x == 0) *out = count;
}
PLANT(counter_set_late, kRace, kRacecheck, "A warp counts before thread 0 has set the counter to 0.") {
  Buffer<int> out(1);
  (void)launch("planted", counter_set_late<kBroken>, {.block = kThreads}, out);
  return out.holds([](int) { return kThreads; });
}

template <bool kBroken>
__global__ void bytes_of_a_word(unsigned char* out) {
  __shared__ unsigned char flags[kThreads];
  const unsigned t = threadIdx.x, mine = kBroken ? t % 32 : t;
  flags[t] = 0;
  __syncthreads();                                 // write after write: the zeros
  flags[mine] = static_cast<unsigned char>(mine);  // planted: bytes_of_a_word
  __syncthreads();                                 // read after write: the other end's flag
  out[t] = flags[kThreads - 1 - t];
}
PLANT(bytes_of_a_word, kRace, kRacecheck,
      "Two warps write the same flags; in the twin other bytes of the same words.") {
  Buffer<unsigned char> out(kThreads);
  (void)launch("planted", bytes_of_a_word<kBroken>, {.block = kThreads}, out);
  return out.holds([](int i) { return kThreads - 1 - i; });
}

}  // namespace
}  // namespace strop::planted

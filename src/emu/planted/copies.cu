// Planted: asynchronous copies that are not waited for, or not by all; and mbarriers that count wrongly.
#include <cuda_runtime.h>

#include <cstdint>

#include "base/ptx/async_copy.cuh"
#include "base/ptx/bulk_copy.cuh"
#include "base/ptx/mbarrier.cuh"
#include "emu/planted/planted.h"

namespace strop::planted {
namespace {

constexpr int kThreads = 64;
constexpr int kTile = 4 * kThreads;  // floats: 16 bytes a thread
constexpr unsigned kTileBytes = kTile * sizeof(float);

__device__ float sum(const float4& v) { return v.x + v.y + v.z + v.w; }
// Tiles of four equal elements a thread.
int in_fours(int i) { return i / 4 % kThreads; }

// ---- cp.async -------------------------------------------------------------------------------------------------------

template <bool kBroken>
__global__ void copy_not_waited_for(const float* in, float* out) {
  __shared__ float4 s[kThreads];
  const unsigned t = threadIdx.x;
  ptx::copy_async_16(&s[t], in + 4 * t);  // planted: copy_not_waited_for
  ptx::copy_async_commit();
  if (!kBroken) ptx::copy_async_wait<0>();
  const float4 v = s[t];  // planted: copy_not_waited_for
  out[t] = sum(v);
}
PLANT(copy_not_waited_for, kCopyInFlight, kNone, "cp.async without a wait: the thread reads what was there before.") {
  Buffer<float> in(kTile, in_fours), out(kThreads);
  (void)launch("planted", copy_not_waited_for<kBroken>, {.block = kThreads}, in, out);
  return out.holds([](int i) { return 4 * i; });
}

template <bool kBroken>
__global__ void copy_not_committed(const float* in, float* out) {
  __shared__ float4 s[kThreads];
  const unsigned t = threadIdx.x;
  ptx::copy_async_16(&s[t], in + 4 * t);  // planted: copy_not_committed
  if (!kBroken) ptx::copy_async_commit();
  ptx::copy_async_wait<0>();
  const float4 v = s[t];  // planted: copy_not_committed
  out[t] = sum(v);
  if (kBroken) ptx::copy_async_commit();
}
PLANT(copy_not_committed, kCopyInFlight, kNone, "The wait is for groups, and nobody has made the copies one.") {
  Buffer<float> in(kTile, in_fours), out(kThreads);
  (void)launch("planted", copy_not_committed<kBroken>, {.block = kThreads}, in, out);
  return out.holds([](int i) { return 4 * i; });
}

template <bool kBroken>
__global__ void one_group_too_few(const float* in, float* out, int tiles) {
  __shared__ float4 s[2][kThreads];
  const int t = static_cast<int>(threadIdx.x);
  float total = 0;
  for (int i = 0; i <= tiles; ++i) {
    if (i < tiles) ptx::copy_async_16(&s[i % 2][t], in + i * kTile + 4 * t);  // planted: one_group_too_few
    ptx::copy_async_commit();
    if (i == 0) continue;
    ptx::copy_async_wait<kBroken ? 2 : 1>();
    const float4 v = s[(i - 1) % 2][t];  // planted: one_group_too_few
    total += sum(v);
  }
  out[t] = total;
}
PLANT(one_group_too_few, kCopyInFlight, kNone,
      "Two groups may be open where the tile that is used next is the second newest.") {
  Buffer<float> in(3 * kTile, in_fours), out(kThreads);
  (void)launch("planted", one_group_too_few<kBroken>, {.block = kThreads}, in, out, 3);
  return out.holds([](int i) { return 12 * i; });
}

template <bool kBroken>
__global__ void copy_of_another_thread(const float* in, float* out) {
  __shared__ float4 s[kThreads];
  const unsigned t = threadIdx.x;
  s[kThreads - 1 - t] = float4{};
  __syncthreads();                        // write after write: the mirrored zeros
  ptx::copy_async_16(&s[t], in + 4 * t);  // planted: copy_of_another_thread
  ptx::copy_async_commit();
  ptx::copy_async_wait<0>();
  if (!kBroken) __syncthreads();         // read after write: another thread's copy
  const float4 v = s[kThreads - 1 - t];  // planted: copy_of_another_thread
  out[t] = sum(v);
}
PLANT(copy_of_another_thread, kCopyInFlight, kRacecheck,
      "Each thread has waited for its own copy, and reads another's without a barrier.") {
  Buffer<float> in(kTile, in_fours), out(kThreads);
  (void)launch("planted", copy_of_another_thread<kBroken>, {.block = kThreads}, in, out);
  return out.holds([](int i) { return 4 * (kThreads - 1 - i); });
}

template <bool kBroken>
__global__ void waited_for_behind_the_barrier(const float* in, float* out) {
  __shared__ float4 s;
  if (threadIdx.x == 0) ptx::copy_async_16(&s, in);  // planted: waited_for_behind_the_barrier
  ptx::copy_async_commit();
  if (!kBroken) ptx::copy_async_wait<0>();
  __syncthreads();  // read after write: the copy
  if (kBroken) ptx::copy_async_wait<0>();
  const float4 v = s;  // planted: waited_for_behind_the_barrier
  out[threadIdx.x] = sum(v);
}
PLANT(waited_for_behind_the_barrier, kCopyInFlight, kNone,
      "First the barrier, then the wait: that is good for the copying thread alone.") {
  Buffer<float> in(4, index), out(kThreads);
  (void)launch("planted", waited_for_behind_the_barrier<kBroken>, {.block = kThreads}, in, out);
  return out.holds([](int) { return 6; });
}

template <bool kBroken>
__global__ void refilled_too_early(const float* in, float* out, int tiles) {
  __shared__ float4 s[kThreads];
  const int t = static_cast<int>(threadIdx.x);
  float total = 0;
  for (int i = 0; i < tiles; ++i) {
    ptx::copy_async_16(&s[t], in + i * kTile + 4 * t);  // planted: refilled_too_early
    ptx::copy_async_commit();
    ptx::copy_async_wait<0>();
    __syncthreads();                       // read after write: another thread's copy
    const float4 v = s[kThreads - 1 - t];  // planted: refilled_too_early
    total += sum(v);
    if (!kBroken) __syncthreads();  // write after read: the next copy overwrites it
  }
  out[t] = total;
}
PLANT(refilled_too_early, kRace, kRacecheck,
      "The next copy starts while other threads still read the tile that it overwrites.") {
  Buffer<float> in(2 * kTile, in_fours), out(kThreads);
  (void)launch("planted", refilled_too_early<kBroken>, {.block = kThreads}, in, out, 2);
  return out.holds([](int i) { return 8 * (kThreads - 1 - i); });
}

template <bool kBroken>
__global__ void source_overwritten(float* x, float* out) {
  __shared__ float4 s[kThreads];
  const unsigned t = threadIdx.x;
  ptx::copy_async_16(&s[t], x + 4 * t);  // planted: source_overwritten
  ptx::copy_async_commit();
  if (!kBroken) ptx::copy_async_wait<0>();
  x[4 * t] = -1;  // planted: source_overwritten
  if (kBroken) ptx::copy_async_wait<0>();
  out[t] = sum(s[t]);
}
PLANT(source_overwritten, kCopyInFlight, kNone,
      "A copy's source in global memory is written before the copy has been waited for.") {
  Buffer<float> x(kTile, in_fours), out(kThreads);
  (void)launch("planted", source_overwritten<kBroken>, {.block = kThreads}, x, out);
  return out.holds([](int i) { return 4 * i; });
}

// ---- Bulk loads and mbarriers ---------------------------------------------------------------------------------------

struct Tile {
  alignas(128) float values[kTile];
  std::uint64_t full;
};

// Thread 0 makes the mbarrier for one arrival a phase.
__device__ void make_full(Tile& s, unsigned count = 1) {
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(&s.full, count);
    ptx::mbarrier_fence_init();
  }
  __syncthreads();  // the mbarrier is there for all
}

template <bool kBroken>
__global__ void load_not_waited_for(const float* in, float* out) {
  Tile& s = dynamic_shared<Tile>();
  make_full(s);
  if (threadIdx.x == 0) {
    ptx::mbarrier_arrive_expect(&s.full, kTileBytes);
    ptx::bulk_load(s.values, in, kTileBytes, &s.full);  // planted: load_not_waited_for
  }
  __syncthreads();  // thread 0 has started the load
  if (!kBroken || threadIdx.x == 0) ptx::mbarrier_wait(&s.full, 0);
  out[threadIdx.x] = s.values[4 * threadIdx.x];  // planted: load_not_waited_for
}
PLANT(load_not_waited_for, kCopyInFlight, kNone,
      "Only the thread that started a bulk load waits for it; the others have but a barrier before.") {
  Buffer<float> in(kTile, in_fours), out(kThreads);
  (void)launch("planted", load_not_waited_for<kBroken>, {.block = kThreads, .shared_bytes = sizeof(Tile)}, in, out);
  return out.holds(index);
}

template <bool kBroken>
__global__ void parity_not_flipped(const float* in, float* out, int tiles) {
  Tile& s = dynamic_shared<Tile>();
  make_full(s);
  float total = 0;
  for (int i = 0; i < tiles; ++i) {
    if (threadIdx.x == 0) {
      ptx::mbarrier_arrive_expect(&s.full, kTileBytes);
      ptx::bulk_load(s.values, in + i * kTile, kTileBytes, &s.full);  // planted: parity_not_flipped
    }
    ptx::mbarrier_wait(&s.full, kBroken ? 0 : static_cast<unsigned>(i % 2));
    total += s.values[4 * threadIdx.x];  // planted: parity_not_flipped
    ptx::fence_proxy_async();
    __syncthreads();  // write after read: the next load overwrites the tile
  }
  out[threadIdx.x] = total;
}
PLANT(parity_not_flipped, kCopyInFlight, kNone,
      "The second wait is for the phase that has ended already: it returns before the load is there.") {
  Buffer<float> in(2 * kTile, in_fours), out(kThreads);
  (void)launch("planted", parity_not_flipped<kBroken>, {.block = kThreads, .shared_bytes = sizeof(Tile)}, in, out, 2);
  return out.holds([](int i) { return 2 * i; });
}

template <bool kBroken>
__global__ void wrong_stage(const float* in, float* out) {
  Tile* s = &dynamic_shared<Tile>();
  make_full(s[0]);
  make_full(s[1]);
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) {
      ptx::mbarrier_arrive_expect(&s[i].full, kTileBytes);
      ptx::bulk_load(s[i].values, in + i * kTile, kTileBytes, &s[i].full);  // planted: wrong_stage
    }
  }
  ptx::mbarrier_wait(&s[kBroken ? 1 : 0].full, 0);
  out[threadIdx.x] = s[0].values[4 * threadIdx.x];  // planted: wrong_stage
  ptx::mbarrier_wait(&s[kBroken ? 0 : 1].full, 0);
}
PLANT(wrong_stage, kCopyInFlight, kNone, "A wait for the other stage's load says nothing of this one's.") {
  Buffer<float> in(2 * kTile, in_fours), out(kThreads);
  (void)launch("planted", wrong_stage<kBroken>, {.block = kThreads, .shared_bytes = 2 * sizeof(Tile)}, in, out);
  return out.holds(index);
}

template <bool kBroken>
__global__ void expects_too_few_bytes(const float* in, float* out) {
  Tile& s = dynamic_shared<Tile>();
  make_full(s);
  if (threadIdx.x == 0) {
    ptx::mbarrier_arrive_expect(&s.full, kBroken ? kTileBytes / 2 : kTileBytes);  // planted: expects_too_few_bytes
    for (int i = 0; i < kTile; i += kTile / 2) {
      ptx::bulk_load(s.values + i, in + i, kTileBytes / 2, &s.full);  // planted: expects_too_few_bytes
    }
  }
  ptx::mbarrier_wait(&s.full, 0);
  out[threadIdx.x] = s.values[4 * threadIdx.x];
  __syncthreads();
}
PLANT(expects_too_few_bytes, kBarrierMisuse, kNone,
      "Two halves are loaded and one is expected: the phase ends before the other is there.") {
  Buffer<float> in(kTile, in_fours), out(kThreads);
  (void)launch("planted", expects_too_few_bytes<kBroken>, {.block = kThreads, .shared_bytes = sizeof(Tile)}, in, out);
  return out.holds(index);
}

template <bool kBroken>
__global__ void expects_too_many_bytes(const float* in, float* out) {
  Tile& s = dynamic_shared<Tile>();
  make_full(s);
  if (threadIdx.x == 0) {
    ptx::mbarrier_arrive_expect(&s.full, kBroken ? 2 * kTileBytes : kTileBytes);
    ptx::bulk_load(s.values, in, kTileBytes, &s.full);
  }
  ptx::mbarrier_wait(&s.full, 0);  // planted: expects_too_many_bytes
  out[threadIdx.x] = s.values[4 * threadIdx.x];
}
PLANT_THAT_HANGS(expects_too_many_bytes, kDeadlock, kNone, "The mbarrier waits for bytes that nobody sends.") {
  Buffer<float> in(kTile, in_fours), out(kThreads);
  (void)launch("planted", expects_too_many_bytes<kBroken>, {.block = kThreads, .shared_bytes = sizeof(Tile)}, in, out);
  return out.holds(index);
}

template <bool kBroken>
__global__ void too_few_arrivals(const float* in, float* out) {
  Tile& s = dynamic_shared<Tile>();
  make_full(s, kBroken ? kThreads : 1);
  if (threadIdx.x == 0) {
    ptx::mbarrier_arrive_expect(&s.full, kTileBytes);
    ptx::bulk_load(s.values, in, kTileBytes, &s.full);
  }
  ptx::mbarrier_wait(&s.full, 0);  // planted: too_few_arrivals
  out[threadIdx.x] = s.values[4 * threadIdx.x];
}
PLANT_THAT_HANGS(too_few_arrivals, kDeadlock, kNone, "The mbarrier is made for all threads, and one arrives.") {
  Buffer<float> in(kTile, in_fours), out(kThreads);
  (void)launch("planted", too_few_arrivals<kBroken>, {.block = kThreads, .shared_bytes = sizeof(Tile)}, in, out);
  return out.holds(index);
}

template <bool kBroken>
__global__ void too_many_arrivals(const float* in, float* out) {
  Tile& s = dynamic_shared<Tile>();
  make_full(s);
  if (threadIdx.x == 0) {
    ptx::mbarrier_arrive_expect(&s.full, kTileBytes);
    ptx::bulk_load(s.values, in, kTileBytes, &s.full);
  }
  __syncthreads();                             // the load is on its way
  if (kBroken) ptx::mbarrier_arrive(&s.full);  // planted: too_many_arrivals
  ptx::mbarrier_wait(&s.full, 0);
  out[threadIdx.x] = s.values[4 * threadIdx.x];
}
PLANT_THAT_HANGS(too_many_arrivals, kBarrierMisuse, kNone,
                 "All threads arrive at an mbarrier that was made for one arrival: its count is garbage.") {
  Buffer<float> in(kTile, in_fours), out(kThreads);
  (void)launch("planted", too_many_arrivals<kBroken>, {.block = kThreads, .shared_bytes = sizeof(Tile)}, in, out);
  return out.holds(index);
}

template <bool kBroken>
__global__ void mbarrier_not_made(const float* in, float* out) {
  Tile& s = dynamic_shared<Tile>();
  if (!kBroken) make_full(s);
  if (threadIdx.x == 0) {
    ptx::mbarrier_arrive_expect(&s.full, kTileBytes);  // planted: mbarrier_not_made
    ptx::bulk_load(s.values, in, kTileBytes, &s.full);
  }
  __syncthreads();  // thread 0 has started the load
  ptx::mbarrier_wait(&s.full, 0);
  out[threadIdx.x] = s.values[4 * threadIdx.x];
}
PLANT_THAT_HANGS(mbarrier_not_made, kBarrierMisuse, kNone, "An mbarrier that nobody has initialised.") {
  Buffer<float> in(kTile, in_fours), out(kThreads);
  (void)launch("planted", mbarrier_not_made<kBroken>, {.block = kThreads, .shared_bytes = sizeof(Tile)}, in, out);
  return out.holds(index);
}

template <bool kBroken>
__global__ void readers_counted(const float* in, float* out, int tiles) {
  Tile& s = dynamic_shared<Tile>();
  __shared__ unsigned readers;
  if (threadIdx.x == 0) readers = 0;
  make_full(s);
  if (threadIdx.x < 32) {  // the producer's warp
    for (int i = 0; i < tiles && threadIdx.x == 0; ++i) {
      while (i > 0 && atomicAdd(&readers, 0u) < kThreads) {
      }
      __threadfence_block();
      ptx::fence_proxy_async();
      ptx::mbarrier_arrive_expect(&s.full, kTileBytes);
      ptx::bulk_load(s.values, in + i * kTile, kTileBytes, &s.full);  // planted: readers_counted
    }
  } else {
    const unsigned t = threadIdx.x - 32;
    float total = 0;
    for (int i = 0; i < tiles; ++i) {
      ptx::mbarrier_wait(&s.full, static_cast<unsigned>(i) % 2);
      total += s.values[4 * t];  // planted: readers_counted
      if (!kBroken) __threadfence_block();
      atomicAdd(&readers, 1u);
    }
    out[t] = total;
  }
}
PLANT(readers_counted, kRace, kRacecheck,
      "The producer counts who has read its tile, but nothing orders the reads before the counting.") {
  Buffer<float> in(2 * kTile, in_fours), out(kThreads);
  (void)launch("planted", readers_counted<kBroken>, {.block = kThreads + 32, .shared_bytes = sizeof(Tile)}, in, out, 2);
  return out.holds([](int i) { return 2 * i; });
}

template <bool kBroken>
__global__ void misaligned_load(const float* in, float* out) {
  Tile& s = dynamic_shared<Tile>();
  make_full(s);
  if (threadIdx.x == 0) {
    ptx::mbarrier_arrive_expect(&s.full, kTileBytes);
    ptx::bulk_load(s.values, in, kTileBytes, &s.full);  // planted: misaligned_load
  }
  ptx::mbarrier_wait(&s.full, 0);
  out[threadIdx.x] = s.values[4 * threadIdx.x];
}
PLANT(misaligned_load, kMisaligned, kMemcheck, "A bulk load from an address that is no multiple of 16.") {
  Buffer<float> in(kTile + 4, [](int i) { return i / 4 - 1; }), out(kThreads);
  const float* from = static_cast<const float*>(in) + (kBroken ? 3 : 4);
  (void)launch("planted", misaligned_load<kBroken>, {.block = kThreads, .shared_bytes = sizeof(Tile)}, from, out);
  return out.holds(index);
}

// ---- Bulk stores ----------------------------------------------------------------------------------------------------

template <bool kBroken>
__global__ void store_source_overwritten(float* out, int tiles) {
  Tile& s = dynamic_shared<Tile>();
  for (int i = 0; i < tiles; ++i) {
    const unsigned t = 4 * threadIdx.x;
    for (int k = 0; k < 4; ++k) s.values[t + k] = static_cast<float>(i);  // planted: store_source_overwritten
    ptx::fence_proxy_async();
    __syncthreads();  // read after write: the store reads everybody's
    if (threadIdx.x == 0) {
      ptx::bulk_store(out + i * kTile, s.values, kTileBytes);  // planted: store_source_overwritten
      ptx::bulk_store_commit();
      if (!kBroken) ptx::bulk_store_wait_read<0>();
    }
    __syncthreads();  // write after read: the store has read the tile
  }
  if (threadIdx.x == 0) ptx::bulk_store_wait<0>();
}
PLANT(store_source_overwritten, kCopyInFlight, kNone, "The tile is filled anew while the copy engine still reads it.") {
  Buffer<float> out(2 * kTile);
  (void)launch("planted", store_source_overwritten<kBroken>, {.block = kThreads, .shared_bytes = sizeof(Tile)}, out, 2);
  return out.holds([](int i) { return i / kTile; });
}

template <bool kBroken>
__global__ void store_left_behind(float* out) {
  Tile& s = dynamic_shared<Tile>();
  for (int k = 0; k < 4; ++k) s.values[4 * threadIdx.x + k] = 1;
  ptx::fence_proxy_async();
  __syncthreads();  // read after write: the store reads everybody's
  if (threadIdx.x == 0) {
    ptx::bulk_store(out, s.values, kTileBytes);  // planted: store_left_behind
    ptx::bulk_store_commit();
    if (!kBroken) ptx::bulk_store_wait_read<0>();
  }
}
PLANT(store_left_behind, kCopyInFlight, kNone, "The block exits while the copy engine still reads its shared memory.") {
  Buffer<float> out(kTile);
  (void)launch("planted", store_left_behind<kBroken>, {.block = kThreads, .shared_bytes = sizeof(Tile)}, out);
  return out.holds([](int) { return 1; });
}

template <bool kBroken>
__global__ void store_read_back(float* x, float* out) {
  Tile& s = dynamic_shared<Tile>();
  for (int k = 0; k < 4; ++k) s.values[4 * threadIdx.x + k] = static_cast<float>(threadIdx.x);
  ptx::fence_proxy_async();
  __syncthreads();  // read after write: the store reads everybody's
  if (threadIdx.x == 0) {
    ptx::bulk_store(x, s.values, kTileBytes);  // planted: store_read_back
    ptx::bulk_store_commit();
    if (kBroken) ptx::bulk_store_wait_read<0>();
    if (!kBroken) ptx::bulk_store_wait<0>();
  }
  __syncthreads();                        // read after write: what the store has brought
  out[threadIdx.x] = x[4 * threadIdx.x];  // planted: store_read_back
}
PLANT(store_read_back, kCopyInFlight, kNone,
      "That a store's source has been read does not mean that its bytes are there.") {
  Buffer<float> x(kTile, zero), out(kThreads);
  (void)launch("planted", store_read_back<kBroken>, {.block = kThreads, .shared_bytes = sizeof(Tile)}, x, out);
  return out.holds(index);
}

}  // namespace
}  // namespace strop::planted

// What emulated device code calls: the CUDA names of src/emu/cuda and the PTX wrappers of src/base/ptx end here. All of
// it is compiled without instrumentation; memory that it touches for a kernel it checks itself.
//
// The line that a report names is that of the call: functions take it from their return address, so the wrappers around
// them must be inlined (__forceinline__).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace strop::emu {

// ---- Where the calling thread is. Constant for a thread, so that a compiler may ask once.
// ----------------------------

struct Dim3 {
  unsigned x, y, z;
};
[[gnu::const]] Dim3 thread_index();
[[gnu::const]] Dim3 block_index();
[[gnu::const]] Dim3 block_size();
[[gnu::const]] Dim3 grid_size();
[[gnu::const]] unsigned lane_index();
[[gnu::const]] unsigned cluster_size();  // blocks
[[gnu::const]] unsigned cluster_rank();  // of this block in its cluster

// ---- Memory ---------------------------------------------------------------------------------------------------------

enum class Op : std::uint8_t {
  kRead,
  kWrite,
  kReadOnly,    // through the read-only cache: nobody may write the bytes during the launch
  kAtomicRead,  // of one location; volatile accesses as well. They race with plain accesses only
  kAtomicWrite,
  kPoll,  // an atomic read of what may not have been written yet
  kCopy,  // a write by an asynchronous copy
};

// Checks an access of `bytes` at `p`, aligned to its size, by the calling thread, and makes it: where the compiler does
// not see it, which would have it checked and counted once more.
void load(void* to, const void* p, std::size_t bytes, Op op);
void store(void* p, const void* from, std::size_t bytes, Op op);

template <class T>
[[gnu::always_inline]] inline T load(const void* p, Op op = Op::kRead) {
  T v;
  load(&v, p, sizeof(T), op);
  return v;
}
template <class T>
[[gnu::always_inline]] inline void store(void* p, const T& v, Op op = Op::kWrite) {
  store(p, &v, sizeof(T), op);
}

// A prefetch: reads nothing, but its address must be one.
void check_prefetch(const void* p, std::size_t bytes);

// The block's dynamic shared memory, and where an address in this block's shared memory lies in block `rank` of the
// cluster.
[[gnu::const]] void* dynamic_shared();
void* map_shared(const void* p, unsigned rank);

// ---- Order ----------------------------------------------------------------------------------------------------------

// Barrier `id` of the block over `threads` of its threads (0: all). `sync` waits; a thread that only arrives goes on.
void block_barrier_sync(unsigned id, unsigned threads);
void block_barrier_arrive(unsigned id, unsigned threads);
void cluster_arrive();
void cluster_wait();
std::uint64_t grid_arrive();
void grid_wait(std::uint64_t arrival);

enum class Scope : std::uint8_t { kBlock, kGpu };
void fence(Scope scope);

// An atomic operation: replaces `bytes` (4, 8 or 2) at `p` by what `apply(old, context)` makes of them, and returns the
// old ones. `order` says whether it also releases or acquires by itself; relaxed ones need fences around them.
enum class MemoryOrder : std::uint8_t { kRelaxed, kAcquire, kRelease, kAcquireRelease };
std::uint64_t atomic(void* p, std::size_t bytes, MemoryOrder order, std::uint64_t (*apply)(std::uint64_t, const void*),
                     const void* context);
// The same of memory that may hold anything: the old bytes need not have been written.
std::uint64_t atomic_unwritten(void* p, std::size_t bytes, MemoryOrder order,
                               std::uint64_t (*apply)(std::uint64_t, const void*), const void* context);
// The same, where nothing is read: the four bytes may be uninitialised.
void atomic_store(void* p, std::uint32_t value, MemoryOrder order);
// Relaxed atomic accesses of `bytes`, aligned to their size, which order nothing else. A poll may find anything, also
// what nobody has written, and lets other threads run.
void send(void* p, const void* from, std::size_t bytes);
void poll(void* to, const void* p, std::size_t bytes);

// ---- Warps ----------------------------------------------------------------------------------------------------------

// The lanes of `mask` meet: once all have called with the same mask and `what`, `complete` runs once with each lane's
// payload (null outside the mask), and all go on. Memory is ordered where `orders_memory`.
void warp_meet(const char* what, unsigned mask, void* payload, void (*complete)(void* const* payloads, unsigned mask),
               bool orders_memory = false);
// A shuffle has read from a lane that did not take part.
void report_shuffle(const char* what, unsigned mask, unsigned source);

}  // namespace strop::emu

// Copies of whole stretches between global and shared memory, started by one thread and made by the copy engine
// (cp.async.bulk, sm_90). Addresses and sizes are multiples of 16. Below sm_90 the bodies are empty so that the same
// kernel compiles.
//
// The engine sees shared memory by another way than threads do (the async proxy): between what threads wrote there and
// a copy that reads it or writes over it lie fence_proxy_async, by each thread that wrote, and then a barrier.
#pragma once

#include <cstdint>

#include "base/ptx/emulated.cuh"
#include "base/ptx/shared_address.cuh"

#if STROP_EMULATED
#include "emu/async.h"
#endif

namespace strop::ptx {

// cp.async.bulk into shared memory. The mbarrier counts the bytes; who waits for its phase sees them.
__device__ __forceinline__ void bulk_load(void* shared, const void* global, std::uint32_t bytes,
                                          std::uint64_t* mbarrier) {
#if STROP_EMULATED
  emu::bulk_load(shared, global, bytes, mbarrier);
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  const std::uint32_t to = shared_address(shared), counter = shared_address(mbarrier);
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(global), "r"(bytes), "r"(counter)
               : "memory");
#endif
}

// cp.async.bulk out of shared memory, in groups as those of cp.async.
__device__ __forceinline__ void bulk_store(void* global, const void* shared, std::uint32_t bytes) {
#if STROP_EMULATED
  emu::bulk_store(global, shared, bytes);
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global), "r"(shared_address(shared)),
               "r"(bytes)
               : "memory");
#endif
}
// cp.async.bulk.commit_group: this thread's bulk stores since the last one become a group.
__device__ __forceinline__ void bulk_store_commit() {
#if STROP_EMULATED
  emu::bulk_store_commit();
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#endif
}
// cp.async.bulk.wait_group: until all of this thread's groups but the `kNewest` newest are in global memory.
template <int kNewest>
__device__ __forceinline__ void bulk_store_wait() {
#if STROP_EMULATED
  emu::bulk_store_wait(kNewest, false);
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kNewest) : "memory");
#endif
}
// cp.async.bulk.wait_group.read: until they have been read from shared memory, which may then be written or given up.
template <int kNewest>
__device__ __forceinline__ void bulk_store_wait_read() {
#if STROP_EMULATED
  emu::bulk_store_wait(kNewest, true);
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kNewest) : "memory");
#endif
}

// fence.proxy.async: bulk copies see what this thread did in shared memory before. The emulator does not check for it:
// a kernel that lacks it passes there.
__device__ __forceinline__ void fence_proxy_async() {
#if STROP_EMULATED
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

}  // namespace strop::ptx

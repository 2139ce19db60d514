// Copies from global to shared memory that the thread does not wait for (cp.async, sm_80). Both addresses are multiples
// of the size. What a copy brings is there for the thread that started it once that has waited for the copy's group,
// and for others after a barrier behind the wait.
#pragma once

#include <cstdint>

#include "base/ptx/emulated.cuh"
#include "base/ptx/shared_address.cuh"

#if STROP_EMULATED
#include "emu/async.h"
#endif

namespace strop::ptx {

// cp.async.ca: 4 bytes, by way of L1.
__device__ __forceinline__ void copy_async_4(void* shared, const void* global) {
#if STROP_EMULATED
  emu::copy_async(shared, global, 4, 4);
#else
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(shared)), "l"(global) : "memory");
#endif
}
// cp.async.ca: 8 bytes, by way of L1.
__device__ __forceinline__ void copy_async_8(void* shared, const void* global) {
#if STROP_EMULATED
  emu::copy_async(shared, global, 8, 8);
#else
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(shared_address(shared)), "l"(global) : "memory");
#endif
}
// cp.async.cg: 16 bytes, past L1.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global) {
#if STROP_EMULATED
  emu::copy_async(shared, global, 16, 16);
#else
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
#endif
}
// cp.async.cg with src-size: the first `source_bytes` (0 to 16) from `global`, zeros behind them.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global, std::uint32_t source_bytes) {
#if STROP_EMULATED
  emu::copy_async(shared, global, 16, source_bytes);
#else
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(source_bytes)
               : "memory");
#endif
}

// cp.async.commit_group: this thread's copies since the last one become a group, an empty one if there are none.
__device__ __forceinline__ void copy_async_commit() {
#if STROP_EMULATED
  emu::copy_async_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// cp.async.wait_group: until all of this thread's groups but the `kNewest` newest are there.
template <int kNewest>
__device__ __forceinline__ void copy_async_wait() {
#if STROP_EMULATED
  emu::copy_async_wait(kNewest);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(kNewest) : "memory");
#endif
}

}  // namespace strop::ptx

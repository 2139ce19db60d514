// Words in global memory by which threads of different blocks hand over other memory: what a thread did before a
// release is seen by who acquires what it left. Barriers around them extend that to the blocks of both.
#pragma once

#include <cstdint>

#include "base/ptx/emulated.cuh"

namespace strop::ptx {

// ld.acquire.gpu
__device__ __forceinline__ std::uint32_t load_acquire_u32(const std::uint32_t* p) {
#if STROP_EMULATED
  return static_cast<std::uint32_t>(
      emu::atomic(const_cast<std::uint32_t*>(p), sizeof *p, emu::MemoryOrder::kAcquire, nullptr, nullptr));
#else
  std::uint32_t v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
#endif
}

// st.release.gpu
__device__ __forceinline__ void store_release_u32(std::uint32_t* p, std::uint32_t v) {
#if STROP_EMULATED
  emu::atomic_store(p, v, emu::MemoryOrder::kRelease);
#else
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
#endif
}

#if STROP_EMULATED
__device__ __forceinline__ std::uint32_t add_u32(std::uint32_t* p, std::uint32_t v, emu::MemoryOrder order) {
  return static_cast<std::uint32_t>(emu::atomic(
      p, sizeof *p, order,
      [](std::uint64_t old, const void* more) -> std::uint64_t {
        return old + *static_cast<const std::uint32_t*>(more);
      },
      &v));
}
#endif

// red.release.gpu.add: *p += v.
__device__ __forceinline__ void add_release_u32(std::uint32_t* p, std::uint32_t v) {
#if STROP_EMULATED
  add_u32(p, v, emu::MemoryOrder::kRelease);
#else
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
#endif
}

// atom.acq_rel.gpu.add: *p += v; returns what was there.
__device__ __forceinline__ std::uint32_t add_acquire_release_u32(std::uint32_t* p, std::uint32_t v) {
#if STROP_EMULATED
  return add_u32(p, v, emu::MemoryOrder::kAcquireRelease);
#else
  std::uint32_t old;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(v) : "memory");
  return old;
#endif
}

}  // namespace strop::ptx

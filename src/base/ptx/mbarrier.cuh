// Barriers in shared memory that count arrivals, and bytes of asynchronous copies: mbarriers (sm_80; bytes, sm_90).
//
// A phase ends when `count` arrivals and all bytes expected have come; the next begins at once. Waits name a phase by
// its parity, 0 for the first: they return once it has ended. Before the first one ends, a wait for parity 1 returns
// too, so that a producer may start with it. What came before arrivals and what the copies brought is seen after the
// wait.
#pragma once

#include <cstdint>

#include "base/ptx/emulated.cuh"
#include "base/ptx/shared_address.cuh"

#if STROP_EMULATED
#include "emu/async.h"
#endif

namespace strop::ptx {

// mbarrier.init: by one thread; the others may use it after mbarrier_fence_init and a barrier of the block.
__device__ __forceinline__ void mbarrier_init(std::uint64_t* barrier, unsigned count) {
#if STROP_EMULATED
  emu::mbarrier_init(barrier, count);
#else
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
#endif
}

// fence.mbarrier_init (sm_90): bulk copies and other blocks of the cluster see what the thread initialised. The
// emulator does not check for it. Nothing below sm_90, where both do not exist.
__device__ __forceinline__ void mbarrier_fence_init() {
#if STROP_EMULATED
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

// mbarrier.arrive: one arrival.
__device__ __forceinline__ void mbarrier_arrive(std::uint64_t* barrier) {
#if STROP_EMULATED
  emu::mbarrier_arrive(barrier, 1, 0);
#else
  asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared.b64 state, [%0];\n}" ::"r"(shared_address(barrier))
               : "memory");
#endif
}

// mbarrier.arrive.expect_tx (sm_90): one arrival, and the phase waits for `bytes` of copies as well.
__device__ __forceinline__ void mbarrier_arrive_expect(std::uint64_t* barrier, std::uint32_t bytes) {
#if STROP_EMULATED
  emu::mbarrier_arrive(barrier, 1, bytes);
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  const std::uint32_t at = shared_address(barrier);
  asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1;\n}" ::"r"(at),
               "r"(bytes)
               : "memory");
#endif
}

// mbarrier.expect_tx (sm_90): the same without the arrival, which must follow in the same phase.
__device__ __forceinline__ void mbarrier_expect(std::uint64_t* barrier, std::uint32_t bytes) {
#if STROP_EMULATED
  emu::mbarrier_arrive(barrier, 0, bytes);
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
#endif
}

// mbarrier.test_wait: whether the phase of that parity has ended; if so, as after a wait.
__device__ __forceinline__ bool mbarrier_test(std::uint64_t* barrier, unsigned parity) {
#if STROP_EMULATED
  return emu::mbarrier_test(barrier, parity);
#else
  std::uint32_t ended;
  asm volatile(
      "{\n.reg .pred p;\n"
      "mbarrier.test_wait.parity.shared.b64 p, [%1], %2;\n"
      "selp.b32 %0, 1, 0, p;\n}"
      : "=r"(ended)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
  return ended != 0;
#endif
}

// mbarrier.try_wait in a loop: until the phase of that parity has ended. The instruction lets the thread sleep for a
// while; below sm_90 it does not exist, and mbarrier.test_wait spins.
__device__ __forceinline__ void mbarrier_wait(std::uint64_t* barrier, unsigned parity) {
#if STROP_EMULATED
  emu::mbarrier_wait(barrier, parity);
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  std::uint32_t ended;
  do {
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.b32 %0, 1, 0, p;\n}"
        : "=r"(ended)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  } while (ended == 0);
#else
  while (!mbarrier_test(barrier, parity)) {
  }
#endif
}

}  // namespace strop::ptx

// Thread-block clusters and distributed shared memory (sm_90). Below sm_90 a cluster is one block, these are never
// reached, and the bodies are empty so that the same kernel compiles.
#pragma once

#include <cstdint>

#include "base/ptx/emulated.cuh"

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define STROP_HAS_CLUSTERS 1
#else
#define STROP_HAS_CLUSTERS 0
#endif

namespace strop::ptx {

// barrier.cluster: all threads of all blocks of the cluster. Shared-memory writes before the arrival are seen by every
// block after the wait.
__device__ __forceinline__ void cluster_arrive() {
#if STROP_EMULATED
  emu::cluster_arrive();
#elif STROP_HAS_CLUSTERS
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_wait() {
#if STROP_EMULATED
  emu::cluster_wait();
#elif STROP_HAS_CLUSTERS
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// Writes v to where `p`, an address in this block's shared memory, lies in block `rank` of the cluster.
__device__ __forceinline__ void store_cluster_f32(float* p, std::uint32_t rank, float v) {
#if STROP_EMULATED
  emu::store(emu::map_shared(p, rank), v);
#elif STROP_HAS_CLUSTERS
  const std::uint32_t local = static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
  std::uint32_t remote;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(local), "r"(rank));
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(remote), "f"(v) : "memory");
#endif
}

}  // namespace strop::ptx

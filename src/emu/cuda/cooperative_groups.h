// The part of cooperative groups that kernels use, for the emulator.
#pragma once

#include "cuda_runtime.h"

namespace cooperative_groups {

class thread_block {
 public:
  __device__ __forceinline__ void sync() const { ::strop::emu::block_barrier_sync(0, 0); }
  __device__ __forceinline__ unsigned thread_rank() const {
    const auto i = ::strop::emu::thread_index();
    const auto n = ::strop::emu::block_size();
    return i.x + n.x * (i.y + n.y * i.z);
  }
  __device__ __forceinline__ unsigned size() const {
    const auto n = ::strop::emu::block_size();
    return n.x * n.y * n.z;
  }
};
__device__ __forceinline__ thread_block this_thread_block() { return {}; }

class grid_group {
 public:
  using arrival_token = std::uint64_t;
  __device__ __forceinline__ arrival_token barrier_arrive() const { return ::strop::emu::grid_arrive(); }
  __device__ __forceinline__ void barrier_wait(arrival_token&& token) const { ::strop::emu::grid_wait(token); }
  __device__ __forceinline__ void sync() const { ::strop::emu::grid_wait(::strop::emu::grid_arrive()); }
};
__device__ __forceinline__ grid_group this_grid() { return {}; }

class cluster_group {
 public:
  __device__ __forceinline__ void barrier_arrive() const { ::strop::emu::cluster_arrive(); }
  __device__ __forceinline__ void barrier_wait() const { ::strop::emu::cluster_wait(); }
  __device__ __forceinline__ void sync() const { ::strop::emu::cluster_arrive(), ::strop::emu::cluster_wait(); }
  __device__ __forceinline__ unsigned block_rank() const { return ::strop::emu::cluster_rank(); }
  __device__ __forceinline__ unsigned num_blocks() const { return ::strop::emu::cluster_size(); }
  template <class T>
  __device__ __forceinline__ T* map_shared_rank(T* p, unsigned rank) const {
    return static_cast<T*>(::strop::emu::map_shared(p, rank));
  }
};
__device__ __forceinline__ cluster_group this_cluster() { return {}; }

}  // namespace cooperative_groups

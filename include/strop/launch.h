// strop::launch: how every kernel of this library is started. Kernels never use <<<>>>, so that the same source can be
// compiled for a launcher that runs it elsewhere than on a GPU.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <string>

#include "strop/status.h"

#ifndef STROP_EMULATED
#define STROP_EMULATED 0  // 1 where kernels are compiled for the CPU (strop/emu.h)
#endif

namespace strop {

struct LaunchConfig {
  unsigned grid = 1;
  unsigned block = 1;            // threads
  std::size_t shared_bytes = 0;  // dynamic shared memory; above 48 KiB the kernel must have been allowed it
  cudaStream_t stream = nullptr;
  unsigned cluster = 1;      // blocks a cluster, sm_90
  bool cooperative = false;  // all blocks run at once, so that they may wait for each other
  // sm_90, not with `cooperative`: blocks may begin while the kernel before them on the stream still runs; the kernel
  // begins with ptx::wait_for_previous_kernel.
  bool overlaps = false;
};

// Starts kernel(args…) and returns without waiting for it.
template <class... Params, class... Args>
Status launch(const char* name, void (*kernel)(Params...), const LaunchConfig& config, Args&&... args) {
  cudaLaunchConfig_t c = {};
  c.gridDim = dim3(config.grid);
  c.blockDim = dim3(config.block);
  c.dynamicSmemBytes = config.shared_bytes;
  c.stream = config.stream;
  cudaLaunchAttribute attributes[3];
  c.attrs = attributes;
  if (config.cooperative) {
    attributes[c.numAttrs].id = cudaLaunchAttributeCooperative;
    attributes[c.numAttrs++].val.cooperative = 1;
  }
  if (config.cluster > 1) {
    attributes[c.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[c.numAttrs++].val.clusterDim = {config.cluster, 1, 1};
  }
#if !STROP_EMULATED
  if (config.overlaps) {
    attributes[c.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[c.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
  }
#endif
  const cudaError_t error = cudaLaunchKernelEx(&c, kernel, Params(static_cast<Args&&>(args))...);
  if (error == cudaSuccess) return {};
  (void)cudaGetLastError();  // it is reported here; the next caller must not find it
  return Status(StatusCode::kRuntimeError, std::string(name) +
                                               ": CUDA refused the launch: " + cudaGetErrorString(error) + " (grid " +
                                               std::to_string(config.grid) + ", block " + std::to_string(config.block) +
                                               ", cluster " + std::to_string(config.cluster) + ", shared memory " +
                                               std::to_string(config.shared_bytes) + " bytes)");
}

// The block's dynamic shared memory, laid out as T.
template <class T>
__device__ __forceinline__ T& dynamic_shared() {
#if STROP_EMULATED
  return *static_cast<T*>(emu::dynamic_shared());
#else
  extern __shared__ __align__(16) unsigned char strop_dynamic_shared[];
  return *reinterpret_cast<T*>(strop_dynamic_shared);
#endif
}

}  // namespace strop

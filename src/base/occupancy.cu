#include <cuda_runtime.h>

#include <array>
#include <string>

#include "base/occupancy.h"

namespace strop {
namespace {

struct Query {
  int device = -1;
  const void* kernel = nullptr;
  int block = 0;
  std::size_t shared_bytes = 0;
  bool operator==(const Query&) const = default;
};

cudaError_t ask(const DeviceInfo& device, const Query& q, int* blocks) {
  // Always the most: the attribute is the kernel's, not the launch's, and other shapes use the same kernel.
  cudaError_t e = cudaFuncSetAttribute(q.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       static_cast<int>(device.shared_bytes_per_block));
  if (e != cudaSuccess) return e;
  int per_multiprocessor = 0;
  e = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, q.kernel, q.block, q.shared_bytes);
  *blocks = per_multiprocessor * device.multiprocessors;
  return e;
}

}  // namespace

Status resident_blocks(const DeviceInfo& device, const void* kernel, int block, std::size_t shared_bytes, int* blocks) {
  struct Known {
    Query query;
    int blocks = 0;
  };
  thread_local std::array<Known, 16> known;
  thread_local std::size_t next = 0;
  const Query q{device.index, kernel, block, shared_bytes};
  for (const Known& k : known) {
    if (k.query == q) {
      *blocks = k.blocks;
      return {};
    }
  }
  if (const cudaError_t e = ask(device, q, blocks); e != cudaSuccess || *blocks < 1) {
    (void)cudaGetLastError();
    return Status(StatusCode::kRuntimeError, std::string("no block of the kernel fits on ") + device.name + ": " +
                                                 cudaGetErrorString(e) + " (block " + std::to_string(block) +
                                                 ", shared memory " + std::to_string(shared_bytes) + " bytes)");
  }
  known[next++ % known.size()] = {q, *blocks};
  return {};
}

}  // namespace strop

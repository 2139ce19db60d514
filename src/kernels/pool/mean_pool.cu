#include <algorithm>
#include <cstdint>

#include "base/device.h"
#include "kernels/pool/mean_pool.cuh"

namespace strop::pool {
namespace {

using Kernel = void (*)(Args);

// That every token starts at a multiple of 16 bytes, whatever the number of sequences: the sums of one by itself are
// then those of the same one among others.
bool is_dense(const Problem& p, int bytes) {
  const bool sequences = p.cu.data != nullptr || p.stride_sequence * bytes % 16 == 0;
  return p.stride == 1 && p.n * bytes % 16 == 0 && reinterpret_cast<std::uintptr_t>(p.x) % 16 == 0 &&
         p.stride_token * bytes % 16 == 0 && sequences;
}

}  // namespace

Status run_cuda(const Problem& p, void* stream) {
  const DeviceInfo* device;
  if (Status s = current_device_info(&device); !s.ok()) return s;
  const int bytes = float_bytes(p.dtype), elements = is_dense(p, bytes) ? 16 / bytes : 1;
  const std::int64_t columns = lanes_a_token(elements) * elements;
  Args args;
  args.p = p;
  args.tiles = (p.n + columns - 1) / columns;

  LaunchConfig config;
  const std::int64_t most = std::int64_t{device->multiprocessors} * kBlocksPerMultiprocessor;
  config.grid = static_cast<unsigned>(std::min(p.sequences * args.tiles, most));
  config.block = 32 * kWarps;
  config.shared_bytes = elements == 1 ? sizeof(Shared<1>) : elements == 4 ? sizeof(Shared<4>) : sizeof(Shared<8>);
  config.stream = static_cast<cudaStream_t>(stream);
  config.overlaps = device->capability >= 90;
  const Kernel kernel = elements == 8   ? mean_pool_kernel<8, 2>
                        : elements == 4 ? mean_pool_kernel<4, 4>
                        : bytes == 2    ? mean_pool_kernel<1, 2>
                                        : mean_pool_kernel<1, 4>;
  return launch("mean_pool", kernel, config, args);
}

}  // namespace strop::pool

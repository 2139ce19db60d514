#include <algorithm>
#include <cstdint>

#include "base/device.h"
#include "base/occupancy.h"
#include "kernels/ragged/token_index.cuh"

namespace strop::ragged {

Status run_cuda(const Problem& p, void* stream) {
  const DeviceInfo* device;
  if (Status s = current_device_info(&device); !s.ok()) return s;
  int blocks = 1;
  if (p.positions() > kOneBlock) {
    const void* const kernel = reinterpret_cast<const void*>(token_index_kernel);
    if (Status s = resident_blocks(*device, kernel, kMaxThreads, sizeof(Shared), &blocks); !s.ok()) return s;
  }
  const Tuning tuning = tune(p.positions(), blocks);
  Args args;
  args.p = p;
  args.format = mask_format(p.mask.dtype);
  args.vectors = args.format.bytes == 1 && p.mask.stride == 1 &&
                 (p.mask.stride_sequence == p.length || p.sequences < 2) &&
                 reinterpret_cast<std::uintptr_t>(p.mask.data) % 16 == 0;
  args.part = tuning.part;

  LaunchConfig config;
  config.grid = static_cast<unsigned>(tuning.parts);
  config.block = static_cast<unsigned>(tuning.block);
  config.shared_bytes = sizeof(Shared);
  config.stream = static_cast<cudaStream_t>(stream);
  config.cooperative = tuning.parts > 1;
  config.overlaps = device->capability >= 90 && !config.cooperative;
  return launch("token_index", token_index_kernel, config, args);
}

}  // namespace strop::ragged

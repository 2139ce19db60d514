#include "base/device.h"
#include "kernels/ragged/pack_starts.cuh"

namespace strop::ragged {

Status run_cuda(const PackStarts& p, void* stream) {
  const DeviceInfo* device;
  if (Status s = current_device_info(&device); !s.ok()) return s;
  LaunchConfig config;
  config.grid = static_cast<unsigned>(p.most / kStartsThreads + 1);  // of most + 1 numbers
  config.block = kStartsThreads;
  config.stream = static_cast<cudaStream_t>(stream);
  config.overlaps = device->capability >= 90;
  return launch("pack_starts", pack_starts_kernel, config, p);
}

}  // namespace strop::ragged

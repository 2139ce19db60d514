#include <algorithm>
#include <cstdint>

#include "base/device.h"
#include "kernels/ragged/pack_tokens.cuh"
#include "kernels/ragged/unit.h"

namespace strop::ragged {
namespace {

constexpr std::int64_t kBlocksPerMultiprocessor = 16;

int unit_bytes(const TokenPart& in) {
  const auto all = reinterpret_cast<std::uintptr_t>(in.x) | reinterpret_cast<std::uintptr_t>(in.out) |
                   static_cast<std::uintptr_t>(in.stride_row) | static_cast<std::uintptr_t>(in.row_bytes);
  return unit_dividing(all);
}

}  // namespace

Status run_cuda(const MoveTokens& p, void* stream) {
  const DeviceInfo* device;
  if (Status s = current_device_info(&device); !s.ok()) return s;
  PackArgs args;
  args.p = p;
  args.starts_blocks = p.cu_out != nullptr ? static_cast<int>(p.most / kPackThreads + 1) : 0;  // of most + 1 numbers
  int blocks = args.starts_blocks;
  for (int k = 0; k < p.parts; ++k) {
    args.unit[k] = unit_bytes(p.part[k]);
    args.units[k] = p.part[k].row_bytes / args.unit[k];
    const std::int64_t wanted = (p.part[k].count * args.units[k] + kPackThreads - 1) / kPackThreads;
    args.blocks[k] = static_cast<int>(std::min(wanted, kBlocksPerMultiprocessor * device->multiprocessors));
    blocks += args.blocks[k];
  }
  if (blocks == 0) return {};
  LaunchConfig config;
  config.grid = static_cast<unsigned>(blocks);
  config.block = kPackThreads;
  config.stream = static_cast<cudaStream_t>(stream);
  config.overlaps = device->capability >= 90;
  return launch("pack_tokens", pack_tokens_kernel, config, args);
}

}  // namespace strop::ragged

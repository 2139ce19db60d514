#include <algorithm>
#include <cstdint>
#include <string>

#include "base/device.h"
#include "kernels/ragged/take_rows.cuh"
#include "kernels/ragged/unit.h"

namespace strop::ragged {
namespace {

using Kernel = void (*)(TakeArgs);

int unit_bytes(const TakeRows& p) {
  if (p.n > 1 && (p.x.stride != 1 || p.out.stride != 1)) return p.bytes;
  std::uintptr_t all = static_cast<std::uintptr_t>(p.n * p.bytes);
  for (const Rows& m : {p.x, p.out})
    all |= reinterpret_cast<std::uintptr_t>(m.data) | static_cast<std::uintptr_t>(m.stride_row * p.bytes);
  return unit_dividing(all);
}

}  // namespace

Status run_cuda(const TakeRows& p, void* stream) {
  const DeviceInfo* device;
  if (Status s = current_device_info(&device); !s.ok()) return s;
  const int unit = unit_bytes(p);
  const std::int64_t units = p.n * p.bytes / unit;
  if (units > kMaxUnits) {
    return Status(StatusCode::kValueError, "x: expected rows of at most 2^30 pieces of " + std::to_string(unit) +
                                               " bytes on CUDA, got " + std::to_string(units));
  }
  TakeArgs args;
  args.p = p;
  args.units = static_cast<int>(units);
  args.x_step = unit == p.bytes ? p.x.stride * p.bytes : unit;
  args.out_step = unit == p.bytes ? p.out.stride * p.bytes : unit;
  args.rows_a_block = tune_take(units).rows_a_block;

  LaunchConfig config;
  const std::int64_t blocks = (p.rows + args.rows_a_block - 1) / args.rows_a_block;
  const std::int64_t most = std::int64_t{device->multiprocessors} * kBlocksPerMultiprocessor;
  config.grid = static_cast<unsigned>(std::min(blocks, most));
  config.block = kTakeThreads;
  config.stream = static_cast<cudaStream_t>(stream);
  config.overlaps = device->capability >= 90;
  const Kernel kernel = unit == 16  ? take_rows_kernel<uint4>
                        : unit == 8 ? take_rows_kernel<uint2>
                        : unit == 4 ? take_rows_kernel<std::uint32_t>
                        : unit == 2 ? take_rows_kernel<std::uint16_t>
                                    : take_rows_kernel<std::uint8_t>;
  return launch("take_rows", kernel, config, args);
}

}  // namespace strop::ragged

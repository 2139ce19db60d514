#include <algorithm>
#include <cstdint>
#include <string>

#include "base/device.h"
#include "kernels/rotary/rotary.cuh"

namespace strop::rotary {
namespace {

using Kernel = void (*)(Args);

// That every slot of kE elements starts at a multiple of its size.
bool is_dense(const Problem& p, int elements) {
  const auto aligned = [&](const void* data, std::int64_t stride, int bytes) {
    return reinterpret_cast<std::uintptr_t>(data) % static_cast<std::uintptr_t>(bytes) == 0 && stride == 1;
  };
  const auto heads = [&](const Heads& m) {
    return aligned(m.data, m.stride, 16) && m.stride_token % elements == 0 && m.stride_head % elements == 0;
  };
  const auto table = [&](const Table& t) {
    return aligned(t.data, t.stride, std::min(16, elements * float_bytes(t.dtype))) && t.stride_row % elements == 0;
  };
  return !p.neighbours && p.r / 2 % elements == 0 && (p.d - p.r) % elements == 0 && heads(p.x) && heads(p.out) &&
         table(p.cos) && table(p.sin);
}

}  // namespace

Status run_cuda(const Problem& p, void* stream) {
  const DeviceInfo* device;
  if (Status s = current_device_info(&device); !s.ok()) return s;
  if (p.heads * p.d > std::int64_t{1} << 30) {
    return Status(StatusCode::kValueError,
                  "x: expected at most 2^30 elements a token on CUDA, got " + std::to_string(p.heads * p.d));
  }
  const int most = 16 / float_bytes(p.dtype), elements = is_dense(p, most) ? most : 1;
  Args args;
  args.p = p;
  args.pair_slots = static_cast<int>(p.r / 2 / elements);
  args.slots = args.pair_slots + (p.out.data == p.x.data ? 0 : static_cast<int>((p.d - p.r) / elements));
  args.tuning = tune(args.slots * static_cast<int>(p.heads));

  constexpr std::int64_t kBlocksPerMultiprocessor =
      64;  // more than run at once by far; beyond, blocks take more tokens
  LaunchConfig config;
  const std::int64_t blocks = (p.tokens + args.tuning.tokens_a_block - 1) / args.tuning.tokens_a_block;
  config.grid =
      static_cast<unsigned>(std::min(blocks, std::int64_t{device->multiprocessors} * kBlocksPerMultiprocessor));
  config.block = static_cast<unsigned>(args.tuning.block);
  config.stream = static_cast<cudaStream_t>(stream);
  config.overlaps = device->capability >= 90;
  const Kernel kernel = elements == 1 ? rotary_kernel<1> : elements == 4 ? rotary_kernel<4> : rotary_kernel<8>;
  return launch("rotary", kernel, config, args);
}

}  // namespace strop::rotary

#include <algorithm>
#include <cstdint>
#include <string>

#include "base/device.h"
#include "base/launch_tag.h"
#include "base/occupancy.h"
#include "kernels/attention/attention_any.cuh"
#include "kernels/attention/attention_mma.cuh"

namespace strop::attn {
namespace {

using Kernel = void (*)(Args);

// What 16-byte copies ask for.
bool is_dense(const Tensor& t) {
  return t.stride_d == 1 && reinterpret_cast<std::uintptr_t>(t.data) % 16 == 0 && t.stride_b % 8 == 0 &&
         t.stride_h % 8 == 0 && t.stride_l % 8 == 0;
}

template <bool kBf16>
Kernel mma_kernel(int head, int tiles) {
  if (tiles == 2) return head == 32 ? attention_mma_kernel<32, 2, kBf16> : attention_mma_kernel<64, 2, kBf16>;
  return head == 32    ? attention_mma_kernel<32, 1, kBf16>
         : head == 64  ? attention_mma_kernel<64, 1, kBf16>
         : head == 128 ? attention_mma_kernel<128, 1, kBf16>
                       : attention_mma_kernel<256, 1, kBf16>;
}

}  // namespace

Status run_cuda(const Problem& p, void* stream) {
  const DeviceInfo* device;
  if (Status s = current_device_info(&device); !s.ok()) return s;
  Args args;
  args.p = p;
  const bool dense = p.dtype != DType::kFloat32 && is_dense(p.q) && is_dense(p.k) && is_dense(p.v) && is_dense(p.out);
  const std::int64_t rows = p.max_q * p.group();
  args.natural = p.bias.data != nullptr || !(p.scale > 0);
  args.plain = !args.natural && p.mask.data == nullptr;
  args.factor = args.natural ? kLog2E : p.scale * kLog2E;
  args.tuning = tune(p.d, dense && device->capability >= 80, device->shared_bytes_per_block, args.plain,
                     p.batch * p.kv_heads, rows, device->multiprocessors);
  args.tag = launch_tag();
  constexpr std::int64_t kMost = std::int64_t{1} << 30;
  const std::int64_t units = std::max((rows + args.tuning.rows - 1) / args.tuning.rows, most_chunks(p));
  if (rows > kMost || p.max_k > kMost || p.batch * p.kv_heads > kMost || p.batch * p.kv_heads * units > 2 * kMost - 1) {
    return Status(StatusCode::kValueError,
                  "q: expected at most 2^30 queries times heads that share keys, keys, and blocks on CUDA, got " +
                      std::to_string(rows) + ", " + std::to_string(p.max_k) + " and " +
                      std::to_string(p.batch * p.kv_heads * units));
  }
  args.units = static_cast<unsigned>(units);
  args.batch = static_cast<unsigned>(p.batch), args.kv_heads = static_cast<unsigned>(p.kv_heads);
  args.group = static_cast<unsigned>(p.group());
  args.per_unit = Divisor(args.units), args.per_kv_head = Divisor(args.kv_heads), args.per_group = Divisor(args.group);
  args.left = static_cast<int>(std::min(p.left, kFar)), args.right = static_cast<int>(std::min(p.right, kFar));
  if (args.tuning.mma) {
    const int step = mma_step(args.tuning.head);
    args.k_step = p.k.stride_l * step, args.v_step = p.v.stride_l * step;
  }

  const Kernel kernel = !args.tuning.mma              ? attention_any_kernel
                        : p.dtype == DType::kBFloat16 ? mma_kernel<true>(args.tuning.head, args.tuning.tiles)
                                                      : mma_kernel<false>(args.tuning.head, args.tuning.tiles);
  LaunchConfig config;
  // Of no sequence, too: there may be rows to clear.
  config.grid = static_cast<unsigned>(std::max<std::int64_t>(p.batch * p.kv_heads * units, 1));
  config.block = kThreads;
  config.shared_bytes = args.tuning.shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.overlaps = device->capability >= 90;
  int resident;  // not needed; but asking allows the kernel its shared memory
  if (Status s =
          resident_blocks(*device, reinterpret_cast<const void*>(kernel), kThreads, config.shared_bytes, &resident);
      !s.ok()) {
    return s;
  }
  return launch("attention", kernel, config, args);
}

}  // namespace strop::attn

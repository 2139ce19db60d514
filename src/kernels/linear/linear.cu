#include <algorithm>
#include <cstdint>
#include <string>

#include "base/device.h"
#include "base/launch_tag.h"
#include "base/occupancy.h"
#include "kernels/linear/linear_any.cuh"
#include "kernels/linear/linear_epilogue_kernel.cuh"
#include "kernels/linear/linear_mma.cuh"

namespace strop::lin {
namespace {

using Kernel = void (*)(Args);

constexpr std::int64_t kMost = std::int64_t{1} << 30;

// What 16-byte copies ask for.
bool is_dense(const Matrix& m, int bytes) {
  return m.data == nullptr ||
         (m.stride == 1 && reinterpret_cast<std::uintptr_t>(m.data) % 16 == 0 && m.stride_row * bytes % 16 == 0);
}

template <bool kBf16>
Kernel mma_kernel(const Tuning& t) {
  return t.columns == 128 ? linear_mma_kernel<128, 128, kBf16>
         : t.rows == 128  ? linear_mma_kernel<128, 64, kBf16>
         : t.rows == 64   ? linear_mma_kernel<64, 64, kBf16>
         : t.rows == 32   ? linear_mma_kernel<32, 64, kBf16>
                          : linear_mma_kernel<16, 64, kBf16>;
}

using EpilogueKernel = void (*)(EpilogueArgs);
template <int kE>
EpilogueKernel epilogue_kernel(int own, bool alone) {
  return own == 1 ? (alone ? linear_epilogue_kernel<kE, 1, true> : linear_epilogue_kernel<kE, 1, false>)
                  : (alone ? linear_epilogue_kernel<kE, kEpilogueOwn, true>
                           : linear_epilogue_kernel<kE, kEpilogueOwn, false>);
}

Status size_error(const char* name, const Epilogue& e, std::int64_t k, std::int64_t blocks) {
  return {StatusCode::kValueError,
          std::string(name) + ": expected at most 2^30 rows, columns and blocks on CUDA, got " + std::to_string(e.m) +
              ", " + std::to_string(std::max(e.n, k)) + " and " + std::to_string(blocks)};
}

}  // namespace

Status run_cuda(const Problem& p, void* stream, const Tuning* tuning) {
  const DeviceInfo* device;
  if (Status s = current_device_info(&device); !s.ok()) return s;
  const Epilogue& e = p.epilogue;
  const int bytes = float_bytes(e.dtype);
  Args args;
  args.p = p;
  const bool dense = bytes == 2 && device->capability >= 80 && is_dense(p.x, bytes) && is_dense(p.weight[0], bytes) &&
                     is_dense(p.weight[1], bytes);
  args.tuning = tuning != nullptr ? *tuning : tune(e.m, e.n, p.k, e.gated, dense, device->shared_bytes_per_block);
  const Tuning& t = args.tuning;
  // Vectors of four columns from the kernel for any layout are 16 bytes of fp32 alone.
  args.vectors = (t.mma || bytes == 4) && is_dense(e.residual, bytes) && is_dense(e.out, bytes);
  args.tag = launch_tag();
  const std::int64_t columns = column_tiles(e.n, e.gated, t.columns);
  const std::int64_t blocks = ceil_div(e.m, t.rows) * columns * t.along_k.count;
  if (std::max({e.m, e.n, p.k, blocks}) > kMost) return size_error("x", e, p.k, blocks);
  args.column_tiles = static_cast<unsigned>(columns);

  const Kernel kernel = !t.mma                        ? linear_any_kernel
                        : e.dtype == DType::kBFloat16 ? mma_kernel<true>(t)
                                                      : mma_kernel<false>(t);
  LaunchConfig config;
  config.grid = static_cast<unsigned>(blocks);
  config.block = static_cast<unsigned>(t.threads);
  config.shared_bytes = t.shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.overlaps = device->capability >= 90;
  int resident;  // not needed; but asking allows the kernel its shared memory
  if (Status s = resident_blocks(*device, reinterpret_cast<const void*>(kernel), t.threads, t.shared_bytes, &resident);
      !s.ok()) {
    return s;
  }
  return launch("linear", kernel, config, args);
}

Status run_epilogue_cuda(const Epilogue& e, const Matrix (&y)[2], void* stream) {
  const DeviceInfo* device;
  if (Status s = current_device_info(&device); !s.ok()) return s;
  const int bytes = float_bytes(e.dtype);
  EpilogueArgs args{e, {y[0], y[1]}};
  args.vectors =
      is_dense(y[0], bytes) && is_dense(y[1], bytes) && is_dense(e.residual, bytes) && is_dense(e.out, bytes);
  const bool alone = args.vectors && !e.gated && e.residual.data == nullptr;
  const std::int64_t columns = ceil_div(e.n, 32 * (16 / bytes));
  const auto blocks_of = [&](int own) { return columns * ceil_div(e.m, own * kEpilogueWarps); };
  const int own = blocks_of(kEpilogueOwn) >= 2 * device->multiprocessors ? kEpilogueOwn : 1;
  const std::int64_t blocks = blocks_of(own);
  if (std::max({e.m, e.n, blocks}) > kMost) return size_error("y", e, 0, blocks);
  args.column_blocks = static_cast<unsigned>(columns);
  LaunchConfig config;
  config.grid = static_cast<unsigned>(blocks);
  config.block = kEpilogueThreads;
  config.stream = static_cast<cudaStream_t>(stream);
  config.overlaps = device->capability >= 90;
  return launch("linear_epilogue", bytes == 4 ? epilogue_kernel<4>(own, alone) : epilogue_kernel<8>(own, alone), config,
                args);
}

}  // namespace strop::lin

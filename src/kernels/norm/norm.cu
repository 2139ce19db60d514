#include <algorithm>
#include <cstdint>
#include <iterator>
#include <string>

#include "base/device.h"
#include "kernels/norm/norm.cuh"

namespace strop::norm {
namespace {

using Kernel = void (*)(Args);

// That every row starts at a multiple of 16 bytes, whatever the number of rows: the sums of one row alone are then
// those of the same row among others.
bool is_dense(const Matrix& m, int bytes) {
  return m.data == nullptr ||
         (m.stride == 1 && reinterpret_cast<std::uintptr_t>(m.data) % 16 == 0 && m.stride_row * bytes % 16 == 0);
}

bool is_dense(const Parameter& v, int elements) {
  const auto bytes = static_cast<std::uintptr_t>(std::min(16, elements * float_bytes(v.dtype)));
  return v.data == nullptr || (v.stride == 1 && reinterpret_cast<std::uintptr_t>(v.data) % bytes == 0);
}

template <class Slot>
Kernel dense_kernel(const Tuning& t) {
  if (!t.held) return norm_long_kernel<Slot>;
  return t.floats == 8    ? norm_kernel<Slot, 8>
         : t.floats == 16 ? norm_kernel<Slot, 16>
         : t.floats == 24 ? norm_kernel<Slot, 24>
                          : norm_kernel<Slot, 32>;
}
Kernel strided_kernel(const Tuning& t) {
  if (!t.held) return norm_long_kernel<StridedSlot>;
  return t.floats == 8 ? norm_kernel<StridedSlot, 8> : norm_kernel<StridedSlot, 16>;
}

}  // namespace

Status run_cuda(const Problem& p, void* stream) {
  const DeviceInfo* device;
  if (Status s = current_device_info(&device); !s.ok()) return s;
  if (p.n > std::int64_t{1} << 30) {
    return Status(StatusCode::kValueError,
                  "x: expected at most 2^30 elements a row on CUDA, got " + std::to_string(p.n));
  }
  const int bytes = float_bytes(p.dtype);
  const bool dense =
      std::all_of(std::begin(p.terms), std::end(p.terms), [&](const Term& t) { return is_dense(t, bytes); }) &&
      is_dense(p.out, bytes) && is_dense(p.residual_out, bytes) && is_dense(p.weight, 16 / bytes) &&
      is_dense(p.bias, 16 / bytes);
  Args args;
  args.p = p;
  args.tuning = tune(p.n, dense);
  args.inverse_n = 1.f / static_cast<float>(p.n);

  LaunchConfig config;
  const int block = args.tuning.block();
  const std::int64_t rows_a_block = block / args.tuning.threads;
  const std::int64_t most = std::int64_t{device->multiprocessors} * kBlocksPerMultiprocessor;
  config.grid = static_cast<unsigned>(std::min((p.rows + rows_a_block - 1) / rows_a_block, most));
  config.block = static_cast<unsigned>(block);
  config.shared_bytes = sizeof(Shared);
  config.stream = static_cast<cudaStream_t>(stream);
  config.overlaps = device->capability >= 90;
  return launch("norm",
                !dense       ? strided_kernel(args.tuning)
                : bytes == 4 ? dense_kernel<DenseSlot<4>>(args.tuning)
                             : dense_kernel<DenseSlot<2>>(args.tuning),
                config, args);
}

}  // namespace strop::norm

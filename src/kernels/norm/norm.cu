#include <algorithm>
#include <cstdint>
#include <iterator>
#include <string>

#include "base/device.h"
#include "kernels/norm/norm.cuh"
#include "kernels/norm/norm_vectors.cuh"

namespace strop::norm {
namespace {

using Kernel = void (*)(Args);
using VectorKernel = void (*)(VectorArgs);

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

// What does not fit into fewer registers goes into more: slots behind a row's end are zeros.
template <class Slot>
Kernel dense_kernel(const Tuning& t) {
  return !t.held          ? norm_long_kernel<Slot>
         : t.floats == 8  ? norm_kernel<Slot, 8>
         : t.floats <= 24 ? norm_kernel<Slot, 24>
                          : norm_kernel<Slot, 32>;
}
Kernel strided_kernel(const Tuning& t) {
  if (!t.held) return norm_long_kernel<StridedSlot>;
  return t.floats == 8 ? norm_kernel<StridedSlot, 8> : norm_kernel<StridedSlot, 16>;
}

template <DType kDType, bool kWarp, bool kTables>
VectorKernel vector_kernel(int floats) {
  return floats == 8    ? norm_vectors_kernel<kDType, 8, kWarp, kTables>
         : floats == 16 ? norm_vectors_kernel<kDType, 16, kWarp, kTables>
         : floats == 24 ? norm_vectors_kernel<kDType, 24, kWarp, kTables>
                        : norm_vectors_kernel<kDType, 32, kWarp, kTables>;
}
template <bool kWarp, bool kTables>
VectorKernel vector_kernel(DType dtype, int floats) {
  return dtype == DType::kFloat32   ? vector_kernel<DType::kFloat32, kWarp, kTables>(floats)
         : dtype == DType::kFloat16 ? vector_kernel<DType::kFloat16, kWarp, kTables>(floats)
                                    : vector_kernel<DType::kBFloat16, kWarp, kTables>(floats);
}

bool has_tables(const Problem& p) {
  return p.terms[2].data != nullptr || std::any_of(std::begin(p.terms), std::end(p.terms),
                                                   [](const Term& t) { return t.index.numbers.data != nullptr; });
}
// norm_vectors_kernel, of dense rows; null for those that it does not take. Tables of long rows are not worth a kernel.
VectorKernel vector_kernel(const Problem& p, const Tuning& t) {
  const auto same = [&](const Parameter& v) { return v.data == nullptr || v.dtype == p.dtype; };
  const bool by_warp = t.threads == 32, tables = has_tables(p);
  if (!t.held || p.n * float_bytes(p.dtype) % 16 != 0 || !same(p.weight) || !same(p.bias) || (tables && !by_warp) ||
      p.rows >= std::int64_t{1} << 31) {  // blocks of a grid
    return nullptr;
  }
  return tables    ? vector_kernel<true, true>(p.dtype, t.floats)
         : by_warp ? vector_kernel<true, false>(p.dtype, t.floats)
                   : vector_kernel<false, false>(p.dtype, t.floats);
}

VectorArgs vector_args(const Problem& p) {
  const int bytes = float_bytes(p.dtype);
  const auto rows = [&](const Matrix& m) { return VectorArgs::Rows{static_cast<char*>(m.data), m.stride_row * bytes}; };
  VectorArgs a;
  a.rows = p.rows;
  a.vectors = static_cast<int>(p.n * bytes / 16);
  a.kind = p.kind;
  a.weight = static_cast<const char*>(p.weight.data);
  a.bias = static_cast<const char*>(p.bias.data);
  for (int k = 0; k < kMaxTerms; ++k) {
    a.terms[k] = rows(p.terms[k]);
    a.index[k] = p.terms[k].index;
  }
  a.residual_out = rows(p.residual_out);
  a.out = rows(p.out);
  a.inverse_n = 1.f / static_cast<float>(p.n);
  a.eps = p.eps;
  return a;
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
  const Tuning tuning = tune(p.n, dense);
  const bool by_warp = tuning.threads == 32;
  const int rows_a_block = by_warp ? warps_a_block(p.rows, device->multiprocessors) : 1;
  const std::int64_t blocks = (p.rows + rows_a_block - 1) / rows_a_block;

  LaunchConfig config;
  config.block = static_cast<unsigned>(tuning.threads * rows_a_block);
  config.shared_bytes = sizeof(Shared);
  config.stream = static_cast<cudaStream_t>(stream);
  config.overlaps = device->capability >= 90;
  if (const VectorKernel kernel = dense ? vector_kernel(p, tuning) : nullptr; kernel != nullptr) {
    config.grid = static_cast<unsigned>(blocks);
    return launch("norm", kernel, config, vector_args(p));
  }
  config.grid =
      static_cast<unsigned>(std::min(blocks, std::int64_t{device->multiprocessors} * kBlocksPerMultiprocessor));
  Args args{p, tuning, 1.f / static_cast<float>(p.n)};
  return launch("norm",
                !dense       ? strided_kernel(tuning)
                : bytes == 4 ? dense_kernel<DenseSlot<4>>(tuning)
                             : dense_kernel<DenseSlot<2>>(tuning),
                config, args);
}

}  // namespace strop::norm

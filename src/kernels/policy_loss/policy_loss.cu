#include "base/device.h"
#include "base/launch_tag.h"
#include "kernels/policy_loss/policy_loss.cuh"
#include "kernels/policy_loss/policy_loss_dense.cuh"
#include "kernels/policy_loss/policy_loss_row.cuh"

namespace strop::policy_loss {
namespace {

using Kernel = void (*)(Args);

// What DenseTile asks for.
bool is_dense(const Problem& p) {
  const int bytes = float_bytes(p.policy.dtype);
  const auto start = [](const void* data, int size) {
    return static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(data) / static_cast<std::uintptr_t>(size));
  };
  const auto fits = [&](const void* data, std::int64_t stride_b, int size) {
    return reinterpret_cast<std::uintptr_t>(data) % static_cast<std::uintptr_t>(size) == 0 &&
           (start(data, size) - start(p.policy.data, bytes)) % kVectorElements == 0 &&
           (p.batch == 1 || (stride_b - p.policy.stride_b) % kVectorElements == 0);
  };
  const auto dense = [&](const Matrix& m) {
    return float_bytes(m.dtype) == bytes && m.stride_t == 1 && fits(m.data, m.stride_b, bytes);
  };
  return dense(p.policy) && dense(p.old_policy) && (p.beta == 0.f || dense(p.ref)) && p.advantages.stride_t == 0 &&
         dtype_size(p.mask.dtype) == 1 && p.mask.stride_t == 1 && fits(p.mask.data, p.mask.stride_b, 1) &&
         (p.grad == nullptr || fits(p.grad, p.tokens, bytes));
}

// Every row's vectors start with the row.
bool is_aligned(const Problem& p) {
  const auto vector = static_cast<std::uintptr_t>(kVectorElements * float_bytes(p.policy.dtype));
  return reinterpret_cast<std::uintptr_t>(p.policy.data) % vector == 0 &&
         (p.batch == 1 || p.policy.stride_b % kVectorElements == 0);
}

template <bool kFused, int kBytes>
Kernel dense_kernel(const Tuning& t) {
  return !t.one_tile                            ? policy_loss_kernel<kFused, DenseTile<kBytes, 2>>
         : t.tokens_a_thread == kVectorElements ? policy_loss_row_kernel<kFused, DenseTile<kBytes, 1>>
                                                : policy_loss_row_kernel<kFused, DenseTile<kBytes, 2>>;
}
template <bool kFused>
Kernel kernel_for(bool dense, int bytes, const Tuning& t) {
  if (!dense) return policy_loss_kernel<kFused, StridedTile>;
  return bytes == 4 ? dense_kernel<kFused, 4>(t) : dense_kernel<kFused, 2>(t);
}

}  // namespace

Status run_cuda(const Problem& problem, void* stream) {
  const DeviceInfo* device;
  if (Status s = current_device_info(&device); !s.ok()) return s;
  const bool dense = is_dense(problem);
  const std::int64_t slack = !dense || is_aligned(problem) || problem.tokens == 0 ? 0 : kVectorElements - 1;
  Args args;
  args.p = problem;
  args.tuning = tune(problem.reduction, problem.batch, problem.tokens + slack, device->multiprocessors, dense);
  args.mask = mask_format(problem.mask.dtype);
  args.segment_scale = problem.reduction == Reduction::kSequenceMean && problem.batch > 0
                           ? 1.f / static_cast<float>(problem.batch)
                           : 1.f;
  args.tag = launch_tag();

  const bool fused = problem.grad != nullptr;
  LaunchConfig config;
  config.grid = static_cast<unsigned>(args.tuning.grid);
  config.block = static_cast<unsigned>(args.tuning.block);
  config.shared_bytes = sizeof(Shared);
  config.stream = static_cast<cudaStream_t>(stream);
  config.cooperative = fused && args.tuning.splits > 1;  // blocks wait for each other's counts
  config.overlaps = !config.cooperative && device->capability >= 90;
  const int bytes = float_bytes(problem.policy.dtype);
  return launch("policy_loss",
                fused ? kernel_for<true>(dense, bytes, args.tuning) : kernel_for<false>(dense, bytes, args.tuning),
                config, args);
}

}  // namespace strop::policy_loss

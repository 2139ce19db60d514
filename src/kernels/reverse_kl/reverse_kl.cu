#include <cstdlib>
#include <cstring>

#include "base/occupancy.h"
#include "kernels/reverse_kl/reverse_kl.cuh"

namespace strop::reverse_kl {
namespace {

using Kernel = void (*)(Args);

template <bool kFused>
Kernel kernel_for(int student_bytes, int teacher_bytes) {
  if (student_bytes == 2) return teacher_bytes == 2 ? reverse_kl_kernel<2, 2, kFused> : reverse_kl_kernel<2, 4, kFused>;
  return teacher_bytes == 2 ? reverse_kl_kernel<4, 2, kFused> : reverse_kl_kernel<4, 4, kFused>;
}

// Every vector of every row is dense and aligned to its size.
bool aligned(const Logits& m, std::int64_t outer, std::int64_t inner, int elements) {
  const int bytes = float_bytes(m.dtype);
  const auto whole = [&](std::int64_t stride) { return stride * bytes % (elements * bytes) == 0; };
  return m.stride_vocab == 1 &&
         reinterpret_cast<std::uintptr_t>(m.data) % static_cast<std::size_t>(elements * bytes) == 0 &&
         (inner == 1 || whole(m.stride_inner)) && (outer == 1 || whole(m.stride_outer));
}

// STROP_CLUSTERS=0 takes the path of GPUs without clusters, so that it can be tested on those that have them.
bool clusters_wanted() {
  static const bool wanted = [] {
    const char* v = std::getenv("STROP_CLUSTERS");
    return v == nullptr || std::strcmp(v, "0") != 0;
  }();
  return wanted;
}

}  // namespace

Status run_cuda(const Problem& problem, void* stream) {
  const DeviceInfo* device;
  if (Status s = current_device_info(&device); !s.ok()) return s;
  const int student_bytes = float_bytes(problem.student.dtype), teacher_bytes = float_bytes(problem.teacher.dtype);
  const int elements = vector_elements(student_bytes, teacher_bytes);
  const std::int64_t rows = problem.outer * problem.inner;
  const bool fused = problem.grad.data != nullptr;
  const Kernel kernel =
      fused ? kernel_for<true>(student_bytes, teacher_bytes) : kernel_for<false>(student_bytes, teacher_bytes);

  Args args;
  args.p = problem;
  args.mask = mask_format(problem.mask.dtype);
  args.student_vectors = aligned(problem.student, problem.outer, problem.inner, elements);
  args.teacher_vectors = aligned(problem.teacher, problem.outer, problem.inner, elements);
  args.grad_vectors = fused && aligned(problem.grad, problem.outer, problem.inner, elements);
  const Chip chip{device->capability >= 90 && clusters_wanted(), device->multiprocessors,
                  device->shared_bytes_per_block, device->shared_bytes_per_multiprocessor};
  args.tuning = tune(chip, rows, problem.vocab, student_bytes, teacher_bytes, fused, sizeof(Shared));
  const Tuning& t = args.tuning;

  int resident;
  const int cluster = t.clusters ? t.parts : 1;
  if (Status s =
          resident_blocks(*device, reinterpret_cast<const void*>(kernel), t.block, t.shared_bytes, cluster, &resident);
      !s.ok()) {
    return s;
  }
  if (t.parts > 1 && !t.clusters) resident = std::min(resident, kMaxBlocks);
  const std::int64_t groups = std::min<std::int64_t>({resident / t.parts, kMaxGroups, std::max<std::int64_t>(rows, 1)});

  LaunchConfig config;
  config.grid = static_cast<unsigned>(groups * t.parts);
  config.block = static_cast<unsigned>(t.block);
  config.shared_bytes = t.shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.cluster = static_cast<unsigned>(cluster);
  config.cooperative = true;
  return launch("reverse_kl", kernel, config, args);
}

}  // namespace strop::reverse_kl

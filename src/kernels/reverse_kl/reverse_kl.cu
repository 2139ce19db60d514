#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>

#include "base/launch_tag.h"
#include "base/occupancy.h"
#include "kernels/reverse_kl/reverse_kl.cuh"

namespace strop::reverse_kl {
namespace {

using Kernel = void (*)(Args);

template <bool kFused>
Kernel kernel_for(DType student, DType teacher) {
  // Equal dtypes, the usual case, are known to the compiler; of others it knows the size.
  if (student == teacher) {
    using F32 = Vector<4, 4>;
    using F16 = Vector<8, 2, DType::kFloat16>;
    using BF16 = Vector<8, 2, DType::kBFloat16>;
    return student == DType::kFloat32   ? reverse_kl_kernel<F32, F32, kFused>
           : student == DType::kFloat16 ? reverse_kl_kernel<F16, F16, kFused>
                                        : reverse_kl_kernel<BF16, BF16, kFused>;
  }
  if (float_bytes(student) == 4) return reverse_kl_kernel<Vector<4, 4>, Vector<4, 2>, kFused>;
  if (float_bytes(teacher) == 4) return reverse_kl_kernel<Vector<4, 2>, Vector<4, 4>, kFused>;
  return reverse_kl_kernel<Vector<8, 2>, Vector<8, 2>, kFused>;
}

// Unit strides, and in every row the vectors of `m` start at the same elements as those of `like`.
bool same_vectors(const Logits& m, const Logits& like, const Problem& p, int elements) {
  const auto start = [&](const Logits& t) {
    return static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(t.data) /
                                     static_cast<std::size_t>(float_bytes(t.dtype)));
  };
  const auto same = [&](std::int64_t u, std::int64_t v) { return (u - v) % elements == 0; };
  return m.stride_vocab == 1 &&
         reinterpret_cast<std::uintptr_t>(m.data) % static_cast<std::size_t>(float_bytes(m.dtype)) == 0 &&
         same(start(m), start(like)) && (p.inner == 1 || same(m.stride_inner, like.stride_inner)) &&
         (p.outer == 1 || same(m.stride_outer, like.stride_outer));
}

// What Args::adjoin says.
bool rows_adjoin(const Logits& m, const Problem& p, int elements) {
  return p.outer == 1 && p.vocab >= elements && m.stride_inner == p.vocab && m.data != p.grad.data;
}

// (outer, inner) as one dimension, where all tensors allow that.
Problem flattened(Problem p) {
  const auto flat = [&](const auto& m) { return m.data == nullptr || m.stride_outer == p.inner * m.stride_inner; };
  if (p.outer > 1 && flat(p.student) && flat(p.teacher) && flat(p.grad) && flat(p.mask))
    p.inner *= std::exchange(p.outer, 1);
  return p;
}

}  // namespace

Status run_cuda(const Problem& problem, void* stream) {
  const DeviceInfo* device;
  if (Status s = current_device_info(&device); !s.ok()) return s;
  const int student_bytes = float_bytes(problem.student.dtype), teacher_bytes = float_bytes(problem.teacher.dtype);
  const int elements = vector_elements(student_bytes, teacher_bytes);
  if (problem.outer * problem.inner >= std::int64_t{1} << 31) {
    return Status(StatusCode::kValueError, "student_logits: expected fewer than 2^31 rows on CUDA, got " +
                                               std::to_string(problem.outer * problem.inner));
  }
  if (problem.vocab > std::int64_t{1} << 32) {
    return Status(StatusCode::kValueError,
                  "student_logits: expected at most 2^32 logits a row on CUDA, got " + std::to_string(problem.vocab));
  }
  const bool fused = problem.grad.data != nullptr;
  const DType student = problem.student.dtype, teacher = problem.teacher.dtype;
  const Kernel kernel = fused ? kernel_for<true>(student, teacher) : kernel_for<false>(student, teacher);

  Args args;
  args.p = flattened(problem);
  args.mask = mask_format(problem.mask.dtype);
  args.tag = launch_tag();
  args.dense = same_vectors(problem.student, problem.student, problem, elements) &&
               same_vectors(problem.teacher, problem.student, problem, elements) &&
               (!fused || same_vectors(problem.grad, problem.student, problem, elements));
  const bool whole_vectors =
      args.p.student.stride_inner % elements == 0 && (args.p.outer == 1 || args.p.student.stride_outer % elements == 0);
  args.uniform = args.dense && (args.p.inner * args.p.outer <= 1 || whole_vectors);
  args.adjoin =
      args.dense && rows_adjoin(args.p.student, args.p, elements) && rows_adjoin(args.p.teacher, args.p, elements);
  args.tuning = tune({device->multiprocessors, device->shared_bytes_per_block}, problem.vocab, student_bytes,
                     teacher_bytes, fused, sizeof(Shared));
  const Tuning& t = args.tuning;

  const int block = t.threads + 64;
  int resident;
  if (Status s = resident_blocks(*device, reinterpret_cast<const void*>(kernel), block, t.shared_bytes, &resident);
      !s.ok()) {
    return s;
  }
  if (t.parts > 1) resident = std::min(resident, kMaxBlocks);
  args.rows = static_cast<unsigned>(problem.outer * problem.inner);
  args.groups = std::min({resident / t.parts, kMaxGroups, std::max(static_cast<int>(args.rows), 1)});

  LaunchConfig config;
  config.grid = static_cast<unsigned>(args.groups * t.parts);
  config.block = static_cast<unsigned>(block);
  config.shared_bytes = t.shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.cooperative = t.parts > 1;  // the parts of a row wait for each other
  return launch("reverse_kl", kernel, config, args);
}

}  // namespace strop::reverse_kl

// Reverse KL on the CPU: how the work is cut up. The SIMD part is in reverse_kl_cpu-inl.h, the contract and the maths
// in reverse_kl.h.
//
// A row is a chain of parts whose length depends on the vocabulary alone; their sums are put together in double, in
// order. Rows go to threads whole, so that the second read, for the gradient, finds the row in cache; only where
// there are fewer rows than threads do the parts go to threads. Either way the same parts are added in the same
// order, so results are bitwise the same whatever the number of threads.
#include "base/simd_target.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/reverse_kl/reverse_kl_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, as it is compiled for each instruction set.
#include "kernels/reverse_kl/reverse_kl_cpu-inl.h"

HWY_BEFORE_NAMESPACE();
namespace strop::reverse_kl {
namespace HWY_NAMESPACE {

inline bool in_place(const Problem& p) {
  return p.student.dtype == p.teacher.dtype && p.student.stride_vocab == 1 && p.teacher.stride_vocab == 1;
}

Sums sum_range(const Problem& p, std::int64_t o, std::int64_t i, std::int64_t begin, std::int64_t end) {
  if (!in_place(p)) return sums_of_range<F32, true>(p, o, i, begin, end);
  if (p.student.dtype == DType::kFloat32) return sums_of_range<F32, false>(p, o, i, begin, end);
  if (p.student.dtype == DType::kFloat16) return sums_of_range<F16, false>(p, o, i, begin, end);
  return sums_of_range<BF16, false>(p, o, i, begin, end);
}

void write_range(const Problem& p, std::int64_t o, std::int64_t i, std::int64_t begin, std::int64_t end,
                 const RowGradient& row) {
  if (!in_place(p)) return gradients_of_range<F32, true>(p, o, i, begin, end, row);
  if (p.student.dtype == DType::kFloat32) return gradients_of_range<F32, false>(p, o, i, begin, end, row);
  if (p.student.dtype == DType::kFloat16) return gradients_of_range<F16, false>(p, o, i, begin, end, row);
  return gradients_of_range<BF16, false>(p, o, i, begin, end, row);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace strop::reverse_kl
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "base/chunks.h"

namespace strop::reverse_kl {
namespace {

constexpr std::int64_t kPart = 16384;            // logits of a part, unless the vocabulary has kMaxParts of them
constexpr std::int64_t kMaxParts = 64;           // parts of a row
constexpr std::int64_t kSlots = 512;             // parts that wait for each other where rows are split
constexpr std::int64_t kMaxChunks = 256;         // chunks of rows
constexpr std::int64_t kParallelLogits = 16384;  // below it, some 15 us, waking threads costs more than they save

struct Call {
  const Problem& p;
  std::int64_t rows = p.outer * p.inner;
  std::int64_t part = std::max(kPart, (p.vocab + kMaxParts - 1) / kMaxParts);
  std::int64_t parts = (p.vocab + part - 1) / part;
  bool parallel = rows * p.vocab > kParallelLogits;
  double weight = 0;  // 1 / max(1, valid rows)
  decltype(STROP_SIMD(sum_range)) sum = STROP_SIMD(sum_range);
  decltype(STROP_SIMD(write_range)) write = STROP_SIMD(write_range);

  bool valid(std::int64_t row) const {
    const std::int64_t o = row / p.inner, i = row % p.inner;
    return load_nonzero(p.mask.data, p.mask.dtype, o * p.mask.stride_outer + i * p.mask.stride_inner);
  }
  Sums sum_part(std::int64_t row, std::int64_t k) const {
    return sum(p, row / p.inner, row % p.inner, k * part, std::min(p.vocab, (k + 1) * part));
  }
  void write_part(std::int64_t row, std::int64_t k, const RowGradient& gradient) const {
    write(p, row / p.inner, row % p.inner, k * part, std::min(p.vocab, (k + 1) * part), gradient);
  }
  RowGradient gradient_of(const Sums& s) const {
    return {reference(s.x_max), reference(s.y_max), static_cast<float>(weight / s.x_sum), static_cast<float>(s.mean())};
  }
  void write_zeros(std::int64_t row) const {
    const Logits& g = p.grad;
    const std::int64_t size = dtype_size(g.dtype);
    char* to = static_cast<char*>(g.data) + (row / p.inner * g.stride_outer + row % p.inner * g.stride_inner) * size;
    if (g.stride_vocab == 1) {
      std::memset(to, 0, static_cast<std::size_t>(p.vocab * size));
    } else {
      for (std::int64_t v = 0; v < p.vocab; ++v) std::memset(to + v * g.stride_vocab * size, 0, size);
    }
  }
};

// Each chunk of rows to one thread.
double whole_rows(const Call& call) {
  const std::int64_t chunks = std::min(call.rows, kMaxChunks);
  double losses[kMaxChunks];
  for_each_chunk(chunks, call.parallel, [&](std::int64_t chunk) {
    double loss = 0;
    for (std::int64_t row = call.rows * chunk / chunks; row < call.rows * (chunk + 1) / chunks; ++row) {
      if (!call.valid(row)) {
        if (call.p.grad.data != nullptr) call.write_zeros(row);
        continue;
      }
      Sums sums = call.sum_part(row, 0);
      for (std::int64_t k = 1; k < call.parts; ++k) sums.add(call.sum_part(row, k));
      loss += sums.divergence();
      if (call.p.grad.data == nullptr) continue;
      for (std::int64_t k = 0; k < call.parts; ++k) call.write_part(row, k, call.gradient_of(sums));
    }
    losses[chunk] = loss;
  });
  double loss = 0;
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) loss += losses[chunk];
  return loss;
}

// Each part of each row to one thread.
double split_rows(const Call& call) {
  Sums slots[kSlots];
  const std::int64_t items = call.rows * call.parts;
  for_each_chunk(items, call.parallel, [&](std::int64_t item) {
    const std::int64_t row = item / call.parts;
    if (call.valid(row)) slots[item] = call.sum_part(row, item % call.parts);
  });
  double loss = 0;
  for (std::int64_t row = 0; row < call.rows; ++row) {
    Sums& sums = slots[row * call.parts];
    for (std::int64_t k = 1; k < call.parts; ++k) sums.add(slots[row * call.parts + k]);
    if (call.valid(row)) loss += sums.divergence();
  }
  if (call.p.grad.data == nullptr) return loss;
  for_each_chunk(items, call.parallel, [&](std::int64_t item) {
    const std::int64_t row = item / call.parts, k = item % call.parts;
    if (call.valid(row)) {
      call.write_part(row, k, call.gradient_of(slots[row * call.parts]));
    } else if (k == 0) {
      call.write_zeros(row);
    }
  });
  return loss;
}

}  // namespace

Status run_cpu(const Problem& p) {
  Call call{p};
  std::int64_t valid = 0;
  for (std::int64_t row = 0; row < call.rows; ++row) valid += call.valid(row);
  call.weight = 1.0 / static_cast<double>(std::max<std::int64_t>(1, valid));
  // The losses of a chunk are added in row order; with fewer rows than chunks that is the same sum in both ways.
  const bool split = call.parallel && call.parts > 1 && call.rows < 2 * num_threads() && call.rows <= kMaxChunks &&
                     call.rows * call.parts <= kSlots;
  const double loss = split ? split_rows(call) : whole_rows(call);
  *p.loss = static_cast<float>(loss * call.weight);
  return {};
}

}  // namespace strop::reverse_kl
#endif  // HWY_ONCE

// Linear layers on the CPU, the SIMD part: one tile of results. linear_cpu.cc cuts the work up and includes this once
// for each instruction set.
//
// Few rows: the time is the weights', which are read as they lie; vectors run along K, four rows at a time, and a sum's
// lanes are added up in the end. More rows: weights are transposed into panels of two vectors' columns, once for up to
// 240 rows; six rows and two vectors of columns are in registers. All tiles are converted to fp32 when they are staged.
#if defined(STROP_LINEAR_CPU_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef STROP_LINEAR_CPU_INL_H_
#undef STROP_LINEAR_CPU_INL_H_
#else
#define STROP_LINEAR_CPU_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "base/simd-inl.h"
#include "base/stage-inl.h"
#include "kernels/linear/linear.h"
#include "kernels/linear/linear_epilogue_cpu-inl.h"
#include "kernels/linear/linear_tuning.h"

HWY_BEFORE_NAMESPACE();
namespace strop::lin {
namespace HWY_NAMESPACE {
using namespace strop::HWY_NAMESPACE;  // NOLINT(google-build-using-namespace)

// A thread's own, fp32.
struct Scratch {
  HWY_ALIGN float x[kCpuRows * kCpuDepth];     // rows of a part of K
  HWY_ALIGN float w[kCpuColumns * kCpuDepth];  // panels of the same: [panel][k][column]
  HWY_ALIGN float sums[2][kCpuRows * kCpuColumns];
  HWY_ALIGN float lines[4][kFewCpuDepth];
  EpilogueLine line;
};
static_assert(kCpuRows * kCpuDepth >= kFewCpuRows * kFewCpuDepth);

// Elements [k, k + n) of a row, then zeros up to `end`.
inline void stage_row(const Matrix& m, DType dtype, std::int64_t row, std::int64_t k, std::int64_t n, std::int64_t end,
                      float* to) {
  stage(m.data, dtype, row * m.stride_row + k * m.stride, m.stride, static_cast<std::size_t>(n), to);
  std::fill(to + n, to + end, 0.f);
}

// sums[r][column] += x[r] . w for the rows r of few, over n elements, a multiple of two vectors' lanes.
HWY_INLINE void dot_rows(const float* x, const float* w, std::int64_t rows, std::size_t n, float* sums) {
  const Float f;
  const std::size_t lanes = hn::Lanes(f);
  for (std::int64_t r = 0; r < rows; r += 4) {
    const float* at[4];  // rows beyond the last repeat it, and are not stored
    for (int i = 0; i < 4; ++i) at[i] = x + std::min(r + i, rows - 1) * kFewCpuDepth;
    auto a0 = hn::Zero(f), b0 = a0, c0 = a0, d0 = a0, a1 = a0, b1 = a0, c1 = a0, d1 = a0;
    for (std::size_t k = 0; k < n; k += 2 * lanes) {
      const auto w0 = hn::Load(f, w + k), w1 = hn::Load(f, w + k + lanes);
      a0 = hn::MulAdd(hn::Load(f, at[0] + k), w0, a0), a1 = hn::MulAdd(hn::Load(f, at[0] + k + lanes), w1, a1);
      b0 = hn::MulAdd(hn::Load(f, at[1] + k), w0, b0), b1 = hn::MulAdd(hn::Load(f, at[1] + k + lanes), w1, b1);
      c0 = hn::MulAdd(hn::Load(f, at[2] + k), w0, c0), c1 = hn::MulAdd(hn::Load(f, at[2] + k + lanes), w1, c1);
      d0 = hn::MulAdd(hn::Load(f, at[3] + k), w0, d0), d1 = hn::MulAdd(hn::Load(f, at[3] + k + lanes), w1, d1);
    }
    const auto add = [&](std::int64_t row, FloatVec v0, FloatVec v1) HWY_ATTR {
      if (row < rows) sums[row * kCpuColumns] += hn::GetLane(hn::SumOfLanes(f, hn::Add(v0, v1)));
    };
    add(r, a0, a1), add(r + 1, b0, b1), add(r + 2, c0, c1), add(r + 3, d0, d1);
  }
}

inline void multiply_few(const Problem& p, std::int64_t column, std::int64_t columns, Scratch& t) {
  const DType dtype = p.epilogue.dtype;
  const std::int64_t step = 2 * static_cast<std::int64_t>(hn::Lanes(Float())), rows = p.epilogue.m;
  for (std::int64_t k = 0; k < p.k; k += kFewCpuDepth) {
    const std::int64_t n = std::min(kFewCpuDepth, p.k - k), end = ceil_div(n, step) * step;
    for (std::int64_t r = 0; r < rows; ++r) stage_row(p.x, dtype, r, k, n, end, t.x + r * kFewCpuDepth);
    for (int half = 0; half < (p.epilogue.gated ? 2 : 1); ++half) {
      for (std::int64_t j = 0; j < columns; ++j) {
        stage_row(p.weight[half], dtype, column + j, k, n, end, t.lines[0]);
        dot_rows(t.x, t.lines[0], rows, static_cast<std::size_t>(end), t.sums[half] + j);
      }
    }
  }
}

// Six rows of sums, two vectors of columns each: += x (a panel). Rows beyond `rows` repeat the last, and are not
// stored.
HWY_INLINE void multiply_panel(const float* x, const float* panel, std::int64_t rows, std::size_t depth, float* sums) {
  const Float f;
  const std::size_t lanes = hn::Lanes(f);
  const auto row = [&](std::int64_t r) { return x + std::min(r, rows - 1) * kCpuDepth; };
  const float *r0 = row(0), *r1 = row(1), *r2 = row(2), *r3 = row(3), *r4 = row(4), *r5 = row(5);
  auto a0 = hn::Zero(f), a1 = a0, b0 = a0, b1 = a0, c0 = a0, c1 = a0, d0 = a0, d1 = a0, e0 = a0, e1 = a0, f0 = a0,
       f1 = a0;
  for (std::size_t k = 0; k < depth; ++k) {
    const auto w0 = hn::Load(f, panel + k * 2 * lanes), w1 = hn::Load(f, panel + k * 2 * lanes + lanes);
    const auto s0 = hn::Set(f, r0[k]), s1 = hn::Set(f, r1[k]), s2 = hn::Set(f, r2[k]);
    a0 = hn::MulAdd(s0, w0, a0), a1 = hn::MulAdd(s0, w1, a1);
    b0 = hn::MulAdd(s1, w0, b0), b1 = hn::MulAdd(s1, w1, b1);
    c0 = hn::MulAdd(s2, w0, c0), c1 = hn::MulAdd(s2, w1, c1);
    const auto s3 = hn::Set(f, r3[k]), s4 = hn::Set(f, r4[k]), s5 = hn::Set(f, r5[k]);
    d0 = hn::MulAdd(s3, w0, d0), d1 = hn::MulAdd(s3, w1, d1);
    e0 = hn::MulAdd(s4, w0, e0), e1 = hn::MulAdd(s4, w1, e1);
    f0 = hn::MulAdd(s5, w0, f0), f1 = hn::MulAdd(s5, w1, f1);
  }
  const auto add = [&](std::int64_t r, FloatVec v0, FloatVec v1) HWY_ATTR {
    if (r >= rows) return;
    float* to = sums + r * kCpuColumns;
    hn::Store(hn::Add(hn::Load(f, to), v0), f, to);
    hn::Store(hn::Add(hn::Load(f, to + lanes), v1), f, to + lanes);
  };
  add(0, a0, a1), add(1, b0, b1), add(2, c0, c1), add(3, d0, d1), add(4, e0, e1), add(5, f0, f1);
}

inline void multiply_packed(const Problem& p, std::int64_t first, std::int64_t rows, std::int64_t column,
                            std::int64_t columns, Scratch& t) {
  const DType dtype = p.epilogue.dtype;
  const auto wide = 2 * static_cast<std::int64_t>(hn::Lanes(Float()));  // columns of a panel
  for (std::int64_t k = 0; k < p.k; k += kCpuDepth) {
    const std::int64_t n = std::min(kCpuDepth, p.k - k), end = ceil_div(n, 4) * 4;
    for (std::int64_t r = 0; r < rows; ++r) stage_row(p.x, dtype, first + r, k, n, n, t.x + r * kCpuDepth);
    for (int half = 0; half < (p.epilogue.gated ? 2 : 1); ++half) {
      for (std::int64_t j = 0; j < ceil_div(columns, wide) * wide; ++j) {
        if (j < columns) {
          stage_row(p.weight[half], dtype, column + j, k, n, end, t.lines[j % 4]);
        } else {
          std::fill(t.lines[j % 4], t.lines[j % 4] + end, 0.f);
        }
        if (wide < 4) {  // a vector of one lane
          for (std::int64_t i = 0; i < n; ++i)
            t.w[j / wide * wide * kCpuDepth + i * wide + j % wide] = t.lines[j % 4][i];
        } else if (j % 4 == 3) {
          transpose_four(t.lines[0], kFewCpuDepth, static_cast<std::size_t>(end),
                         t.w + j / wide * wide * kCpuDepth + (j - 3) % wide, static_cast<std::size_t>(wide));
        }
      }
      for (std::int64_t j = 0; j < columns; j += wide) {
        for (std::int64_t r = 0; r < rows; r += 6) {
          multiply_panel(t.x + r * kCpuDepth, t.w + j * kCpuDepth, rows - r, static_cast<std::size_t>(n),
                         t.sums[half] + r * kCpuColumns + j);
        }
      }
    }
  }
}

// Results [first, first + rows) x [column, column + columns).
inline void multiply_tile(const Problem& p, std::int64_t first, std::int64_t rows, std::int64_t column,
                          std::int64_t columns, Scratch& t) {
  for (float(&sums)[kCpuRows * kCpuColumns] : t.sums) std::fill(sums, sums + rows * kCpuColumns, 0.f);
  if (p.epilogue.m <= kFewCpuRows) {
    multiply_few(p, column, columns, t);
  } else {
    multiply_packed(p, first, rows, column, columns, t);
  }
  for (std::int64_t r = 0; r < rows; ++r) {
    finish_line(p.epilogue, first + r, column, static_cast<std::size_t>(columns), t.sums[0] + r * kCpuColumns,
                t.sums[1] + r * kCpuColumns, t.line);
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace strop::lin
HWY_AFTER_NAMESPACE();

#endif  // STROP_LINEAR_CPU_INL_H_

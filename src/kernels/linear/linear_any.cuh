// Linear layers for any dtype and any strides, in fp32 multiply-adds: fp32 at full precision, and what the tensor
// cores' kernel cannot copy in vectors.
//
// Purpose. 64 x 64 sums a block, 4 x 8 a thread: 12 values read from shared memory for 32 multiply-adds. K goes by in
// turns of 16 elements, converted to fp32 and stored with neighbouring rows beside each other; the next turn's are on
// their way in registers meanwhile. Neighbouring threads load along K or, where x or w is transposed, along its rows.
//
// Floor. 2 M N K operations at 67 TFLOP/s of fp32 (H100); few rows, the weights once.
#pragma once

#include "base/ptx/grid.cuh"
#include "kernels/linear/linear.cuh"

namespace strop::lin {

struct AnyShared {
  float x[kAnyDepth][kAnyPitch], w[kAnyDepth][kAnyPitch];
};

// What a thread loads of each turn's tile of 64 rows and 16 elements of K: two groups of four, `row_step` rows or
// `k_step` elements of K apart.
struct AnyRows {
  const char* first[2];
  std::int64_t step[2], stride[2];  // bytes from element to element of a group, and along K
  int bytes, k, k_step;
  unsigned inside[2];  // rows that are there
  int row, group_row, row_step, group_k;

  // Rows [0, 32) of the tile are `rows` rows of a, from `begin` on, those behind them of b.
  __device__ __forceinline__ AnyRows(const Matrix& a, const Matrix& b, DType dtype, std::int64_t begin_a,
                                     std::int64_t begin_b, std::int64_t rows) {
    const int thread = static_cast<int>(threadIdx.x);
    const bool along_k = a.stride == 1;
    bytes = float_bytes(dtype);
    row = along_k ? thread / kAnyDepth : thread % kAnyRows, k = along_k ? thread % kAnyDepth : thread / kAnyRows;
    row_step = along_k ? kAnyThreads / kAnyDepth : 0, k_step = along_k ? 0 : kAnyThreads / kAnyRows;
    group_row = 4 * row_step, group_k = 4 * k_step;
#pragma unroll
    for (int g = 0; g < 2; ++g) {
      const int at = row + g * group_row;
      const Matrix& m = at < kAnyRows / 2 ? a : b;
      const std::int64_t begin = (at < kAnyRows / 2 ? begin_a : begin_b) + at % (kAnyRows / 2);
      first[g] = static_cast<const char*>(m.data) + (begin * m.stride_row + (k + g * group_k) * m.stride) * bytes;
      step[g] = (row_step * m.stride_row + k_step * m.stride) * bytes, stride[g] = m.stride * bytes;
      inside[g] = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) inside[g] |= static_cast<unsigned>(begin + i * row_step < rows) << i;
    }
  }

  // Elements [from, from + 16) of K, those before `end`.
  __device__ __forceinline__ void load(std::uint32_t (&raw)[2][4], int from, int end) const {
#pragma unroll
    for (int g = 0; g < 2; ++g) {
      unsigned there = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) there |= static_cast<unsigned>(from + k + g * group_k + i * k_step < end) << i;
      load_strided<4>(raw[g], first[g] + from * stride[g], step[g], bytes, there & inside[g]);
    }
  }
  __device__ __forceinline__ void store(float (&to)[kAnyDepth][kAnyPitch], const std::uint32_t (&raw)[2][4],
                                        DType dtype) const {
#pragma unroll
    for (int g = 0; g < 2; ++g) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        to[k + g * group_k + i * k_step][row + g * group_row + i * row_step] = to_float(raw[g][i], dtype);
    }
  }
};

__global__ void __launch_bounds__(kAnyThreads) linear_any_kernel(const __grid_constant__ Args a) {
  ptx::wait_for_previous_kernel();
  ptx::let_next_kernel_begin();
  const Problem& p = a.p;
  const Epilogue& e = p.epilogue;
  const Unit u(a);
  AnyShared& shared = dynamic_shared<AnyShared>();
  const int thread = static_cast<int>(threadIdx.x), row = thread / 8 * 4, column = thread % 8 * 4;
  constexpr int kHalf = kAnyRows / 2;
  // Of a gate, a tile of w has 32 rows of either weight.
  const AnyRows x(p.x, p.x, e.dtype, u.row, u.row + kHalf, e.m);
  const AnyRows w(p.weight[0], p.weight[e.gated ? 1 : 0], e.dtype, u.column, e.gated ? u.column : u.column + kHalf,
                  e.n);

  float sums[8][4] = {};  // row r's of columns `column` to + 3 and, behind it, of those 32 on
  std::uint32_t next_x[2][4], next_w[2][4];
  x.load(next_x, u.begin, u.end), w.load(next_w, u.begin, u.end);
  for (int k = u.begin; k < u.end; k += kAnyDepth) {
    __syncthreads();  // write after read: other warps may still be at the last turn's tiles
    x.store(shared.x, next_x, e.dtype), w.store(shared.w, next_w, e.dtype);
    __syncthreads();  // read after write: this turn's tiles
    x.load(next_x, k + kAnyDepth, u.end), w.load(next_w, k + kAnyDepth, u.end);
#pragma unroll
    for (int i = 0; i < kAnyDepth; ++i) {
      const float4 s = *reinterpret_cast<const float4*>(&shared.x[i][row]);
      const float4 w0 = *reinterpret_cast<const float4*>(&shared.w[i][column]);
      const float4 w1 = *reinterpret_cast<const float4*>(&shared.w[i][column + kHalf]);
      const float of_x[4] = {s.x, s.y, s.z, s.w};
      const float of_w[2][4] = {{w0.x, w0.y, w0.z, w0.w}, {w1.x, w1.y, w1.z, w1.w}};
#pragma unroll
      for (int v = 0; v < 8; ++v) {
#pragma unroll
        for (int c = 0; c < 4; ++c) sums[v][c] = fmaf(of_x[v / 2], of_w[v % 2][c], sums[v][c]);
      }
    }
  }

  if (a.tuning.along_k.count > 1) {
    unsigned used = 0;
#pragma unroll
    for (int v = 0; v < 8; ++v) used |= static_cast<unsigned>(u.row + row + v / 2 < e.m) << v;
    if (!merge(a, u, sums, used, thread * 8, 1)) return;
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (half == 1 && e.gated) break;
    const Columns<4> columns(e, u.column + column + half * kHalf, 1, a.vectors);
    if (columns.inside == 0) break;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      if (u.row + row + r < e.m) columns.finish(e, u.row + row + r, sums[2 * r + half], sums[2 * r + 1]);
    }
  }
}

}  // namespace strop::lin

// Attention for any dtype and any strides, in fp32 multiply-adds: fp32 at full precision, and what the tensor cores'
// kernel cannot copy in vectors.
//
// Purpose. 32 rows, 32 keys a tile; a head goes through shared memory 32 elements at a time, converted to fp32, so
// that 8.4 KB do for any head size. A half warp has four rows: a lane two of 32 columns of each, 8 sums for 6 values
// read from shared memory. Weights go through shared memory within their warp.
//
// Floor. 4 D operations a query and key at 67 TFLOP/s of fp32 (H100).
#pragma once

#include "base/reduce.cuh"
#include "kernels/attention/attention.cuh"

namespace strop::attn {

struct AnyShared {
  float rows[kAnyRows][kAnyDepth + 1];  // a part of q, then the weights; one more float, so that neighbouring rows lie
  float keys[kAnyKeys][kAnyDepth + 1];  // in different banks. A part of k, then one of v
};

__device__ __forceinline__ float load_float(const Tensor& t, DType dtype, std::int64_t element) {
  if (dtype == DType::kFloat32) return static_cast<const float*>(t.data)[element];
  return to_float(static_cast<const std::uint16_t*>(t.data)[element], dtype);
}

// What no row's offset is. (Strides, and so offsets, may be negative.)
inline constexpr std::int64_t kNowhere = INT64_MIN;

// Elements [c, c + 32) of the rows at `offset`, into shared memory; 0 for those that are nowhere, and beyond d.
template <class Offset>
__device__ __forceinline__ void load_part(float (&to)[32][kAnyDepth + 1], const Problem& p, const Tensor& t, int c,
                                          Offset&& offset) {
  const int column = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int row = static_cast<int>(threadIdx.x) / 32; row < 32; row += kThreads / 32) {
    const std::int64_t at = c + column < p.d ? offset(row) : kNowhere;
    to[row][column] = at == kNowhere ? 0.f : load_float(t, p.dtype, at + (c + column) * t.stride_d);
  }
}

__global__ void __launch_bounds__(kThreads) attention_any_kernel(const __grid_constant__ Args a) {
  ptx::wait_for_previous_kernel();
  constexpr int kParts = 256 / kAnyDepth;
  const Problem& p = a.p;
  Unit u;
  const bool found = u.find(a);
  if (p.dtype == DType::kFloat32) {
    clear_rest<std::uint32_t, 1>(a, u);
  } else {
    clear_rest<std::uint16_t, 1>(a, u);
  }
  if (!found) return;
  AnyShared& shared = dynamic_shared<AnyShared>();
  const int column = static_cast<int>(threadIdx.x) % 16, own = static_cast<int>(threadIdx.x) / 16 * 4;
  const bool busy = u.first + static_cast<int>(threadIdx.x) / 32 * 8 < u.rows;  // of a warp
  float sums[kParts][4][2] = {}, largest[4], weight[4] = {};
  RowKeys keys[4];
#pragma unroll
  for (int r = 0; r < 4; ++r) largest[r] = nothing(), keys[r] = u.keys(a, u.first + own + r);

  for (int begin = u.begin / kAnyKeys * kAnyKeys; begin < u.end; begin += kAnyKeys) {
    const auto load_keys = [&](const Tensor& t, int c) {
      const std::int64_t first = u.keys_at(t) + begin * t.stride_l;
      load_part(shared.keys, p, t, c, [&](int j) { return begin + j < u.s.k ? first + j * t.stride_l : kNowhere; });
    };
    float x[4][2] = {};
    for (int c = 0; c < p.d; c += kAnyDepth) {
      __syncthreads();  // write after read: what the last turn, or the last tile, had there
      load_part(shared.rows, p, p.q, c,
                [&](int r) { return u.first + r < u.rows ? u.row_of(p.q, u.first + r) : kNowhere; });
      load_keys(p.k, c);
      __syncthreads();  // read after write
      if (!busy) continue;
#pragma unroll 8
      for (int i = 0; i < kAnyDepth; ++i) {
        const float k0 = shared.keys[column][i], k1 = shared.keys[column + 16][i];
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const float q = shared.rows[own + r][i];
          x[r][0] = fmaf(q, k0, x[r][0]), x[r][1] = fmaf(q, k1, x[r][1]);
        }
      }
    }
    if (busy) {
      __syncwarp();  // write after read: weights go where this warp's rows of q were
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const float x0 = keys[r].score(p, begin + column, x[r][0]);
        const float x1 = keys[r].score(p, begin + column + 16, x[r][1]);
        float most = fmaxf(largest[r], fmaxf(x0, x1));
#pragma unroll
        for (int d = 8; d > 0; d /= 2) most = fmaxf(most, __shfl_xor_sync(kFullWarp, most, d));
        const float off = offset_of(most), before = exp_of(largest[r] - off);
        const float w0 = exp_of(x0 - off), w1 = exp_of(x1 - off);
        largest[r] = most, weight[r] = fmaf(weight[r], before, w0 + w1);
        shared.rows[own + r][column] = w0, shared.rows[own + r][column + 16] = w1;
#pragma unroll
        for (int part = 0; part < kParts; ++part) sums[part][r][0] *= before, sums[part][r][1] *= before;
      }
    }
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      if (part * kAnyDepth >= p.d) break;
      __syncthreads();  // write after read: k, or the last part of v; and read after write: this warp's weights
      load_keys(p.v, part * kAnyDepth);
      __syncthreads();  // read after write
      if (!busy) continue;
#pragma unroll 8
      for (int j = 0; j < kAnyKeys; ++j) {
        const float v0 = shared.keys[j][column], v1 = shared.keys[j][column + 16];
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const float w = shared.rows[own + r][j];
          sums[part][r][0] = fmaf(w, v0, sums[part][r][0]), sums[part][r][1] = fmaf(w, v1, sums[part][r][1]);
        }
      }
    }
  }

#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const int row = u.first + own + r;
    const float total = group_sum(weight[r], 16), inverse = inverse_of(total);
    if (row >= u.rows) continue;
    float* const partial = u.chunks > 1 ? u.partial(p, u.chunk, row) : nullptr;
    const auto put = [&](int c, float sum) {
      if (c >= p.d) return;
      if (partial != nullptr) {
        partial[c] = sum;
      } else {
        store_out(p, u, row, c, sum * inverse);
      }
    };
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      put(part * kAnyDepth + column, sums[part][r][0]);
      put(part * kAnyDepth + column + 16, sums[part][r][1]);
    }
    if (partial != nullptr && column == 0) partial[p.d] = largest[r], partial[p.d + 1] = total;
  }
  if (u.chunks > 1) merge(a, u);
}

}  // namespace strop::attn

// The usual case of a norm on CUDA, kept short: rows of whole 16-byte vectors, weight and bias of their dtype.
//
// Purpose. Few rows are bound by latency, so a row makes one trip to memory, not one after the other: all loads of its
// terms, of weight and bias are issued before the first is waited for (of tables, one trip more for the rows' numbers).
// That needs the dtype at compile time and no branch a vector; whatever does not fit is norm_kernel's (norm.cuh). Two
// reductions follow, and the stores. Instructions count as well, as each comes from memory once a launch: 768 columns
// in fp16 with the residual are 529 in all, where norm_kernel has 2115 and twelve trips.
//
// Bytes. As in norm.cuh. In flight where rows are many, on each multiprocessor: 24 warps of 768 columns with the
// residual, 72 KB; 40 suffice for an H100's 3 TB/s.
#pragma once

#include <cmath>
#include <cstdint>

#include "base/ptx/grid.cuh"
#include "base/reduce.cuh"
#include "kernels/norm/norm_part.cuh"
#include "strop/launch.h"

namespace strop::norm {

// What a Problem says, in the order in which it is needed and not more of it: parameters come from memory line by line.
struct VectorArgs {
  struct Rows {
    char* data = nullptr;   // null where it is not there
    std::int64_t step = 0;  // bytes
  };
  std::int64_t rows = 0;
  int vectors = 0;  // of a row
  Kind kind = Kind::kLayer;
  const char *weight = nullptr, *bias = nullptr;
  Rows terms[kMaxTerms], residual_out, out;
  float inverse_n = 1, eps = 0;
  Index index[kMaxTerms];
};

// Four chains, for their latency.
template <int kVectors, int kE, class Term>
__device__ __forceinline__ float sum_of(const float (&f)[kVectors][kE], Term add) {
  float sums[4] = {};
#pragma unroll
  for (int j = 0; j < kVectors; ++j) {
#pragma unroll
    for (int e = 0; e < kE; ++e) sums[e % 4] = add(sums[e % 4], f[j][e]);
  }
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// kFloats elements of a row a thread, of a warp or (not kWarp) of the block, which has no other.
// kTables: terms may have numbers, and there may be three.
template <DType kDType, int kFloats, bool kWarp, bool kTables>
__global__ void __launch_bounds__(kWarp ? 32 * kRowsABlock : kMaxThreads, !kWarp && kFloats <= 16 ? 2 : 1)
    norm_vectors_kernel(const __grid_constant__ VectorArgs a) {
  constexpr int kBytes = kDType == DType::kFloat32 ? 4 : 2, kE = 16 / kBytes, kVectors = kFloats / kE;
  constexpr int kTerms = kTables ? 3 : 2;
  // Where a block holds much, registers do not suffice for terms and parameters at once.
  constexpr bool kEarly = kWarp || kFloats * kBytes <= 32;
  using V = Vector<kE, kBytes, kDType>;
  ptx::wait_for_previous_kernel();
  ptx::let_next_kernel_begin();
  const unsigned rank = kWarp ? threadIdx.x % 32 : threadIdx.x, threads = kWarp ? 32 : blockDim.x;
  const unsigned row = kWarp ? blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32 : blockIdx.x;
  if (row >= a.rows) return;  // all lanes; of a block without a row there is none
  const auto inside = [&](int j) { return static_cast<int>(j * threads + rank) < a.vectors; };
  // Where the thread's first vector is; others are `vector_step` apart.
  const auto begin = [&](const char* data) { return data + std::uint64_t{rank} * 16; };
  const auto begin_of_row = [&](const VectorArgs::Rows& m, std::int64_t r) { return begin(m.data + r * m.step); };
  const std::uint64_t vector_step = threads * 16;

  // Numbers first, as rows wait for them. They are made 64-bit behind the loads, which would wait otherwise.
  bool none = false;
  int2 words[kTerms];
  if constexpr (kTables) {
#pragma unroll
    for (int k = 0; k < kTerms; ++k) {
      const Integers& numbers = a.index[k].numbers;
      if (numbers.data == nullptr) continue;
      if (numbers.wide) {
        const auto wide = static_cast<const std::int64_t*>(numbers.data)[row * numbers.stride];
        words[k] = make_int2(static_cast<int>(wide), static_cast<int>(wide >> 32));
      } else {
        words[k].x = static_cast<const std::int32_t*>(numbers.data)[row * numbers.stride];
      }
    }
  }
  V weight[kVectors], bias[kVectors], terms[kTerms][kVectors] = {};
  const V one = V::all(1.f);
#pragma unroll
  for (int j = 0; j < kVectors; ++j) weight[j] = one, bias[j] = {};
  const auto load_parameter = [&](V(&to)[kVectors], const char* data) {
    if (data == nullptr) return;
    const char* const from = begin(data);
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      if (!inside(j)) continue;
      const uint4 w =
          *reinterpret_cast<const uint4*>(from + j * vector_step);  // through L1: other rows read it as well
      to[j] = {w.x, w.y, w.z, w.w};
    }
  };
  const auto load_parameters = [&] {
    load_parameter(weight, a.weight);
    load_parameter(bias, a.bias);
  };
  if constexpr (kEarly) load_parameters();
  std::int64_t from[kTerms];
#pragma unroll
  for (int k = 0; k < kTerms; ++k) {
    from[k] = row;
    if constexpr (kTables) {
      const Index& index = a.index[k];
      if (index.numbers.data == nullptr) continue;
      const std::int64_t high = index.numbers.wide ? words[k].y : words[k].x >> 31;
      from[k] = row_in(index, high << 32 | static_cast<std::uint32_t>(words[k].x));
      none = none || from[k] < 0;
    }
  }
#pragma unroll
  for (int k = 0; k < kTerms; ++k) {
    if ((k > 0 && a.terms[k].data == nullptr) || none) continue;
    const char* const data = begin_of_row(a.terms[k], from[k]);
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      if (inside(j)) terms[k][j].load(data + j * vector_step);
    }
  }

  float s[kVectors][kE];
#pragma unroll
  for (int j = 0; j < kVectors; ++j) terms[0][j].to_floats(s[j], kDType);
#pragma unroll
  for (int k = 1; k < kTerms; ++k) {
    if (a.terms[k].data == nullptr) continue;
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      float f[kE];
      terms[k][j].to_floats(f, kDType);
#pragma unroll
      for (int e = 0; e < kE; ++e) s[j][e] += f[e];
    }
  }
  if (none) {
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
#pragma unroll
      for (int e = 0; e < kE; ++e) s[j][e] = inside(j) ? NAN : 0.f;
    }
  }
  if constexpr (!kEarly) load_parameters();
  const auto store = [&](const VectorArgs::Rows& to) {
    char* const data = const_cast<char*>(begin_of_row(to, row));
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      if (!inside(j)) continue;
      V v;
      v.from_floats(s[j], kDType);
      *reinterpret_cast<uint4*>(data + j * vector_step) = make_uint4(v.words[0], v.words[1], v.words[2], v.words[3]);
    }
  };
  if (a.residual_out.data != nullptr) store(a.residual_out);

  Shared& shared = dynamic_shared<Shared>();
  const auto plus = [](float sum, float f) { return sum + f; };
  if (a.kind == Kind::kLayer) {
    const float sum = sum_of(s, plus);
    const float mean = (kWarp ? warp_sum(sum) : block_sum(sum, shared.first)) * a.inverse_n;
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      const float shift = inside(j) ? mean : 0.f;
#pragma unroll
      for (int e = 0; e < kE; ++e) s[j][e] -= shift;
    }
  }
  float first = sum_of(s, plus), second = sum_of(s, [](float sum, float f) { return fmaf(f, f, sum); });
  if constexpr (kWarp) {
    first = warp_sum(first), second = warp_sum(second);
  } else {
    block_sum(first, second, shared.first, shared.second);
  }
  float offset, scale;
  statistics(a.kind, a.inverse_n, a.eps, first, second, offset, scale);
  offset *= -scale;
#pragma unroll
  for (int j = 0; j < kVectors; ++j) {
    float w[kE], b[kE];
    weight[j].to_floats(w, kDType);
    bias[j].to_floats(b, kDType);
#pragma unroll
    for (int e = 0; e < kE; ++e) s[j][e] = fmaf(fmaf(s[j][e], scale, offset), w[e], b[e]);
  }
  store(a.out);
}

}  // namespace strop::norm

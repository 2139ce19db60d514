// Linear layers on CUDA: what the kernels of the product share; the maths is in linear.h. linear_mma.cuh has the kernel
// on the tensor cores, linear_any.cuh the one for any dtype and layout, linear_epilogue.cuh what follows the sums.
//
// A block has a tile of results or, where few rows make few tiles, a part of K of one. Parts leave their sums in the
// workspace, and the block that comes last adds them up, in the order of K. No block waits for another.
#pragma once

#include "base/arrival.cuh"
#include "kernels/linear/linear.h"
#include "kernels/linear/linear_epilogue.cuh"
#include "kernels/linear/linear_tuning.h"
#include "strop/launch.h"

namespace strop::lin {

struct Args {
  Problem p;
  Tuning tuning;
  bool vectors = false;  // residual and out can be moved by 16 bytes
  unsigned column_tiles = 1;
  std::uint64_t tag = 0;  // of the launch
};

// A block's part of the work. Neighbouring blocks have one tile's parts, then one row of tiles, whose x they share.
struct Unit {
  unsigned tile, part;
  int row, column;  // first result
  int begin, end;   // of K

  __device__ __forceinline__ explicit Unit(const Args& a) {
    const auto parts = static_cast<unsigned>(a.tuning.along_k.count);
    tile = blockIdx.x / parts, part = blockIdx.x % parts;
    row = static_cast<int>(tile / a.column_tiles) * a.tuning.rows;
    column = static_cast<int>(tile % a.column_tiles) * (a.p.epilogue.gated ? a.tuning.columns / 2 : a.tuning.columns);
    const std::int64_t from = part * a.tuning.along_k.depth, to = from + a.tuning.along_k.depth;
    begin = static_cast<int>(from), end = static_cast<int>(to < a.p.k ? to : a.p.k);
  }
};

// Of all threads of a block, with the sums of its part: 4 kVectors a thread, of which `used` has a bit for each vector
// that holds a row of the problem. Vector v has place first + v * step of the part. True for the block that came last,
// with the tile's sums.
template <int kVectors>
__device__ __forceinline__ bool merge(const Args& a, const Unit& u, float (&sums)[kVectors][4], unsigned used,
                                      int first, int step) {
  const std::int64_t m = a.p.epilogue.m, tiles = split_tiles(m, a.p.epilogue.n, a.p.epilogue.gated);
  const int parts = a.tuning.along_k.count, size = few_rows(m) * kColumns / 4;
  auto* const counters = static_cast<std::uint64_t*>(a.p.workspace);
  float4* const at = reinterpret_cast<float4*>(static_cast<char*>(a.p.workspace) + counter_bytes(tiles)) +
                     static_cast<std::int64_t>(u.tile) * parts * size + first;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    if ((used >> v & 1) != 0)
      at[static_cast<std::int64_t>(u.part) * size + v * step] =
          make_float4(sums[v][0], sums[v][1], sums[v][2], sums[v][3]);
  }
  unsigned& last = dynamic_shared<unsigned>();  // in place of tiles, which are not read any more
  __syncthreads();  // the block's sums are in the workspace before one thread hands them over; tiles have been read
  if (threadIdx.x == 0) last = last_to_arrive(counters + u.tile, a.tag, static_cast<unsigned>(parts));
  __syncthreads();  // read after write: `last`, and with it what the other blocks handed over
  if (last == 0) return false;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) sums[v][0] = sums[v][1] = sums[v][2] = sums[v][3] = 0.f;
  // As many parts at once as registers allow: each turn is a trip to L2, for which nothing else is left to do.
  constexpr int kParts = kVectors <= 8 ? 16 / kVectors : 2;
  for (int part = 0; part < parts; part += kParts) {
    float4 s[kParts][kVectors];
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        s[i][v] = make_float4(0, 0, 0, 0);
        if ((used >> v & 1) != 0 && part + i < parts)
          s[i][v] = at[static_cast<std::int64_t>(part + i) * size + v * step];
      }
    }
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        sums[v][0] += s[i][v].x, sums[v][1] += s[i][v].y, sums[v][2] += s[i][v].z, sums[v][3] += s[i][v].w;
      }
    }
  }
  return true;
}

}  // namespace strop::lin

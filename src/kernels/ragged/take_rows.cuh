// Rows taken by number on CUDA; the maths is in take_rows.h.
//
// Purpose   One pass over the rows of the result, each written once: zeros included, so nothing is cleared before.
// Design    A row is cut into units of 16 bytes, or of what alignment and length allow, down to an element. A block
//           takes some rows at a time; a thread has the numbers of four units' rows in flight, then the units.
// Bytes     take_rows.h.
// Floor     Bytes over the copy rate, and a launch with two trips to memory one after the other.
#pragma once

#include "base/ptx/grid.cuh"
#include "kernels/ragged/take_rows.h"
#include "kernels/ragged/take_rows_tuning.h"
#include "strop/launch.h"

namespace strop::ragged {

struct TakeArgs {
  TakeRows p;
  int units;                      // of a row
  std::int64_t x_step, out_step;  // bytes from unit to unit
  int rows_a_block;
};

template <class Unit>
__global__ void __launch_bounds__(kTakeThreads) take_rows_kernel(const __grid_constant__ TakeArgs a) {
  ptx::wait_for_previous_kernel();
  const TakeRows& p = a.p;
  const char* const x = static_cast<const char*>(p.x.data);
  char* const out = static_cast<char*>(p.out.data);
  for (std::int64_t first = std::int64_t{blockIdx.x} * a.rows_a_block; first < p.rows;
       first += std::int64_t{gridDim.x} * a.rows_a_block) {
    const int rows = static_cast<int>(min(std::int64_t{a.rows_a_block}, p.rows - first)), units = rows * a.units;
    for (int i = static_cast<int>(threadIdx.x); i < units; i += kUnitsAThread * kTakeThreads) {
      // In turn: each loop's loads are on their way together.
      std::int64_t to[kUnitsAThread], row[kUnitsAThread];
      int at[kUnitsAThread];
      Unit v[kUnitsAThread];
#pragma unroll
      for (int k = 0; k < kUnitsAThread; ++k) {
        const int unit = i + k * kTakeThreads;
        to[k] = first + unit / a.units, at[k] = unit % a.units;
        row[k] = unit < units ? p.row(to[k]) : -1;
      }
#pragma unroll
      for (int k = 0; k < kUnitsAThread; ++k) {
        v[k] = Unit{};
        if (row[k] >= 0 && row[k] < p.x_rows)
          v[k] = *reinterpret_cast<const Unit*>(x + row[k] * p.x.stride_row * p.bytes + at[k] * a.x_step);
      }
#pragma unroll
      for (int k = 0; k < kUnitsAThread; ++k) {
        if (i + k * kTakeThreads < units)
          *reinterpret_cast<Unit*>(out + to[k] * p.out.stride_row * p.bytes + at[k] * a.out_step) = v[k];
      }
    }
  }
}

}  // namespace strop::ragged

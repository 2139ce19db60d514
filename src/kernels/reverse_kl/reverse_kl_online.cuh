// One pass over a row's logits: running maxima, sums of exponentials and the sum that the divergence needs, mergeable
// in any grouping.
//
// With x' = x log2(e) - shift_x, shift_x the running maximum in the same unit, and y' likewise, a State holds
//   sx = sum 2^x',  sy = sum 2^y',  t = sum 2^x' (x' - y')
// from which, in base 2, kl = t / sx + log2 (sy / sx), and the gradient of logit v is p (x' - y' - t / sx): the
// logarithms cancel. A move of shift_x by d = old - new turns t into 2^d (t + sx d), one of shift_y into t - sx d.
// The same recurrence for a softmax alone: Milakov and Gimelshein 2018, arXiv:1805.02867.
#pragma once

#include <cmath>

#include "base/ptx/math.cuh"
#include "base/reduce.cuh"

namespace strop::reverse_kl {

inline constexpr float kLog2E = 1.44269504f;
inline constexpr float kLn2 = 0.693147181f;

// Where nothing finite was seen the shift is 0, so that -inf stays -inf and its exponential 0.
__device__ __forceinline__ float shift_of(float max) { return max == -INFINITY ? 0.f : max * kLog2E; }

struct State {
  float xmax = -INFINITY, sx = 0, t = 0;
  float ymax = -INFINITY, sy = 0;
};

// 2^d s, and 0 where either is: not NaN where d is inf, or s is inf and 2^d underflows.
__device__ __forceinline__ float rescaled(float s, float d) {
  const float scale = ptx::exp2_approx(d);
  return s == 0.f || scale == 0.f ? 0.f : scale * s;
}

// Moves the maximum of x, which may only grow.
__device__ __forceinline__ void raise_x(State& s, float max) {
  const float d = shift_of(s.xmax) - shift_of(max);
  s.t = rescaled(s.sx == 0.f ? 0.f : s.t + s.sx * d, d);
  s.sx = rescaled(s.sx, d);
  s.xmax = max;
}
__device__ __forceinline__ void raise_y(State& s, float max) {
  const float d = shift_of(s.ymax) - shift_of(max);
  if (s.sx != 0.f) s.t -= s.sx * d;
  s.sy = rescaled(s.sy, d);
  s.ymax = max;
}

// Makes room for logits up to these, which may be NaN.
__device__ __forceinline__ void raise(State& s, float xmax, float ymax) {
  if (xmax > s.xmax) raise_x(s, xmax);
  if (ymax > s.ymax) raise_y(s, ymax);
}

// A State that is being added to, and what its logits are shifted by: the same in all lanes of a warp.
struct Running : State {
  float shift_x = 0, shift_y = 0;

  // Makes room for logits up to these of all lanes, which may be NaN. All lanes of a warp, together.
  __device__ __forceinline__ void make_room(float x, float y) {
    if (__any_sync(kFullWarp, x > xmax || y > ymax)) {
      raise(*this, warp_max(fmaxf(x, xmax)), warp_max(fmaxf(y, ymax)));
      shift_x = shift_of(xmax), shift_y = shift_of(ymax);
    }
  }

  // Adds kM * kN logits of each, none above the maxima. Whether one of them was infinite, or NaN.
  template <int kM, int kN>
  __device__ __forceinline__ bool add(const float (&x)[kM][kN], const float (&y)[kM][kN]) {
    const float before = t;
#pragma unroll
    for (int i = 0; i < kM * kN; ++i) {
      const float x2 = fmaf(x[i / kN][i % kN], kLog2E, -shift_x), y2 = fmaf(y[i / kN][i % kN], kLog2E, -shift_y);
      const float e = ptx::exp2_approx(x2);
      sx += e;
      sy += ptx::exp2_approx(y2);
      t = fmaf(e, x2 - y2, t);
    }
    if (fabsf(t) < INFINITY) return false;
    t = before;  // once more, without 0 * inf; a NaN of x goes through sx
#pragma unroll
    for (int i = 0; i < kM * kN; ++i) {
      const float x2 = fmaf(x[i / kN][i % kN], kLog2E, -shift_x), y2 = fmaf(y[i / kN][i % kN], kLog2E, -shift_y);
      const float e = ptx::exp2_approx(x2);
      if (e > 0.f) t = fmaf(e, x2 - y2, t);
    }
    return true;
  }
};

// What this and another State say together.
__device__ __forceinline__ void merge(State& s, State other) {
  const float xmax = fmaxf(s.xmax, other.xmax), ymax = fmaxf(s.ymax, other.ymax);
  raise(s, xmax, ymax), raise(other, xmax, ymax);
  s.sx += other.sx, s.t += other.t, s.sy += other.sy;
}

// One State from those of a warp's lanes, the same bits in each; `warp_sum` where their maxima are equal.
__device__ __forceinline__ State warp_sum(State s) {
  s.sx = strop::warp_sum(s.sx), s.t = strop::warp_sum(s.t), s.sy = strop::warp_sum(s.sy);
  return s;
}
__device__ __forceinline__ State warp_merge(State s) {
  raise(s, warp_max(s.xmax), warp_max(s.ymax));
  return warp_sum(s);
}

// d loss / d x of a logit, from the State of its whole row.
struct alignas(16) Gradient {
  float shift_x, shift_y, scale, scaled_mean;

  Gradient() = default;
  __device__ __forceinline__ Gradient(const State& s, float weight)
      : shift_x(shift_of(s.xmax)), shift_y(shift_of(s.ymax)), scale(weight * kLn2 / s.sx) {
    scaled_mean = scale * (s.t / s.sx) + 0.f * s.sy;  // a NaN of the teacher is in sy alone where the student is -inf
  }

  // kGuarded: also where a logit of the row is infinite.
  template <bool kGuarded>
  __device__ __forceinline__ float of(float x, float y) const {
    const float x2 = fmaf(x, kLog2E, -shift_x), y2 = fmaf(y, kLog2E, -shift_y), p = ptx::exp2_approx(x2);
    const float g = p * fmaf(scale, x2 - y2, -scaled_mean);
    return kGuarded && p == 0.f ? 0.f : g;
  }
};

// The divergence of a row.
__device__ __forceinline__ float divergence(const State& s) { return kLn2 * (s.t / s.sx + log2f(s.sy / s.sx)); }

}  // namespace strop::reverse_kl

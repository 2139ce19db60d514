// What most warps do: read rows through the ring into their States, and write gradients.
#pragma once

#include <type_traits>

#include "kernels/reverse_kl/reverse_kl_exchange.cuh"
#include "kernels/reverse_kl/reverse_kl_ring.cuh"

namespace strop::reverse_kl {

// The other warps, each for itself: rows through the ring, gradients.
template <class X, class Y, bool kFused>
__device__ __forceinline__ void stream_rows(const Args& a, Shared& shared, Ring<X, Y>& ring, int rank, int group) {
  constexpr int kE = X::kE;
  const DType x_dtype = a.p.student.dtype, y_dtype = a.p.teacher.dtype;
  const int warp = threadIdx.x / 32, steps = a.tuning.steps;
  const bool held = !kFused || a.tuning.held;
  Rows rows(a, shared.valid, group), masked_rows(a, shared.valid, group, true);
  int slot = 0, held_slot = 0;  // of the next vector to take; of the next one whose gradient is written
  Row x_row = row_from<X>(a, a.p.student, a.p.student.data), grad_row = row_from<X>(a, a.p.grad, a.p.grad.data);
  Part x_part(a, x_row, rank, kE), grad_part(a, grad_row, rank, kE);
  const auto store = [&](int v, const X& out) {
    if (grad_part.is_whole(v)) {
      out.store(grad_row, v);
    } else {
      store_elements(out, grad_row, grad_row.template first_of<kE>(v), x_dtype);
    }
  };
  const auto gradient_of = [&](const Gradient& gradient, int slot_of_row, int u, auto guarded) {
    float x[kE], y[kE], g[kE];
    ring.x(slot_of_row, u).to_floats(x, x_dtype), ring.y(slot_of_row, u).to_floats(y, y_dtype);
#pragma unroll
    for (int e = 0; e < kE; ++e) g[e] = gradient.template of<decltype(guarded)::value>(x[e], y[e]);
    X out;
    out.from_floats(g, x_dtype);
    return out;
  };
  const auto write_gradient = [&](unsigned row, int i, bool guarded) {
    ptx::mbarrier_wait(&shared.row_there[i % kRows], i / kRows & 1);  // read after write: the row's gradient
    if constexpr (kFused) {
      const Gradient gradient = shared.rows[i % kRows];
      move_to<X>(grad_row, grad_part, a, a.p.grad, row, rank);
      int from = held ? held_slot : slot;  // a reference would put both into local memory
      int v = grad_part.begin + threadIdx.x;
#pragma unroll 1
      for (int step = 0; step < steps; ++step) {
        if (!held) ring.wait();
        const int last = v + (kVectors - 1) * a.tuning.threads;
        if (!guarded && grad_part.is_whole(v) && grad_part.is_whole(last)) {
#pragma unroll
          for (int u = 0; u < kVectors; ++u) {
            gradient_of(gradient, from, u, std::false_type{}).store(grad_row, v + u * a.tuning.threads);
          }
        } else {
#pragma unroll 1
          for (int u = 0; u < kVectors; ++u) {
            if (const int w = v + u * a.tuning.threads; w < grad_part.end)
              store(w, gradient_of(gradient, from, u, std::true_type{}));
          }
        }
        v = last + a.tuning.threads;
        from = ring.after(from);
        ring.release();
      }
      if (held) {
        held_slot = from;
      } else {
        slot = from;
      }
    }
  };
  const auto write_zeros = [&] {  // in a masked row, if there is one more
    unsigned row;
    if (kFused && masked_rows.next(a, shared.valid, row)) {
      move_to<X>(grad_row, grad_part, a, a.p.grad, row, rank);
#pragma unroll 1
      for (int v = grad_part.begin + threadIdx.x; v < grad_part.end; v += a.tuning.threads) store(v, X{});
      return true;
    }
    return false;
  };

  // A vector that need not lie in the row, or not wholly: -inf where it does not.
  const auto take_cut = [&](int u, int v, X& x, Y& y) {
    if (v < x_part.end) {
      x = keep_inside(ring.x(slot, u), x_row, v, x_dtype), y = keep_inside(ring.y(slot, u), x_row, v, y_dtype);
    } else {
      x.fill_negative_infinity(x_dtype), y.fill_negative_infinity(y_dtype);
    }
  };

  // How many rows later a row's State is waited for. Without a gradient only its place must be free again.
  const int lag = !held ? 0 : kFused ? 1 : kRows - 1;
  unsigned row, previous = 0;
  bool infinite = false, previous_infinite = false;  // a logit of this thread's part of the row
  for (int i = 0;; ++i, previous = row, previous_infinite = infinite) {
    const bool more = rows.next(a, shared.valid, row);
    if (more) {
      Running s;
      infinite = false;
      if (!a.uniform) x_row = row_at<X>(a, a.p.student, row), x_part = Part(a, x_row, rank, kE);
      int v = x_part.begin + threadIdx.x;
#pragma unroll 1
      for (int step = 0; step < steps; ++step) {
        X x[kVectors];
        Y y[kVectors];
        ring.wait();
        const int last = v + (kVectors - 1) * a.tuning.threads;
        const bool whole = x_part.is_whole(v) && x_part.is_whole(last);  // and so those between
#pragma unroll
        for (int u = 0; u < kVectors; ++u) {
          if (whole) {
            x[u] = ring.x(slot, u), y[u] = ring.y(slot, u);
          } else {
            take_cut(u, v + u * a.tuning.threads, x[u], y[u]);
          }
        }
        v = last + a.tuning.threads;
        slot = ring.after(slot);
        s.make_room(X::max(x, x_dtype), Y::max(y, y_dtype));
        float xf[kVectors][kE], yf[kVectors][kE];
#pragma unroll
        for (int u = 0; u < kVectors; ++u) {
          x[u].to_floats(xf[u], x_dtype), y[u].to_floats(yf[u], y_dtype);
        }
        infinite |= s.add(xf, yf);
        if (!kFused || !held) ring.release();
      }
      const State of_warp = warp_sum(s);
      // Write after read: the exchanging warp has read what was in this place, as its row's State has been waited for;
      // and it may write that again once all lanes here have read it.
      __syncwarp();
      if (threadIdx.x % 32 == 0) {
        shared.warps[i % kRows][warp] = of_warp;
        ptx::mbarrier_arrive(&shared.warps_there[i % kRows]);
      }
    }
    write_zeros();  // rather than wait
    if (lag == 0 ? more : i >= lag)
      write_gradient(lag == 0 ? row : previous, i - lag, lag == 0 ? infinite : previous_infinite);
    if (!more) break;
  }
  while (write_zeros()) {
  }
}

}  // namespace strop::reverse_kl

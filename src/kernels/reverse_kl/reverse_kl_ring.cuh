// A thread's ring in shared memory: vectors of student and teacher logits, copied there long before they are needed.
//
// Every thread copies what it will read itself, so nothing but its own copies is waited for, and no barrier is needed.
#pragma once

#include "base/ptx/async_copy.cuh"
#include "kernels/reverse_kl/reverse_kl_rows.cuh"

namespace strop::reverse_kl {

// Waits until at most `newer` of this thread's copies are on their way. The instruction wants a constant.
template <int kLow = 0, int kHigh = kMaxSlots - 1>
__device__ __forceinline__ void wait_for_copies(int newer) {
  if constexpr (kLow == kHigh) {
    ptx::copy_async_wait<kLow>();
  } else {
    constexpr int kMiddle = (kLow + kHigh) / 2;
    if (newer <= kMiddle) {
      wait_for_copies<kLow, kMiddle>(newer);
    } else {
      wait_for_copies<kMiddle + 1, kHigh>(newer);
    }
  }
}

// These are rare and stay out of the way; rows and vectors go by value, so that the caller's stay in registers.

// Vector v of a row element by element: one that lies partly outside, or is not contiguous. -inf outside.
template <class V>
__device__ __noinline__ void load_elements(V* to, Row row, int v, DType dtype) {
  float f[V::kE];
#pragma unroll
  for (int e = 0; e < V::kE; ++e) {
    f[e] = -INFINITY;
    if (is_inside(row, v, V::kE, e))
      f[e] = V::load_element(row, static_cast<std::int64_t>(v) * V::kE - row.shift + e, dtype);
  }
  V packed;
  packed.from_floats(f, dtype);
  *to = packed;
}

// Vector v with -inf for the elements that are not the row's.
template <class V>
__device__ __noinline__ V keep_inside(V vector, Row row, int v, DType dtype) {
  float f[V::kE];
  vector.to_floats(f, dtype);
#pragma unroll
  for (int e = 0; e < V::kE; ++e) f[e] = is_inside(row, v, V::kE, e) ? f[e] : -INFINITY;
  vector.from_floats(f, dtype);
  return vector;
}

// Those elements of vector v that are the row's.
template <class V>
__device__ __noinline__ void store_elements(V vector, Row row, int v, DType dtype) {
  float f[V::kE];
  vector.to_floats(f, dtype);
#pragma unroll
  for (int e = 0; e < V::kE; ++e) {
    if (is_inside(row, v, V::kE, e))
      V::store_element(row, static_cast<std::int64_t>(v) * V::kE - row.shift + e, f[e], dtype);
  }
}

template <class V>
__device__ __forceinline__ void copy_vector(V* to, const char* from) {
  if constexpr (sizeof(V) == 16) {
    ptx::copy_async_16(to, from);
  } else {
    ptx::copy_async_8(to, from);
  }
}

template <class X, class Y>
class Ring {
 public:
  // `passes` over each row.
  __device__ __forceinline__ Ring(const Args& a, char* memory, int rank, int group, int passes)
      : a_(a),
        rows_(a, group),
        rank_(rank),
        steps_(a.tuning.steps * passes),
        end_(a.tuning.slots * kVectors * a.tuning.threads),
        x_row_(row_at<X>(a, a.p.student, {})),
        y_row_(row_at<Y>(a, a.p.teacher, {})),
        part_(a, x_row_, rank, X::kE) {
    // The wider vectors first, so that both arrays are aligned.
    constexpr bool kXFirst = sizeof(X) >= sizeof(Y);
    char* const second = memory + end_ * (kXFirst ? sizeof(X) : sizeof(Y));
    x_ = reinterpret_cast<X*>(kXFirst ? memory : second) + threadIdx.x;
    y_ = reinterpret_cast<Y*>(kXFirst ? second : memory) + threadIdx.x;
  }

  __device__ __forceinline__ void start() {
    next_row();
#pragma unroll 1
    for (int n = a_.tuning.slots; n > 0; --n) release();
  }

  // Waits for the next step in the order of copying.
  __device__ __forceinline__ void wait() { wait_for_copies(--on_their_way_); }
  // A slot's number is that of its first vector.
  __device__ __forceinline__ int after(int slot) const {
    slot += kVectors * a_.tuning.threads;
    return slot == end_ ? 0 : slot;
  }
  __device__ __forceinline__ X x(int slot, int u) const { return x_[slot + u * a_.tuning.threads]; }
  __device__ __forceinline__ Y y(int slot, int u) const { return y_[slot + u * a_.tuning.threads]; }

  // The oldest slot in use has been read for the last time: the next vectors come into it.
  __device__ __forceinline__ void release() {
    if (left_ == 0) return;
    const int step = a_.tuning.threads, last = v_ + (kVectors - 1) * step;
    if (v_ >= copy_begin_ && last < copy_end_) {
#pragma unroll
      for (int u = 0; u < kVectors; ++u) {
        copy_vector(x_ + next_slot_ + u * step, x_from_ + u * step * static_cast<int>(sizeof(X)));
        copy_vector(y_ + next_slot_ + u * step, y_from_ + u * step * static_cast<int>(sizeof(Y)));
      }
    } else {
#pragma unroll 1
      for (int u = 0; u < kVectors; ++u) {
        const int v = v_ + u * step, to = next_slot_ + u * step;
        if (v >= copy_begin_ && v < copy_end_) {
          copy_vector(x_ + to, x_from_ + u * step * static_cast<int>(sizeof(X)));
          copy_vector(y_ + to, y_from_ + u * step * static_cast<int>(sizeof(Y)));
        } else if (v < part_.end) {
          load_elements(x_ + to, x_row_, v, a_.p.student.dtype), load_elements(y_ + to, y_row_, v, a_.p.teacher.dtype);
        }
      }
    }
    v_ = last + step;
    x_from_ += kVectors * step * static_cast<int>(sizeof(X)), y_from_ += kVectors * step * static_cast<int>(sizeof(Y));
    ptx::copy_async_commit();
    ++on_their_way_;
    next_slot_ = after(next_slot_);
    if (--left_ == 0) {
      next_row();
    } else if (left_ == a_.tuning.steps) {
      start_pass();
    }
  }

 private:
  __device__ __forceinline__ void start_pass() {
    v_ = part_.begin + threadIdx.x;
    x_from_ = x_row_.data + (static_cast<std::int64_t>(v_) * X::kE - x_row_.shift) * X::kSize;
    y_from_ = y_row_.data + (static_cast<std::int64_t>(v_) * Y::kE - y_row_.shift) * Y::kSize;
  }

  __device__ __forceinline__ void next_row() {
    RowIndex at;
    if (!rows_.next(a_, at, [](const RowIndex&) {})) return;
    left_ = steps_;
    move_to<X>(x_row_, a_, a_.p.student, at), move_to<Y>(y_row_, a_, a_.p.teacher, at);
    if (!a_.uniform) part_ = Part(a_, x_row_, rank_, X::kE);
    // Vectors that an end of the row cuts are copied whole where the rest is of the row beside it.
    copy_begin_ = max(part_.begin, x_row_.full_begin - (x_row_.shift > 0 && a_.adjoin && at.j > 0));
    copy_end_ = min(part_.end, x_row_.full_end + (a_.adjoin && at.j + 1 < a_.p.inner));
    start_pass();
  }

  const Args& a_;
  Rows rows_;
  int rank_, steps_, left_ = 0;  // of a row; of them, still to copy
  int next_slot_ = 0, end_, on_their_way_ = 0;
  Row x_row_, y_row_;
  Part part_;
  X* x_;
  Y* y_;
  const char *x_from_ = nullptr, *y_from_ = nullptr;  // the next vectors to copy
  int v_ = 0, copy_begin_ = 0, copy_end_ = 0;
};

}  // namespace strop::reverse_kl

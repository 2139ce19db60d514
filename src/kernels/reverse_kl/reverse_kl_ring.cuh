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

// Vector v with -inf for the elements that are not the row's. Out of the way and by value, like load_elements.
template <class V>
__device__ __noinline__ V keep_inside(V vector, Row row, int v, DType dtype) {
  float f[V::kE];
  vector.to_floats(f, dtype);
#pragma unroll
  for (int e = 0; e < V::kE; ++e) f[e] = row.has(row.first_of<V::kE>(v) + e) ? f[e] : -INFINITY;
  vector.from_floats(f, dtype);
  return vector;
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
  __device__ __forceinline__ Ring(const Args& a, const ValidRows& valid, char* memory, int rank, int group, int passes)
      : a_(a),
        valid_(valid),
        rows_(a, valid, group),
        rank_(rank),
        steps_(a.tuning.steps * passes),
        end_(a.tuning.slots * kVectors * a.tuning.threads),
        x_row_(row_from<X>(a, a.p.student, a.p.student.data)),
        y_row_(row_from<Y>(a, a.p.teacher, a.p.teacher.data)),
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
          // By way of variables: what a function returns right into memory, GCC hides from the emulator.
          const X x = load_elements<X>(x_row_, x_row_.template first_of<X::kE>(v), a_.p.student.dtype, -INFINITY);
          const Y y = load_elements<Y>(y_row_, y_row_.template first_of<Y::kE>(v), a_.p.teacher.dtype, -INFINITY);
          x_[to] = x, y_[to] = y;
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
    x_from_ = x_row_.data + x_row_.template first_of<X::kE>(v_) * X::kSize;
    y_from_ = y_row_.data + y_row_.template first_of<Y::kE>(v_) * Y::kSize;
  }

  __device__ __forceinline__ void next_row() {
    unsigned row;
    if (!rows_.next(a_, valid_, row)) return;
    left_ = steps_;
    move_to<X>(x_row_, part_, a_, a_.p.student, row, rank_);
    if (a_.uniform) {
      y_row_.data = data_at<Y>(a_, a_.p.teacher, row);
    } else {
      y_row_ = row_at<Y>(a_, a_.p.teacher, row);
    }
    // Vectors that an end of the row cuts are copied whole where the rest is of the row beside it.
    copy_begin_ = max(part_.begin, x_row_.full_begin - (x_row_.shift > 0 && a_.adjoin && row > 0));
    copy_end_ = min(part_.end, x_row_.full_end + (a_.adjoin && row + 1 < a_.rows));
    start_pass();
  }

  const Args& a_;
  const ValidRows& valid_;
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

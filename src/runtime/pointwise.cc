#include "runtime/pointwise.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <type_traits>

#include "base/chunks.h"
#include "runtime/views.h"

namespace strop::runtime {
namespace {

// The common shape of N tensors with dimensions merged where all of them allow it; the last one is the inner loop.
template <int N>
struct Walk {
  int rank = 0;
  std::int64_t shape[kMostDimensions] = {};
  std::int64_t strides[N][kMostDimensions] = {};  // in bytes
  char* data[N] = {};

  Walk(const Sizes& sizes, const std::array<const Tensor*, N>& tensors) {
    std::array<Tensor, N> views;
    for (int i = 0; i < N; ++i) {
      views[i] = expand(*tensors[i], sizes);
      data[i] = static_cast<char*>(views[i].data);
    }
    for (int d = 0; d < sizes.count; ++d) {
      if (sizes[d] == 1) continue;
      bool merges = rank > 0;
      for (int i = 0; i < N && merges; ++i)
        merges = strides[i][rank - 1] == views[i].strides[d] * dtype_size(views[i].dtype) * sizes[d];
      if (!merges) ++rank;
      shape[rank - 1] = merges ? shape[rank - 1] * sizes[d] : sizes[d];
      for (int i = 0; i < N; ++i) strides[i][rank - 1] = views[i].strides[d] * dtype_size(views[i].dtype);
    }
    if (rank == 0) shape[rank++] = 1;
  }

  // f(pointers, n) for every run of the last dimension, on all cores where it pays.
  template <class F>
  void each_row(F&& f) const {
    std::int64_t rows = 1;
    for (int d = 0; d + 1 < rank; ++d) rows *= shape[d];
    const std::int64_t n = shape[rank - 1];
    if (rows == 0 || n == 0) return;
    if (rank == 1) {
      // One long run is cut, so that threads share it.
      constexpr std::int64_t kPiece = 1 << 14;
      for_each_range((n + kPiece - 1) / kPiece, kPiece, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t piece = begin; piece < end; ++piece) {
          char* at[N];
          for (int i = 0; i < N; ++i) at[i] = data[i] + piece * kPiece * strides[i][0];
          f(at, std::min(kPiece, n - piece * kPiece));
        }
      });
      return;
    }
    for_each_range(rows, n, [&](std::int64_t begin, std::int64_t end) {
      std::int64_t index[kMostDimensions] = {};
      char* at[N];
      for (int i = 0; i < N; ++i) at[i] = data[i];
      for (std::int64_t d = rank - 2, rest = begin; d >= 0; --d) {
        index[d] = rest % shape[d];
        rest /= shape[d];
        for (int i = 0; i < N; ++i) at[i] += index[d] * strides[i][d];
      }
      for (std::int64_t row = begin; row < end; ++row) {
        f(at, n);
        for (int d = rank - 2; d >= 0; --d) {
          for (int i = 0; i < N; ++i) at[i] += strides[i][d];
          if (++index[d] < shape[d]) break;
          for (int i = 0; i < N; ++i) at[i] -= shape[d] * strides[i][d];
          index[d] = 0;
        }
      }
    });
  }

  std::int64_t inner(int i) const { return strides[i][rank - 1]; }
};

template <class T>
T& at(char* p, std::int64_t offset) {
  return *reinterpret_cast<T*>(p + offset);
}

template <class T>
void copy_same(const Tensor& to, const Tensor& from) {
  const Walk<2> walk(to.sizes(), {&to, &from});
  const std::int64_t a = walk.inner(0), b = walk.inner(1);
  walk.each_row([&](char* const* p, std::int64_t n) {
    if (a == sizeof(T) && b == sizeof(T)) {
      std::memcpy(p[0], p[1], static_cast<std::size_t>(n) * sizeof(T));
      return;
    }
    for (std::int64_t i = 0; i < n; ++i) at<T>(p[0], i * a) = at<T>(p[1], i * b);
  });
}

template <class T, class U>
void cast(const Tensor& to, const Tensor& from) {
  const Walk<2> walk(to.sizes(), {&to, &from});
  const std::int64_t a = walk.inner(0), b = walk.inner(1);
  walk.each_row([&](char* const* p, std::int64_t n) {
    for (std::int64_t i = 0; i < n; ++i) at<T>(p[0], i * a) = static_cast<T>(at<U>(p[1], i * b));
  });
}

template <class T, class F>
void apply(const Tensor& a, const Tensor& b, const Tensor& out, F&& f) {
  const Walk<3> walk(out.sizes(), {&out, &a, &b});
  const std::int64_t so = walk.inner(0), sa = walk.inner(1), sb = walk.inner(2);
  walk.each_row([&](char* const* p, std::int64_t n) {
    if (so == sizeof(T) && sa == sizeof(T) && sb == sizeof(T)) {  // a loop that compilers make vectors of
      for (std::int64_t i = 0; i < n; ++i)
        reinterpret_cast<T*>(p[0])[i] = f(reinterpret_cast<const T*>(p[1])[i], reinterpret_cast<const T*>(p[2])[i]);
      return;
    }
    for (std::int64_t i = 0; i < n; ++i) at<T>(p[0], i * so) = f(at<T>(p[1], i * sa), at<T>(p[2], i * sb));
  });
}

// Integers wrap around, as PyTorch's do; signed ones must not be left to C++ for that.
template <class T>
T wrapped(Pointwise op, T a, T b) {
  using U = std::make_unsigned_t<T>;
  const U x = static_cast<U>(a), y = static_cast<U>(b);
  return static_cast<T>(op == Pointwise::kAdd ? x + y : op == Pointwise::kSub ? x - y : x * y);
}

template <class T>
void pointwise(Pointwise op, const Tensor& a, const Tensor& b, const Tensor& out) {
  if constexpr (std::is_integral_v<T>) {
    apply<T>(a, b, out, [op](T x, T y) { return wrapped(op, x, y); });
  } else if (op == Pointwise::kAdd) {
    apply<T>(a, b, out, [](T x, T y) { return x + y; });
  } else if (op == Pointwise::kSub) {
    apply<T>(a, b, out, [](T x, T y) { return x - y; });
  } else {
    apply<T>(a, b, out, [](T x, T y) { return x * y; });
  }
}

}  // namespace

bool copy_on_cpu(const Tensor& to, const Tensor& from) {
  if (to.dtype == from.dtype) {
    switch (dtype_size(to.dtype)) {
      case 1:
        copy_same<std::uint8_t>(to, from);
        return true;
      case 2:
        copy_same<std::uint16_t>(to, from);
        return true;
      case 4:
        copy_same<std::uint32_t>(to, from);
        return true;
      case 8:
        copy_same<std::uint64_t>(to, from);
        return true;
      default:
        return false;
    }
  }
  bool done = false;
  with_type(to.dtype,
            [&](auto t) { done = with_type(from.dtype, [&](auto f) { cast<decltype(t), decltype(f)>(to, from); }); });
  return done;
}

bool pointwise_on_cpu(Pointwise op, const Tensor& a, const Tensor& b, const Tensor& out) {
  if (a.dtype != out.dtype || b.dtype != out.dtype) return false;
  switch (out.dtype) {
    case DType::kInt32:
      pointwise<std::int32_t>(op, a, b, out);
      return true;
    case DType::kInt64:
      pointwise<std::int64_t>(op, a, b, out);
      return true;
    case DType::kFloat32:
      pointwise<float>(op, a, b, out);
      return true;
    case DType::kFloat64:
      pointwise<double>(op, a, b, out);
      return true;
    default:
      return false;
  }
}

bool range_on_cpu(const Tensor& to, std::int64_t start, std::int64_t step) {
  if (to.rank != 1 || (to.dtype != DType::kInt32 && to.dtype != DType::kInt64 && to.dtype != DType::kFloat32))
    return false;
  const std::int64_t size = dtype_size(to.dtype) * to.strides[0];
  with_type(to.dtype, [&](auto type) {
    for (std::int64_t i = 0; i < to.shape[0]; ++i)
      at<decltype(type)>(static_cast<char*>(to.data), i * size) = static_cast<decltype(type)>(start + i * step);
  });
  return true;
}

void store_number(void* to, DType dtype, double real, std::int64_t integer) {
  const bool known = with_type(dtype, [&](auto type) {
    using T = decltype(type);
    const T value = std::is_floating_point_v<T> ? static_cast<T>(real) : static_cast<T>(integer);
    std::memcpy(to, &value, sizeof(value));
  });
  if (!known) throw Error(std::string("a scalar of ") + dtype_name(dtype));
}

}  // namespace strop::runtime

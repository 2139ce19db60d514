// Checks of views that the public API makes on every call: they compare and branch only; a message is put together,
// out of line, once something is wrong.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <utility>

#include "base/integers.h"
#include "strop/status.h"
#include "strop/tensor_view.h"

#define STROP_COLD [[gnu::noinline, gnu::cold]]

#define STROP_RETURN_IF_ERROR(expression)                        \
  do {                                                           \
    if (Status status = (expression); !status.ok()) [[unlikely]] \
      return status;                                             \
  } while (false)

namespace strop::checks {

// ---- Messages -------------------------------------------------------------------------------------------------------

inline std::string tuple_text(const std::int64_t* values, int n) {
  std::string text = "(";
  for (int i = 0; i < n; ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(values[i]);
  }
  return text + (n == 1 ? ",)" : ")");
}
inline std::string shape_text(const TensorView& view) {
  return view.data == nullptr && view.rank == 0 ? "none" : tuple_text(view.shape, std::min(view.rank, kMaxRank));
}
inline std::string strides_text(const TensorView& view) {
  return tuple_text(view.strides, std::min(view.rank, kMaxRank));
}
inline std::string device_text(const TensorView& view) {
  if (view.device == DeviceType::kCpu) return "cpu";
  if (view.device == DeviceType::kCuda) return "cuda:" + std::to_string(view.device_index);
  return "an unsupported device";
}

STROP_COLD inline Status type_error(const char* name, const std::string& expected, const std::string& came) {
  return {StatusCode::kTypeError, std::string(name) + ": expected " + expected + ", got " + came};
}
STROP_COLD inline Status value_error(const char* name, const std::string& expected, const std::string& came) {
  return {StatusCode::kValueError, std::string(name) + ": expected " + expected + ", got " + came};
}

// ---- Dtypes, devices and shapes -------------------------------------------------------------------------------------

STROP_COLD inline Status float_error(const char* name, DType dtype) {
  return type_error(
      name, "float32, float16 or bfloat16",
      dtype == DType::kFloat64 ? "float64 (the arithmetic is float32: convert it first)" : dtype_name(dtype));
}
// float32, float16 or bfloat16.
inline Status check_float(const char* name, DType dtype) {
  if (dtype == DType::kFloat32 || dtype == DType::kFloat16 || dtype == DType::kBFloat16) return {};
  return float_error(name, dtype);
}

inline Status check_device(const char* name, const TensorView& view, bool with_cuda) {
  if (view.device == DeviceType::kCpu) return {};
  if (view.device != DeviceType::kCuda) [[unlikely]]
    return value_error(name, "a CPU or CUDA tensor", device_text(view));
  if (!with_cuda) [[unlikely]]
    return value_error(name, "a CPU tensor, as strop was built without CUDA", "a CUDA tensor");
  return {};
}

STROP_COLD inline Status device_error(const char* name, const TensorView& view, const TensorView& like,
                                      const char* like_name) {
  return value_error(name, device_text(like) + " like " + like_name, device_text(view));
}
inline Status check_same_device(const char* name, const TensorView& view, const TensorView& like,
                                const char* like_name) {
  if (view.device == like.device && (view.device == DeviceType::kCpu || view.device_index == like.device_index))
    return {};
  return device_error(name, view, like, like_name);
}

// That the data, where it is needed, are there and at a multiple of an element's size.
inline Status check_data(const char* name, const TensorView& view, bool empty) {
  if (view.data == nullptr && !empty) [[unlikely]]
    return value_error(name, "a tensor", "none");
  if (reinterpret_cast<std::uintptr_t>(view.data) % static_cast<std::uintptr_t>(dtype_size(view.dtype)) != 0)
      [[unlikely]] {
    return value_error(name, std::string("data aligned to ") + dtype_name(view.dtype), "a misaligned address");
  }
  return {};
}

// In host memory: that the first n numbers are from 0 to rows - 1, `what` being said to be the rows of `table`.
inline Status check_in_range(const char* name, const char* what, const Integers& numbers, std::int64_t n,
                             std::int64_t rows, const char* table) {
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t number = numbers.at(i);
    if (number < 0 || number >= rows) [[unlikely]] {
      return value_error(name, std::string(what) + " from 0 to " + std::to_string(rows - 1) + ", the rows of " + table,
                         std::to_string(number) + " at " + std::to_string(i));
    }
  }
  return {};
}

// Whether `view` has `rank` dimensions, with the sizes of like's first.
inline bool same_shape(const TensorView& view, const TensorView& like, int rank) {
  if (view.rank != rank) return false;
  for (int d = 0; d < rank; ++d) {
    if (view.shape[d] != like.shape[d]) return false;
  }
  return true;
}

// ---- Memory ---------------------------------------------------------------------------------------------------------

// Where the elements of a view lie: [begin, end) as addresses. Empty for an empty view.
struct Range {
  std::uintptr_t begin = 0, end = 0;
  bool overlaps(const Range& other) const { return begin < other.end && other.begin < end; }
};

inline Range range_of(const TensorView& view) {
  if (view.data == nullptr) return {};
  std::int64_t low = 0, high = 0;
  for (int d = 0; d < view.rank; ++d) {
    if (view.shape[d] <= 0) return {};
    const std::int64_t reach = (view.shape[d] - 1) * view.strides[d];
    (reach < 0 ? low : high) += reach;
  }
  const auto base = reinterpret_cast<std::uintptr_t>(view.data);
  const std::int64_t size = dtype_size(view.dtype);
  return {base + static_cast<std::uintptr_t>(low * size), base + static_cast<std::uintptr_t>((high + 1) * size)};
}

// Of two views of one shape.
inline bool same_strides(const TensorView& a, const TensorView& b) {
  for (int d = 0; d < a.rank; ++d) {
    if (a.shape[d] > 1 && a.strides[d] != b.strides[d]) return false;
  }
  return true;
}

// Whether no two elements of a view share memory, judged by its strides: each dimension steps over all that the
// smaller ones reach. (Layouts that interleave more cleverly than that are refused, too.)
inline bool elements_apart(const TensorView& view) {
  std::pair<std::int64_t, std::int64_t> dims[kMaxRank];  // (|stride|, size)
  int n = 0;
  for (int d = 0; d < view.rank; ++d) {
    if (view.shape[d] == 0) return true;
    if (view.shape[d] > 1) dims[n++] = {std::abs(view.strides[d]), view.shape[d]};
  }
  for (int i = 1; i < n; ++i) {  // too few for std::sort, which GCC 12 warns about here
    for (int j = i; j > 0 && dims[j] < dims[j - 1]; --j) std::swap(dims[j], dims[j - 1]);
  }
  std::int64_t reach = 0;
  for (int i = 0; i < n; ++i) {
    if (dims[i].first <= reach) return false;
    reach += dims[i].first * (dims[i].second - 1);
  }
  return true;
}

STROP_COLD inline Status apart_error(const char* name, const TensorView& view) {
  return value_error(name, "elements that share no memory",
                     "shape " + shape_text(view) + " with strides " + strides_text(view));
}
// Of an output.
inline Status check_elements_apart(const char* name, const TensorView& view) {
  if (elements_apart(view)) return {};
  return apart_error(name, view);
}

// Whether two views share an element's memory. Exact where their ranges are disjoint or where they are column ranges of
// one row-major buffer, each (R, n) or (N, C, n); anything else counts as shared.
inline bool share_memory(const TensorView& a, const TensorView& b) {
  if (!range_of(a).overlaps(range_of(b))) return false;
  const int last = a.rank - 1;
  if ((a.rank != 2 && a.rank != 3) || a.dtype != b.dtype || !same_shape(b, a, a.rank) || !same_strides(a, b) ||
      a.strides[last] != 1) {
    return true;
  }
  const std::int64_t size = dtype_size(a.dtype), pitch = a.strides[last - 1] * size;
  if (pitch <= 0 || (a.rank == 3 && a.strides[0] * size % pitch != 0)) return true;
  const auto distance =
      static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(b.data) - reinterpret_cast<std::uintptr_t>(a.data));
  const std::int64_t bytes = (distance % pitch + pitch) % pitch, width = a.shape[last] * size;
  return bytes < width || bytes > pitch - width;
}

// Scratch for a kernel; `bytes` is the name of what says how much.
inline Status check_workspace(const void* workspace, const char* bytes) {
  const auto address = reinterpret_cast<std::uintptr_t>(workspace);
  if (address == 0 || address % 16 != 0) [[unlikely]] {
    return value_error("execution.workspace", std::string("16-byte aligned memory of ") + bytes,
                       address == 0 ? "none" : "a misaligned address");
  }
  return {};
}

}  // namespace strop::checks

// Tensors as a running plan sees them: where the numbers lie and in what order. Views are made by changing that alone.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "strop/status.h"
#include "strop/tensor_view.h"

namespace strop::runtime {

inline constexpr int kMostDimensions = 8;
inline constexpr std::int32_t kNoBlock = -1;

// What goes wrong inside of the runtime is thrown as this, and is a Status again when it leaves (Plan::load,
// Plan::run).
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message, StatusCode code = StatusCode::kValueError)
      : std::runtime_error(message), code(code) {}
  StatusCode code;
};

inline void check(const Status& status) {
  if (!status.ok()) [[unlikely]]
    throw Error(status.message(), status.code());
}

// Sizes, strides, indices: as many as there are dimensions at most.
struct Sizes {
  int count = 0;
  std::int64_t values[kMostDimensions] = {};

  Sizes() = default;
  Sizes(std::initializer_list<std::int64_t> list) {
    for (std::int64_t v : list) push(v);
  }
  void push(std::int64_t value) {
    if (count == kMostDimensions) [[unlikely]]
      throw Error("more than " + std::to_string(kMostDimensions) + " dimensions");
    values[count++] = value;
  }
  std::int64_t operator[](int i) const { return values[i]; }
  std::int64_t& operator[](int i) { return values[i]; }
  bool operator==(const Sizes& other) const {
    if (count != other.count) return false;
    for (int i = 0; i < count; ++i)
      if (values[i] != other.values[i]) return false;
    return true;
  }
};

struct Tensor {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  DeviceType device = DeviceType::kCpu;
  std::int32_t device_index = 0;
  std::int32_t block = kNoBlock;  // of the frame: the memory that it lies in (frame.h)
  std::int32_t rank = 0;
  std::int64_t shape[kMostDimensions] = {};
  std::int64_t strides[kMostDimensions] = {};  // in elements

  std::int64_t numel() const {
    std::int64_t n = 1;
    for (int d = 0; d < rank; ++d) n *= shape[d];
    return n;
  }
  // From the first byte to behind the last, for strides that are not negative.
  std::int64_t bytes() const {
    std::int64_t last = 0;
    for (int d = 0; d < rank; ++d) {
      if (shape[d] == 0) return 0;
      last += (shape[d] - 1) * strides[d];
    }
    return (last + 1) * dtype_size(dtype);
  }
  bool contiguous() const {
    std::int64_t expected = 1;
    for (int d = rank - 1; d >= 0; --d) {
      if (shape[d] != 1 && strides[d] != expected) return numel() == 0;
      expected *= shape[d];
    }
    return true;
  }
  Sizes sizes() const {
    Sizes s;
    s.count = rank;
    for (int d = 0; d < rank; ++d) s.values[d] = shape[d];
    return s;
  }
};

// Where views of nothing point: a null pointer means that there is no tensor.
inline char nothing;

inline bool same_layout(const Tensor& a, const Tensor& b) {
  if (a.data != b.data || a.rank != b.rank || a.dtype != b.dtype) return false;
  for (int d = 0; d < a.rank; ++d)
    if (a.shape[d] != b.shape[d] || (a.shape[d] != 1 && a.strides[d] != b.strides[d])) return false;
  return true;
}

// For the functions of include/strop, which take kMaxRank dimensions.
inline TensorView view_of(const Tensor& t) {
  if (t.rank > kMaxRank) [[unlikely]]
    throw Error("expected at most " + std::to_string(kMaxRank) + " dimensions, got " + std::to_string(t.rank));
  TensorView v;
  v.data = t.data;
  v.dtype = t.dtype;
  v.device = t.device;
  v.device_index = t.device_index;
  v.rank = t.rank;
  for (int d = 0; d < t.rank; ++d) {
    v.shape[d] = t.shape[d];
    v.strides[d] = t.strides[d];
  }
  return v;
}

}  // namespace strop::runtime

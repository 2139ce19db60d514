// TensorView: a tensor that somebody else owns, as the C++ API takes it. No framework is involved.
#pragma once

#include <cstdint>
#include <initializer_list>

namespace strop {

enum class DType : std::uint8_t {
  kFloat32,
  kFloat16,
  kBFloat16,
  kFloat64,
  kBool,  // one byte, 0 or 1
  kInt8,
  kUInt8,
  kInt16,
  kUInt16,
  kInt32,
  kUInt32,
  kInt64,
  kUInt64,
  kOther,  // something that no function here takes (complex, float8, …)
};

enum class DeviceType : std::uint8_t { kCpu, kCuda, kOther };

inline constexpr int kMaxRank = 4;

// Size of one element in bytes; 0 for kOther.
int dtype_size(DType dtype);
// "float32", "bool", …; the names that PyTorch and NumPy use.
const char* dtype_name(DType dtype);

struct TensorView {
  void* data = nullptr;  // first element; null means "no tensor" where an argument is optional
  DType dtype = DType::kFloat32;
  DeviceType device = DeviceType::kCpu;
  std::int32_t device_index = 0;
  std::int32_t rank = 0;
  std::int64_t shape[kMaxRank] = {};
  std::int64_t strides[kMaxRank] = {};  // in elements, any value

  // A row-major tensor.
  static TensorView contiguous(void* data, DType dtype, std::initializer_list<std::int64_t> shape,
                               DeviceType device = DeviceType::kCpu, int device_index = 0);
  std::int64_t numel() const;
};

}  // namespace strop

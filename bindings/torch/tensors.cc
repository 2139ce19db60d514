#include "tensors.h"

#include <stdexcept>
#include <string>

#include "execute.h"

namespace strop::binding {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

DType dtype_of(ScalarType t) {
  switch (t) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Double:
      return DType::kFloat64;
    case ScalarType::Bool:
      return DType::kBool;
    case ScalarType::Char:
      return DType::kInt8;
    case ScalarType::Byte:
      return DType::kUInt8;
    case ScalarType::Short:
      return DType::kInt16;
    case ScalarType::UInt16:
      return DType::kUInt16;
    case ScalarType::Int:
      return DType::kInt32;
    case ScalarType::UInt32:
      return DType::kUInt32;
    case ScalarType::Long:
      return DType::kInt64;
    case ScalarType::UInt64:
      return DType::kUInt64;
    default:
      return DType::kOther;
  }
}

void check(const Status& status) {
  if (status.ok()) return;
  const char* type = status.code() == StatusCode::kTypeError    ? "TypeError"
                     : status.code() == StatusCode::kValueError ? "ValueError"
                                                                : "RuntimeError";
  throw std::runtime_error(std::string("strop ") + type + ": " + status.message());
}

TensorView start_of(const Tensor& t) {
  TensorView v;
  v.data = t.numel() == 0 ? &nothing : t.data_ptr();
  v.dtype = dtype_of(t.scalar_type());
  v.device = t.is_cpu() ? DeviceType::kCpu : t.is_cuda() ? DeviceType::kCuda : DeviceType::kOther;
  v.device_index = t.get_device_index() < 0 ? 0 : t.get_device_index();
  return v;
}

TensorView view_of(const Tensor& t, const char* name) {
  if (t.dim() > kMaxRank) {
    check(Status(StatusCode::kValueError, std::string(name) + ": expected at most " + std::to_string(kMaxRank) +
                                              " dimensions, got " + std::to_string(t.dim())));
  }
  TensorView v = start_of(t);
  v.rank = static_cast<std::int32_t>(t.dim());
  for (int i = 0; i < v.rank; ++i) {
    v.shape[i] = t.size(i);
    v.strides[i] = t.stride(i);
  }
  return v;
}

Output empty(const TensorView& like, DType dtype, int rank) {
  TensorView view;
  void* tensor = nullptr;
  check(empty_tensor(like, dtype, rank, view, &tensor));
  return {Tensor(static_cast<AtenTensorHandle>(tensor)), view};
}

}  // namespace strop::binding

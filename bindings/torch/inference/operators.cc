#include "operators.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>
#include <cstddef>
#include <stdexcept>
#include <string>

// The message of the error that PyTorch's C interface met last; from 2.13 on.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

namespace strop::binding {

void dispatch(const char* name, const char* overload, StableIValue* stack) {
  if (torch_call_dispatcher(name, overload, stack, TORCH_ABI_VERSION) == AOTI_TORCH_SUCCESS) return;
  const char* const what =
      torch_exception_get_what_without_backtrace != nullptr ? torch_exception_get_what_without_backtrace() : nullptr;
  throw std::runtime_error(std::string(name) + ": " + (what != nullptr ? what : "failed, see the log"));
}

// ---- Dtypes, shapes and views ---------------------------------------------------------------------------------------

bool is_float(const Tensor& t) {
  const ScalarType type = t.scalar_type();
  return type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16;
}
bool is_float(const MaybeTensor& t) { return !t.has_value() || is_float(*t); }

bool is_index(const Tensor& t) { return t.scalar_type() == ScalarType::Int || t.scalar_type() == ScalarType::Long; }

bool same_shape(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (std::int64_t i = 0; i < a.dim(); ++i) {
    if (a.size(i) != b.size(i)) return false;
  }
  return true;
}

bool is_alike(const Tensor& t, const Tensor& like) {
  return t.scalar_type() == like.scalar_type() && same_shape(t, like);
}

std::optional<Extent> merged(const std::vector<Extent>& dims) {
  Extent whole;
  bool fits = true;
  for (auto dim = dims.rbegin(); dim != dims.rend(); ++dim) {
    if (dim->size == 1) continue;
    if (whole.size == 1) {
      whole.stride = dim->stride;
    } else {
      fits = fits && dim->stride == whole.stride * whole.size;
    }
    whole.size *= dim->size;
  }
  if (whole.size == 0) return Extent{0, 0};
  return fits ? std::optional(whole) : std::nullopt;
}

std::vector<Extent> extents(const Tensor& t, std::int64_t begin, std::int64_t end) {
  std::vector<Extent> some;
  some.reserve(static_cast<std::size_t>(end - begin));
  for (std::int64_t i = begin; i < end; ++i) some.push_back({t.size(i), t.stride(i)});
  return some;
}

std::vector<std::int64_t> sizes_of(const Tensor& t) {
  std::vector<std::int64_t> sizes;
  for (const Extent& dim : extents(t, 0, t.dim())) sizes.push_back(dim.size);
  return sizes;
}

TensorView view_if(const MaybeTensor& t, const char* name) { return t.has_value() ? view_of(*t, name) : TensorView{}; }

void push(TensorView& view, const Extent& dim) {
  view.shape[view.rank] = dim.size;
  view.strides[view.rank] = dim.stride;
  ++view.rank;
}

TensorView rows_of(const Tensor& t, Tensor& keep) {
  const std::int64_t last = t.dim() - 1;
  keep = t;
  std::optional<Extent> rows = merged(extents(t, 0, last));
  if (!rows.has_value()) {
    keep = torch::stable::contiguous(t);
    rows = merged(extents(keep, 0, last));
  }
  TensorView view = start_of(keep);
  push(view, *rows);
  push(view, {keep.size(last), keep.stride(last)});
  return view;
}

Tensor reinterpreted(const Tensor& t, const std::vector<std::int64_t>& sizes, const std::vector<std::int64_t>& strides,
                     std::int64_t offset) {
  AtenTensorHandle made = nullptr;
  // The offset is from where t begins in its storage.
  if (aoti_torch__reinterpret_tensor(t.get(), static_cast<std::int64_t>(sizes.size()), sizes.data(), strides.data(),
                                     offset, &made) != AOTI_TORCH_SUCCESS) {
    check(Status(StatusCode::kRuntimeError, "PyTorch made no view of a tensor"));
  }
  return Tensor(made);
}

// ---- New tensors ----------------------------------------------------------------------------------------------------

namespace {

Tensor made(const Tensor& t, std::int32_t dtype, const std::vector<std::int64_t>& sizes,
            const std::vector<std::int64_t>& strides) {
  std::int32_t device = 0;
  aoti_torch_get_device_type(t.get(), &device);
  const std::int32_t index = t.get_device_index() < 0 ? 0 : t.get_device_index();
  AtenTensorHandle handle = nullptr;
  if (aoti_torch_empty_strided(static_cast<std::int64_t>(sizes.size()), sizes.data(), strides.data(), dtype, device,
                               index, &handle) != AOTI_TORCH_SUCCESS) {
    check(Status(StatusCode::kRuntimeError, "PyTorch could not allocate an output"));
  }
  return Tensor(handle);
}

}  // namespace

std::vector<std::int64_t> row_major(const std::vector<std::int64_t>& sizes) {
  std::vector<std::int64_t> strides(sizes.size());
  std::int64_t stride = 1;
  for (std::size_t i = sizes.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= std::max<std::int64_t>(sizes[i], 1);
  }
  return strides;
}

Tensor new_tensor(const Tensor& t, const std::vector<std::int64_t>& sizes, const std::vector<std::int64_t>& strides) {
  std::int32_t dtype = 0;
  aoti_torch_get_dtype(t.get(), &dtype);
  return made(t, dtype, sizes, strides);
}

Tensor new_tensor(const Tensor& t, const std::vector<std::int64_t>& sizes) {
  return new_tensor(t, sizes, row_major(sizes));
}

Tensor new_vector(const Tensor& t, std::int64_t size, std::int32_t dtype) { return made(t, dtype, {size}, {1}); }

// ---- Registration ---------------------------------------------------------------------------------------------------

static void implement(OperatorLibrary& m) {
  implement_norms_and_attention(m);
  implement_ragged(m);
  implement_linear(m);
}

}  // namespace strop::binding

STABLE_TORCH_LIBRARY_IMPL(strop, CPU, m) { strop::binding::implement(m); }
#if STROP_WITH_CUDA  // without, tensors of a GPU are for the implementations in PyTorch
STABLE_TORCH_LIBRARY_IMPL(strop, CUDA, m) { strop::binding::implement(m); }
#endif

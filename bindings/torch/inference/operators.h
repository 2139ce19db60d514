// What the operators of rewritten models (this folder) share: calls of other operators, views and new tensors.
//
// Their schemas, what they compute and an implementation in PyTorch of each are in python/strop/rewrite/ops.py; a call
// that a kernel does not take is handed on to that implementation, which has the operator's name with _plain behind it.
// Wrong arguments are errors of the core as elsewhere.
#pragma once

#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdint>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "strop/tensor_view.h"
#include "tensors.h"

namespace strop::binding {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;
using OperatorLibrary = torch::stable::detail::StableLibrary;  // what STABLE_TORCH_LIBRARY_IMPL gives

// Each file's operators, for operators.cc, which registers them for every backend that has kernels.
void implement_norms_and_attention(OperatorLibrary& m);
void implement_ragged(OperatorLibrary& m);
void implement_linear(OperatorLibrary& m);

// ---- Calls of other operators ---------------------------------------------------------------------------------------

// The dispatcher takes what is on the stack, also where it fails, and leaves the results there.
void dispatch(const char* name, const char* overload, StableIValue* stack);

template <class... Args>
std::array<StableIValue, sizeof...(Args)> call(const char* name, const char* overload, const Args&... args) {
  std::array<StableIValue, sizeof...(Args)> stack{torch::stable::detail::from(args)...};
  dispatch(name, overload, stack.data());
  return stack;
}

template <class... Args>
Tensor one(const char* name, const Args&... args) {
  return torch::stable::detail::to<Tensor>(call(name, "", args...)[0]);
}

template <class... Args>
std::tuple<Tensor, Tensor> two(const char* name, const Args&... args) {
  const auto stack = call(name, "", args...);
  return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1])};
}

// ---- Dtypes, shapes and views ---------------------------------------------------------------------------------------

bool is_float(const Tensor& t);  // of those that kernels take
bool is_float(const MaybeTensor& t);
bool is_index(const Tensor& t);
bool same_shape(const Tensor& a, const Tensor& b);

// Whether `t` can stand where `like` does but for its values.
bool is_alike(const Tensor& t, const Tensor& like);

// One dimension.
struct Extent {
  std::int64_t size = 1, stride = 0;
};

// Several dimensions as one, the first the slowest; none where that would take several strides.
std::optional<Extent> merged(const std::vector<Extent>& dims);

// Dimensions [begin, end).
std::vector<Extent> extents(const Tensor& t, std::int64_t begin, std::int64_t end);
std::vector<std::int64_t> sizes_of(const Tensor& t);

TensorView view_if(const MaybeTensor& t, const char* name);
void push(TensorView& view, const Extent& dim);

// (…, n) as (R, n): of the tensor itself where its strides allow it, and else of a copy that `keep` holds.
TensorView rows_of(const Tensor& t, Tensor& keep);

// Another view of a tensor's memory, from its element `offset` on.
Tensor reinterpreted(const Tensor& t, const std::vector<std::int64_t>& sizes, const std::vector<std::int64_t>& strides,
                     std::int64_t offset = 0);

// ---- New tensors ----------------------------------------------------------------------------------------------------

std::vector<std::int64_t> row_major(const std::vector<std::int64_t>& sizes);

// Of t's dtype and device.
Tensor new_tensor(const Tensor& t, const std::vector<std::int64_t>& sizes, const std::vector<std::int64_t>& strides);
Tensor new_tensor(const Tensor& t, const std::vector<std::int64_t>& sizes);

// Of t's device, one dimension; aoti_torch_dtype_…() is the dtype.
Tensor new_vector(const Tensor& t, std::int64_t size, std::int32_t dtype);

}  // namespace strop::binding

// What the operators' files share: tensors of the stable ABI as views of the core, and statuses as exceptions.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>

#include "strop/status.h"
#include "strop/tensor_view.h"

namespace strop::binding {

DType dtype_of(torch::headeronly::ScalarType type);

// Throws what strop/losses.py turns back into the exception's type: the stable ABI carries only a message.
void check(const Status& status);

// Everything of a view but shape and strides.
TensorView start_of(const torch::stable::Tensor& tensor);

// Of a tensor of at most kMaxRank dimensions; others are an error that names the argument.
TensorView view_of(const torch::stable::Tensor& tensor, const char* name);

// While it lives, PyTorch records nothing for gradients: its stable interface does not know of that.
class NoGrad {
 public:
  NoGrad() : before_(aoti_torch_grad_mode_is_enabled()) { aoti_torch_grad_mode_set_enabled(false); }
  ~NoGrad() { aoti_torch_grad_mode_set_enabled(before_); }
  NoGrad(const NoGrad&) = delete;
  NoGrad& operator=(const NoGrad&) = delete;

 private:
  bool before_;
};

struct Output {
  torch::stable::Tensor tensor;
  TensorView view;
};

// A new row-major tensor of like's first `rank` sizes, on its device.
Output empty(const TensorView& like, DType dtype, int rank);

}  // namespace strop::binding

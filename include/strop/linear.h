// Linear layers with all that follows them in a transformer: out = act(x weight^T + bias) + residual, or gated,
// out = act(a) b + residual with (a | b) = x weight^T + bias. And the same epilogue alone, for products that a library
// made.
//
// All functions take views and return a Status; they allocate nothing and, on CUDA, start at most one kernel on the
// given stream (a cudaStream_t of x's device) and do not wait for it. The device of x, or of y, decides the backend.
//
// Sums are fp32 whatever the dtype, and so is what follows, which is rounded once. (PyTorch rounds the product before
// it is activated, and the sum with a residual once more.)
//
// Results are bitwise the same from run to run. A row's result is the same bits whatever rows share the call, for one
// device, N, K, options, strides and alignment, as long as the number of rows M stays within one of the ranges 1 to
// 64, 65 to 256, and above on CUDA: few rows are cut along K to keep a GPU busy, and how depends on the range. On the
// CPU the ranges are 1 to 8 and above. Those of the epilogue alone do not depend on M.
#pragma once

#include <cstddef>
#include <cstdint>

#include "strop/status.h"
#include "strop/tensor_view.h"

namespace strop {

enum class Activation : std::uint8_t {
  kNone,
  kRelu,
  kGelu,      // x Phi(x), by the error function
  kGeluTanh,  // Phi approximated by a tanh: PyTorch's approximate="tanh", gelu_new in transformers
  kSilu,      // x / (1 + exp(-x))
  kTanh,
};

struct LinearOptions {
  Activation activation = Activation::kNone;
  bool gated = false;  // out = act(a) b, the activation on the first half alone
};

// An input with null data is not there. Strides are any; 1 in the last dimension and multiples of 16 bytes elsewhere
// are the fast path. Inputs may share memory with each other.
struct LinearInputs {
  TensorView x;       // (M, K), float32, float16 or bfloat16; any M, K at least 1
  TensorView weight;  // (N, K), x's dtype; N at least 1. Gated (2N, K): a is of the first N rows, b of the others
  TensorView bias;    // (N,), gated (2N,), any of the three dtypes, or none
  // Gated, where the halves are given apart: weight and bias are a's, (N, K) and (N,), and these b's. One of the biases
  // alone may be none.
  TensorView up_weight, up_bias;
  TensorView residual;  // (M, N), x's dtype, or none
};

// Scratch for one call: linear_workspace_bytes of x's device, 16-byte aligned, contents arbitrary before and after. It
// is for few rows, and 0 elsewhere and on the CPU; calls that may run at the same time need one each.
struct LinearExecution {
  void* workspace = nullptr;
  void* stream = nullptr;
};
std::size_t linear_workspace_bytes(const LinearInputs& inputs, const LinearOptions& options = {});

// out: (M, N), x's dtype, any strides under which no two elements share memory, in memory of its own or exactly the
// residual's.
Status linear(const LinearInputs& inputs, const LinearOptions& options, const TensorView& out,
              const LinearExecution& execution = {});

struct LinearEpilogueInputs {
  TensorView y;         // (M, N), gated (M, 2N): x weight^T; float32, float16 or bfloat16
  TensorView bias;      // (N,), gated (2N,), any of the three dtypes, or none
  TensorView residual;  // (M, N), y's dtype, or none
};

// out: (M, N), y's dtype, as linear's; where nothing is gated it may also be exactly y.
Status linear_epilogue(const LinearEpilogueInputs& inputs, const LinearOptions& options, const TensorView& out,
                       void* stream = nullptr);

}  // namespace strop

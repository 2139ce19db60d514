// Normalisation over the last dimension, alone or fused with what comes before it: the addition of a residual stream,
// or the sum of embeddings.
//
// All functions take views and return a Status. They allocate nothing and, on CUDA, start at most one kernel on the
// given stream (a cudaStream_t of x's device; ignored on the CPU) and do not wait for it. The device of x decides the
// backend.
//
// The arithmetic is fp32 whatever the dtypes. A row's result is bitwise the same from run to run and whatever rows
// share the batch, for one device, row length, dtypes, strides and alignment. NaN stays within its row.
//
// Order of rounding. s = x + residual is one fp32 sum. residual_out is s rounded to its dtype; the norm is that of s
// itself, since a residual stream in fp16 or bf16 loses bits at every layer as it is, and what is normalised here need
// not lose them twice. out is rounded once, after weight and bias. Models that round in between get the same or
// closer to their formula: a residual stream added in fp16 and then normalised (s is rounded first), and Llama's and
// T5's RMSNorm, where x / rms(x) is cast to the input's dtype before it meets the weight.
#pragma once

#include "strop/status.h"
#include "strop/tensor_view.h"

namespace strop {

// An input with null data is not there. Strides are any, 1 in the last dimension being the fast path. Inputs may share
// memory with each other.
struct NormInputs {
  TensorView x;         // (R, n), float32, float16 or bfloat16; any R, n at least 1
  TensorView residual;  // same shape and dtype, or none: 0
  TensorView weight;    // (n,), any of the three dtypes, or none: 1
  TensorView bias;      // (n,), any of the three dtypes, or none: 0; layer_norm alone
};

// (R, n) in x's dtype, any strides under which no two elements share memory. Each has memory of its own, but for two
// cases in which it may be exactly that of an input, with the same strides, which is then overwritten.
struct NormOutputs {
  TensorView out;           // may be x
  TensorView residual_out;  // x + residual, or none: not written; may be residual
};

// out = (s - mean(s)) / sqrt(var(s) + eps) * weight + bias, var biased (Ba et al. 2016, arXiv:1607.06450).
// The variance is that of differences from the mean, never E[s^2] - E[s]^2, so an offset costs no precision.
Status layer_norm(const NormInputs& inputs, double eps, const NormOutputs& outputs, void* stream = nullptr);

// out = s / sqrt(mean(s^2) + eps) * weight (Zhang, Sennrich 2019, arXiv:1910.07467). Squares of |s| above 1.8e19
// overflow.
Status rms_norm(const NormInputs& inputs, double eps, const NormOutputs& outputs, void* stream = nullptr);

// Rows looked up in tables, added up and normalised: what an encoder begins with (words, positions, token types).
struct EmbeddingInputs {
  static constexpr int kMaxTables = 3;
  // (V_k, n) in one dtype, float32, float16 or bfloat16; any strides and numbers of rows. One at least; those that are
  // not there come last. Tables may share memory with each other.
  TensorView tables[kMaxTables];
  // (R,), int32 or int64, one for each table; any stride, 0 included.
  TensorView ids[kMaxTables];
  TensorView weight, bias;  // (n,), any of the three float dtypes, or none
};

// out = layer_norm(sum_k tables[k][ids[k]]), and the sum itself in residual_out where that is given. The sum is taken
// in fp32, in the order of the tables, and rounded as above. An id outside of its table: on the CPU an error that names
// it, with nothing written; on CUDA, where that would have to be waited for, a row of NaN.
Status embedding_norm(const EmbeddingInputs& inputs, double eps, const NormOutputs& outputs, void* stream = nullptr);

}  // namespace strop

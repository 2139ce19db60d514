// Rotary position embedding (Su et al. 2021, arXiv:2104.09864): pairs of a head's elements are turned by an angle that
// grows with the token's position.
//
// Takes views and returns a Status. Allocates nothing and, on CUDA, starts at most one kernel on the given stream (a
// cudaStream_t of x's device; ignored on the CPU) and does not wait for it. The device of x decides the backend. The
// arithmetic is fp32 whatever the dtypes, rounded once; an element's result depends on its pair alone.
#pragma once

#include "strop/status.h"
#include "strop/tensor_view.h"

namespace strop {

// Which elements of the first `r` of a head form a pair.
enum class RotaryPairs {
  kHalves,      // i and i + r / 2: GPT-NeoX, Llama, ModernBERT and most of what came after ("rotate_half")
  kNeighbours,  // 2 i and 2 i + 1: the paper, GPT-J
};

struct RotaryInputs {
  TensorView x;  // (R, H, d): tokens, heads, a head's elements; float32, float16 or bfloat16, any strides
  // (P, r) or (P, r / 2), r even, 2 <= r <= d; the same shape, any of the three float dtypes, any strides. Of (P, r)
  // each element of a pair has a column of its own (transformers: cat(angles, angles)), of (P, r / 2) each pair has
  // one.
  TensorView cos, sin;
  // (R,), int32 or int64: token t is turned as row positions[t] of cos and sin says. None: as row t % P, where R is a
  // multiple of P (a batch of sequences of length P, one behind the other).
  TensorView positions;
  // r, where cos and sin are (P, r / 2): 0 says that they are (P, r).
  std::int64_t rotary_dim = 0;
  RotaryPairs pairs = RotaryPairs::kHalves;
};

// For each pair (a, b): (a cos_a - b sin_a, b cos_b + a sin_b). Elements from r on are copied. `out` has x's shape and
// dtype, no two elements in the same memory; it may be exactly x, with the same strides, and else shares none with an
// input. A position outside of the table: on the CPU an error that names it, with nothing written; on CUDA, where that
// would have to be waited for, NaN in that token's first r elements.
Status rotary_embedding(const RotaryInputs& inputs, const TensorView& out, void* stream = nullptr);

}  // namespace strop

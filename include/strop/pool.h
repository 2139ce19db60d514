// Mean pooling: one vector a sequence, the mean of its tokens' (Reimers, Gurevych 2019, arXiv:1908.10084).
//
// Both functions take views and return a Status. They allocate nothing and, on CUDA, start at most one kernel on the
// given stream (a cudaStream_t of x's device; ignored on the CPU) and do not wait for it. The device of x decides the
// backend.
//
// The arithmetic is fp32 whatever the dtypes, rounded once to out's. The order of a sum is given by the token's place
// in its sequence alone, and for CUDA by whether x can be read in vectors: a sequence's result is bitwise the same from
// run to run, whatever shares the batch, and padded on the right or packed.
//
// `least`, rounded to float32, is finite and not negative, the smallest number that a sum is divided by:
// sentence-transformers takes 1e-9, which gives zeros for a sequence without tokens. With 0 that is 0 / 0, NaN, in the
// padded form.
#pragma once

#include "strop/status.h"
#include "strop/tensor_view.h"

namespace strop {

// out[b] = sum_l x[b][l] mask[b][l] / max(sum_l mask[b][l], least).
//
// x (B, L, n), float32, float16 or bfloat16; mask (B, L), any dtype with a size: weights, rounded to float32, of which
// bool's are 0 and 1. Strides are any, 1 in x's last dimension being the fast path. B and L may be 0, n is at least 1.
// out (B, n) in x's dtype, no two elements in the same memory, which is its own. Tokens of weight 0 are not read: NaN
// in the padding stays there, where 0 * NaN would spread it.
Status mean_pool(const TensorView& x, const TensorView& mask, double least, const TensorView& out,
                 void* stream = nullptr);

// The same for packed sequences, with weights of 1: sequence b has tokens cu[b] to cu[b + 1] of x (T, n). cu (B + 1,),
// int32 or int64, any stride. An empty sequence gives zeros, also with a `least` of 0. Of cu that decreases or leaves 0
// to T: on the CPU an error that names the place, with nothing written; on CUDA, where that would have to be waited
// for, NaN in each sequence whose ends are wrong.
Status mean_pool_packed(const TensorView& x, const TensorView& cu, double least, const TensorView& out,
                        void* stream = nullptr);

}  // namespace strop

// Scaled dot-product attention: out = softmax(scale q k^T + bias, over the keys that are admitted) v.
//
// It takes views and returns a Status; it allocates nothing and, on CUDA, starts at most one kernel on the given stream
// (a cudaStream_t of q's device) and does not wait for it. The device of q decides the backend.
//
// The softmax and all sums are fp32 whatever the dtype; for float16 and bfloat16 on CUDA the weights meet v rounded to
// that dtype, as tensor cores want them. Results are bitwise the same from run to run, and a sequence's are the same
// whatever shares the batch and whatever max_q and max_k are, for one device, strides and alignment.
//
// A query for which no key is admitted, or whose bias is -inf everywhere, gets 0. One whose bias is very negative but
// finite everywhere gets the plain softmax. Without a bias, scores beyond 2e38 may count as infinite. Keys behind a
// sequence's length are never read; what is masked otherwise must be finite in v, as 0 times NaN is NaN.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "strop/status.h"
#include "strop/tensor_view.h"

namespace strop {

// An input with null data is not there. Strides are any; 1 in the last dimension and multiples of 16 bytes elsewhere
// are the fast path. Inputs may share memory with each other.
struct AttentionInputs {
  // Padded: q (B, H, Lq, D), k and v (B, Hkv, Lk, D). Packed: q (Tq, H, D), k and v (Tk, Hkv, D), the sequences one
  // behind the other. float32, float16 or bfloat16, all three the same; D a multiple of 8 up to 256, H one of Hkv
  // (query head h meets key head h / (H / Hkv)).
  TensorView q, k, v;
  // Packed: (B + 1,), int32 or int64: sequence b has rows [cu[b], cu[b + 1]); neither sinks. None has more than max_q
  // queries and max_k keys, which say how much work is started. Rows of q that no sequence has, before the first and
  // behind the last, are not read, and become 0.
  TensorView cu_q, cu_k;
  std::int64_t max_q = 0, max_k = 0;
  TensorView key_lengths;  // (B,), int32 or int64, or none: only so many keys of each sequence are there
  // Broadcast to (B, H, Lq, Lk), packed (B, H, max_q, max_k), as PyTorch does: sizes of 1 and strides of 0 repeat.
  TensorView mask;  // bool: true admits
  TensorView bias;  // float64, float32, float16 or bfloat16: is added to the scaled scores
};

// Where query i stands among the keys: at key i (as PyTorch's is_causal), or at i + Lk - Lq, so that the last query
// meets the last key (decoding with a cache). Lk is the sequence's own length, after key_lengths.
enum class Diagonal : std::uint8_t { kTopLeft, kBottomRight };

struct AttentionOptions {
  std::optional<double> scale;  // 1 / sqrt(D) where not given
  bool causal = false;          // no key after the diagonal
  Diagonal diagonal = Diagonal::kTopLeft;
  std::optional<std::int64_t> window_left, window_right;  // at most so many keys before and after the diagonal
};

// Scratch for one call: attention_workspace_bytes of q's device, 16-byte aligned, contents arbitrary before and after.
// It is for few queries against many keys, and 0 elsewhere and on the CPU; calls that may run at the same time need one
// each.
struct AttentionExecution {
  void* workspace = nullptr;
  void* stream = nullptr;
};
std::size_t attention_workspace_bytes(const AttentionInputs& inputs);

// out: q's shape and dtype, any strides under which no two elements share memory, in memory of its own.
Status attention(const AttentionInputs& inputs, const AttentionOptions& options, const TensorView& out,
                 const AttentionExecution& execution = {});

}  // namespace strop

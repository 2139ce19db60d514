// Packing for models that compute on real tokens alone: where the tokens of a call are, tensors of the padded layout
// as rows of tokens, and back. What python/strop/rewrite/packed.py does within PyTorch, for the CPU.
#pragma once

#include <cstdint>
#include <optional>

#include "runtime/safetensors.h"
#include "runtime/tensor.h"

namespace strop::runtime {

struct Tokens {
  std::int64_t batch = 0, length = 0, count = 0, longest = 0;
  Held cu;     // int32 (batch + 1): tokens before each sequence
  Held first;  // int32 (batch): each sequence's first token
  Held rows,
      where;  // int32 (count), (batch * length): as strop/ragged.h has them; without data where nothing is padding

  bool padded() const { return rows.tensor.data != nullptr; }
};

// Where batch and length are among a tensor's dimensions.
struct Layout {
  int batch = 0;    // -1: it has none, and serves every sequence
  int length = -1;  // -1: one row a sequence
};

// How an input of the packed program comes from a tensor of the padded layout.
struct Packing {
  bool as_it_is = false;
  Layout layout;
  bool batched = true;  // false: one row a position, for all sequences
};

// The real tokens of a call. `mask` has 2 dimensions, or no data where all tokens are real. None where the call is for
// the padded program: without a token, with a sequence that begins with padding where `wants_first`, or with padding
// between real tokens where `wants_whole`.
std::optional<Tokens> locate(const Tensor& mask, std::int64_t batch, std::int64_t length, bool wants_first,
                             bool wants_whole);

Held pack(const Held& value, const Packing& how, const Tokens& tokens);

// A result of the packed program in the padded layout, with 0 at padding. It may be a view of `value`.
Held unpack(const Held& value, const Layout& layout, const Tokens& tokens);

// The same values in row-major order: a copy where they lie otherwise.
Held row_major(const Held& value);
Held copied(const Held& value);

}  // namespace strop::runtime

// Padded batches without their padding: where the real tokens of a mask are, and rows taken there and put back.
//
// All functions take views and return a Status. They allocate nothing and, on CUDA, start at most one kernel on the
// given stream (a cudaStream_t of the inputs' device; ignored on the CPU) and do not wait for it. The device of the
// first argument decides the backend. Nothing is rounded: results are the same bits on every backend.
//
// How they fit together, for a mask (B, L) with T real tokens: token_index says where they are; gather_rows with its
// `rows` packs a (B * L, n) tensor to (T, n), which packed attention takes with `cu`; scatter_rows with its `where`
// gives the padded layout back.
#pragma once

#include <cstdint>
#include <span>

#include "strop/status.h"
#include "strop/tensor_view.h"

namespace strop {

// Where the real tokens of padded sequences are.
//
// mask (B, L), any dtype with a size, any strides: a token is real where it is not 0 (-0.0 is 0, NaN is not). B and L
// may be 0, B * L is below 2^31. All outputs are contiguous and have memory of their own:
//   cu       (B + 1,) int32: how many real tokens come before sequence b; the last is T, how many there are
//   rows     (B * L,) int32: the place b * L + l of the t-th real token for t < T, and 0 behind, so that a gather with
//            all of it stays within bounds
//   where    (B * L,) int32: the inverse: t for the t-th real token, -1 for padding
//   summary  (4,) int64: T; the length of the longest sequence, in real tokens; 1 if a sequence's first position is
//            padding (or L is 0 and there are sequences), else 0; 1 if padding lies between real tokens of a sequence,
//            else 0
Status token_index(const TensorView& mask, const TensorView& cu, const TensorView& rows, const TensorView& where,
                   const TensorView& summary, void* stream = nullptr);

// out[t] = x[rows[t]]. x (N, n), any dtype with a size, any strides; rows (T,) int32 or int64, any stride; out (T, n)
// in x's dtype, no two elements in the same memory, which is its own. n is at least 1, N and T may be 0. Fast where
// rows of x and out start at multiples of 16 bytes and are contiguous. A row that x does not have: on the CPU an error
// that names it, with nothing written; on CUDA, where that would have to be waited for, zeros.
Status gather_rows(const TensorView& x, const TensorView& rows, const TensorView& out, void* stream = nullptr);

// The same of x repeated without end, out[t] = x[rows[t] mod N]: what has one row a position (N, n), the same for every
// sequence of a padded batch, taken by the places of tokens. On the CPU a negative number is an error; on CUDA zeros.
Status gather_repeated_rows(const TensorView& x, const TensorView& rows, const TensorView& out, void* stream = nullptr);

// out[p] = x[where[p]], and zeros where where[p] is negative: each row of out is written once. x (T, n), where (N,) and
// out (N, n) as above. A row at or behind T: on the CPU an error that names it, with nothing written; on CUDA zeros.
Status scatter_rows(const TensorView& x, const TensorView& where, const TensorView& out, void* stream = nullptr);

// Where packed sequences begin, for a batch of fixed size that has place for more: cu (B + 1,), int32 or int64, any
// stride, of `count` tokens. Outputs are int32, contiguous and have memory of their own:
//   cu_out     (S + 1,), S at least B: cu, and `count` behind, so that what is behind the batch has no tokens
//   first_out  (S,): each sequence's first token, count - 1 at most (for one without tokens behind the last one that
//              has some), and 0 behind the batch
Status pack_starts(const TensorView& cu, std::int64_t count, const TensorView& cu_out, const TensorView& first_out,
                   void* stream = nullptr);

// What one packed tensor is made of, or one result.
struct TokenRows {
  enum class Kind : std::uint8_t {
    kTokens,    // a row for each
    kRepeated,  // packing: x has a row a position, for all sequences
    kPlain,     // as many rows as out has, from the first on
  };
  TensorView x;    // (N, n), any dtype with a size, elements of a row beside one another
  TensorView out;  // (S, n) in x's dtype, contiguous, memory of its own
  Kind kind = Kind::kTokens;
};

// pack_starts, and of up to 8 inputs the tokens' rows, in one kernel: all that a packed call of fixed size reads.
// out[t] = x[rows[t]] for t < count, with rows[t] mod N where x is repeated; S is at least count, and out's rows behind
// that stay as they are, but those of what is plain.
//   rows  (T,) int32, contiguous, T at least count; or a view without data, and token t is row t: then N is at least
//         count but where x is repeated
// A row that x does not have: on the CPU an error, with nothing written; on CUDA zeros.
Status pack_tokens(std::span<const TokenRows> inputs, const TensorView& rows, const TensorView& cu, std::int64_t count,
                   const TensorView& cu_out, const TensorView& first_out, void* stream = nullptr);

// The way back for up to 8 results, in one kernel: out[p] = x[where[p]], and zeros where where[p] is negative or x has
// no such row. x (N, n), out (P, n).
//   where  (P,) int32, contiguous; or a view without data, and place p is row p: then N is at least P
Status unpack_tokens(std::span<const TokenRows> results, const TensorView& where, void* stream = nullptr);

}  // namespace strop

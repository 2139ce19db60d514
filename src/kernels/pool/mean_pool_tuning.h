// How mean pooling is cut over the chip. Constants: a sum's order is given by a token's place in its sequence and by
// whether x is read in vectors, never by what shares the batch.
#pragma once

namespace strop::pool {

inline constexpr int kWarps = 16;                    // of a block
inline constexpr int kTokensAhead = 4;               // of a thread, in flight at once
inline constexpr int kBlocksPerMultiprocessor = 64;  // more than run at once by far; beyond, blocks take more tiles

// A token's elements side by side: the lanes of a warp that share it. 8 vectors are 128 bytes, whole lines.
constexpr int lanes_a_token(int elements_a_lane) { return elements_a_lane == 1 ? 32 : 8; }
// Tokens that a block reads at once, each into sums of its own: 64, or 16 of single elements.
constexpr int strands(int elements_a_lane) { return kWarps * 32 / lanes_a_token(elements_a_lane); }

}  // namespace strop::pool

// How reverse KL is cut over the chip: a pure function of the GPU, the dtypes and the vocabulary. Not of the number of
// rows: a row's sums are the same bits whatever shares the batch with it. (They may differ between rows that start at
// differently aligned addresses, since threads take aligned vectors.)
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace strop::reverse_kl {

inline constexpr int kMaxParts = 16;    // blocks a row; the largest cluster of sm_90, and a warp merges them at once
inline constexpr int kMaxWarps = 16;    // a block
inline constexpr int kMaxBlocks = 512;  // that exchange through the workspace
inline constexpr int kMaxGroups = 2048;
inline constexpr int kVectorsInFlight = 4;  // of each tensor, a thread

struct Tuning {
  int block = 256;        // threads
  int parts = 1;          // blocks that share a row
  bool clusters = false;  // they are a cluster; else they meet at grid barriers
  int part_vectors = 0;   // vectors of logits a part
  int held_vectors = 0;   // of them, how many stay in shared memory until the gradient is written
  std::size_t shared_bytes = 0;
};

struct Chip {
  bool clusters = false;  // sm_90 and later
  int multiprocessors = 0;
  std::size_t shared_bytes_per_block = 0, shared_bytes_per_multiprocessor = 0;
};

// Elements of a vector: 16 bytes of the wider of the two dtypes.
constexpr int vector_elements(int student_bytes, int teacher_bytes) {
  return 16 / std::max(student_bytes, teacher_bytes);
}
// The most threads a block may have: three blocks of 256 a multiprocessor, so that some load while others wait for
// their cluster; with fp32 a part of a large row leaves room for one block alone, a larger one.
constexpr int max_threads(int student_bytes, int teacher_bytes) {
  return student_bytes + teacher_bytes == 4 ? 256 : 512;
}
constexpr int blocks_wanted(int student_bytes, int teacher_bytes) { return student_bytes + teacher_bytes == 4 ? 3 : 1; }

inline Tuning tune(const Chip& chip, std::int64_t vocab, int student_bytes, int teacher_bytes, bool fused,
                   std::size_t fixed_shared_bytes) {
  Tuning t;
  const int elements = vector_elements(student_bytes, teacher_bytes);
  const std::size_t vector_bytes = static_cast<std::size_t>(elements * (student_bytes + teacher_bytes));
  // Of a row that starts anywhere between two aligned addresses.
  const std::int64_t vectors = (vocab + 2 * (elements - 1)) / elements;
  const int threads = max_threads(student_bytes, teacher_bytes), wanted = blocks_wanted(student_bytes, teacher_bytes);
  // The driver takes 1 KiB of a multiprocessor's shared memory for each block.
  const std::size_t room =
      std::min(chip.shared_bytes_per_block, chip.shared_bytes_per_multiprocessor / wanted - 1024) - fixed_shared_bytes;
  const auto room_vectors = static_cast<std::int64_t>(room / vector_bytes);
  const std::int64_t batch = static_cast<std::int64_t>(threads) * kVectorsInFlight;

  const auto part = [&](int parts) { return (vectors + parts - 1) / parts; };
  if (fused) {
    // As few blocks a row as keep it on the chip, then as many as waste the least of the last batch of a thread's
    // loads.
    while (t.parts < kMaxParts && part(t.parts) > room_vectors) ++t.parts;
    const auto cost = [&](int parts) { return ((part(parts) + batch - 1) / batch + 1) * parts; };  // 1: the exchange
    for (int parts = t.parts; t.parts > 1 && parts <= kMaxParts; ++parts) {
      if (cost(parts) < cost(t.parts)) t.parts = parts;
    }
  } else {
    // Four batches a thread: few rows still fill the chip, many do not spend their time at exchanges.
    while (t.parts < kMaxParts && part(t.parts) > 4 * batch) ++t.parts;
  }
  t.clusters = chip.clusters && t.parts > 1;
  t.part_vectors = static_cast<int>(part(t.parts));
  t.held_vectors = fused ? static_cast<int>(std::min(part(t.parts), room_vectors)) : 0;
  t.shared_bytes = fixed_shared_bytes + static_cast<std::size_t>(t.held_vectors) * vector_bytes;
  const auto needed = (t.part_vectors + kVectorsInFlight - 1) / kVectorsInFlight;
  while (t.block > 32 && t.block / 2 >= needed) t.block /= 2;
  if (t.block == 256 && threads > 256 && needed > 256) t.block = threads;
  return t;
}

}  // namespace strop::reverse_kl

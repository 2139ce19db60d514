// How reverse KL is cut over the chip: a pure function of the GPU, the dtypes and the vocabulary. Not of the number of
// rows: a row's sums are the same bits whatever shares the batch with it. (They may differ between rows that start at
// differently aligned addresses, since threads take aligned vectors.)
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace strop::reverse_kl {

inline constexpr int kMaxWarps = 14;                   // of a block that stream; two more talk to other blocks
inline constexpr int kVectors = 2;                     // of each tensor that a thread copies and reads at once: a step
inline constexpr int kFewestSlots = 2, kMaxSlots = 9;  // of a thread's ring, each for a step
inline constexpr int kMaxParts = 64;                   // blocks a row
inline constexpr int kMaxBlocks = 160;                 // that share rows
inline constexpr int kMaxGroups = 1024;
inline constexpr int kRowCost = 28;  // of a thread, in elements: what it does once a row (lab/004)

struct Tuning {
  int parts = 1;         // blocks that share a row
  int part_vectors = 0;  // vectors of logits a part
  int threads = 32;      // of a block that stream; it has two warps more
  int steps = 1;         // a thread and part
  int slots = 1;         // steps whose vectors are in shared memory
  bool held = true;      // two parts fit there, and more; else the gradient reads the logits once more
  std::size_t shared_bytes = 0;
};

struct Chip {
  int multiprocessors = 0;
  std::size_t shared_bytes_per_block = 0;
};

// Elements of a vector: 16 bytes of the wider of the two dtypes.
constexpr int vector_elements(int student_bytes, int teacher_bytes) {
  return 16 / std::max(student_bytes, teacher_bytes);
}

inline Tuning tune(const Chip& chip, std::int64_t vocab, int student_bytes, int teacher_bytes, bool fused,
                   std::size_t fixed_shared_bytes) {
  const int elements = vector_elements(student_bytes, teacher_bytes);
  const auto vector_bytes = static_cast<std::size_t>(elements * (student_bytes + teacher_bytes));
  // Of a row that starts anywhere between two aligned addresses.
  const std::int64_t vectors = (vocab + 2 * (elements - 1)) / elements;
  const std::size_t room = chip.shared_bytes_per_block - fixed_shared_bytes;
  const int most_parts = std::min(kMaxParts, chip.multiprocessors);
  const int most_warps =
      std::clamp(static_cast<int>(room / (32 * kVectors * kFewestSlots * vector_bytes)), 1, kMaxWarps);

  const auto cut = [&](int parts) {
    Tuning t;
    t.parts = parts;
    // In whole lines of 128 bytes.
    const int line = static_cast<int>(128 / (elements * std::min(student_bytes, teacher_bytes)));
    t.part_vectors = static_cast<int>((vectors + parts * line - 1) / (parts * line) * line);
    const int warps = (t.part_vectors + 31) / 32;
    t.steps = (warps + kVectors * most_warps - 1) / (kVectors * most_warps);
    t.threads = 32 * ((warps + kVectors * t.steps - 1) / (kVectors * t.steps));
    const std::size_t slot_bytes = static_cast<std::size_t>(kVectors * t.threads) * vector_bytes;
    t.slots = static_cast<int>(std::min<std::size_t>(kMaxSlots, room / slot_bytes));
    // One part waits for its gradient, one is being read, of the next the first vectors are on their way. More of them
    // would only lengthen the queues at memory, in which the blocks' messages stand as well.
    t.held = t.slots >= 2 * t.steps + 1;
    t.slots = std::min(t.slots, fused && t.held ? 2 * t.steps + 1 : 3);
    t.shared_bytes = fixed_shared_bytes + static_cast<std::size_t>(t.slots) * slot_bytes;
    return t;
  };
  // Multiprocessors that have work.
  const auto busy = [&](int parts) { return chip.multiprocessors / parts * parts; };
  if (!fused) {
    // Nothing is held. Long parts, since a row has its cost, but enough blocks for few rows; three steps at least.
    const int most = static_cast<int>(
        std::clamp<std::int64_t>(vectors / (3 * kVectors * 32 * most_warps), 1, std::min(most_parts, 6)));
    int best = most;
    for (int parts = most - 1; 3 * parts >= 2 * most; --parts) {
      if (busy(parts) > busy(best)) best = parts;
    }
    return cut(best);
  }
  Tuning best = cut(1);
  if (best.held) return best;
  int first = 2;  // the fewest parts that can be held
  while (first < most_parts && !cut(first).held) ++first;
  // Warps wait for their own instructions more than for each other, so it is a thread's time that counts.
  const auto time = [&](const Tuning& t) {
    return static_cast<double>(t.steps * kVectors * elements + kRowCost) * t.parts / busy(t.parts);
  };
  best = cut(std::max(1, std::min(first, most_parts)));
  for (int parts = first + 1; parts <= std::min(most_parts, 2 * first); ++parts) {
    if (const Tuning t = cut(parts); t.held && time(t) <= time(best)) best = t;
  }
  return best;
}

}  // namespace strop::reverse_kl

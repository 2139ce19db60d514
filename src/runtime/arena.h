// Arena: the memory of a call's intermediates. A slab, pieces of which are handed out best fit and taken back, and
// further chunks where it proves too small, so that the next slab can be made large enough.
//
// Pieces are found while the program runs rather than planned beforehand: the order of sizes is the same whenever the
// shapes are, so the places are, and a count of tokens that only the mask knows needs no special case.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "strop/status.h"

namespace strop::runtime {

// Where an arena has its chunks from.
class MemorySource {
 public:
  virtual ~MemorySource() = default;
  virtual Status allocate(std::size_t bytes, void** data, void** handle) = 0;
  virtual void release(void* data, void* handle) = 0;
};

class Arena {
 public:
  static constexpr std::size_t kAlignment = 256;  // of pieces: what vector loads and TMA ask for, with room to spare

  explicit Arena(MemorySource& source) : source_(&source) {}
  ~Arena() { clear(); }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // A first chunk of that size, unless there is one that is large enough. Nothing may be handed out.
  Status reserve(std::size_t bytes);
  // *size is what release() wants back: `bytes`, rounded up.
  Status allocate(std::size_t bytes, void** data, std::size_t* size);
  void release(void* data, std::size_t size);

  // What a single chunk should have had; it may lack a little still, as pieces fit otherwise in one than in several.
  std::size_t needed() const;
  std::size_t reserved() const { return chunks_.empty() ? 0 : chunks_[0].bytes; }
  std::size_t chunks() const { return chunks_.size(); }
  bool all_free() const;
  // Gives all memory back. Nothing may be handed out.
  void clear();

 private:
  struct Chunk {
    char* data;
    void* handle;
    std::size_t bytes;
    std::size_t top;  // behind the last byte that was ever handed out
  };
  struct Gap {
    std::size_t chunk, offset, bytes;
  };

  Status add_chunk(std::size_t bytes);

  MemorySource* source_;
  std::vector<Chunk> chunks_;
  std::vector<Gap> gaps_;  // by chunk and offset; no two of them touch
};

// How many bytes calls with certain input shapes needed, for the last kMost of those. By hash: a collision costs a
// chunk too many, or a slab too large.
class SizeCache {
 public:
  static constexpr std::size_t kMost = 256;
  std::size_t find(std::uint64_t key);
  void set(std::uint64_t key, std::size_t bytes);
  std::size_t size() const { return entries_.size(); }

 private:
  struct Entry {
    std::uint64_t key, used;
    std::size_t bytes;
  };
  std::vector<Entry> entries_;
  std::uint64_t clock_ = 0;
};

}  // namespace strop::runtime

// What is known of every byte that a kernel may touch: whether it is there, written, on its way; and who touched it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "emu/clocks.h"
#include "emu/device.h"
#include "strop/emu.h"

namespace strop::emu {

struct Block;

// Of a byte.
enum : std::uint8_t {
  kReadable = 1,
  kWritable = 2,
  kWritten = 4,     // by somebody: not uninitialised
  kChanged = 8,     // by this launch
  kArriving = 16,   // an asynchronous copy is on its way to it
  kLeaving = 32,    // or reads it
  kCountRead = 64,  // read in this launch, where accesses are counted
  kCountWrite = 128,
};

// One access, as far as it may still take part in a race.
struct Touch {
  std::uint32_t thread;  // block * threads of a block + index
  Clock clock;
  std::uint32_t pc;    // from the start of the program
  std::uint8_t bytes;  // bit i: byte i of the word
  Op op;
};

// The accesses to one 4-byte word that are not known to be over. Most words have one or two.
struct Word {
  static constexpr unsigned kInline = 3;
  std::uint32_t launch = 0;  // of which; older ones count as none
  std::uint32_t n = 0;
  Touch touches[kInline];
};

// Which block has touched each element of a buffer, in row-major order.
inline constexpr std::int32_t kNobody = -1, kSeveral = -2;
struct MapLine {
  std::string name;
  std::vector<std::int32_t> blocks;
};

// A stretch of memory that accesses are checked in: a device allocation, or the shared memory of a block. Around it lie
// redzones, real memory that belongs to nobody.
class Region {
 public:
  static constexpr std::size_t kRedzone = 1024;

  // Allocates; the address is a multiple of 1024, plus `phase`. `block` null: global memory.
  Region(std::string name, std::size_t bytes, const Block* block, std::uintptr_t phase = 0);
  // Takes memory that exists, without redzones: a static __shared__ variable, or a __device__ one, which is written.
  Region(std::string name, void* data, std::size_t bytes, const Block* block, bool written = false);

  std::uintptr_t begin() const { return begin_; }
  std::uintptr_t end() const { return begin_ + bytes_; }
  std::size_t bytes() const { return bytes_; }
  bool has(std::uintptr_t a) const { return a - begin_ < bytes_; }
  // In it or in its redzones.
  bool near(std::uintptr_t a) const { return a - (begin_ - redzone_) < bytes_ + 2 * redzone_; }
  std::uint8_t& state(std::uintptr_t a) { return state_[a - begin_]; }
  void set(std::uintptr_t a, std::size_t n, std::uint8_t set, std::uint8_t clear);
  // Everything is there and nothing written, filled with a pattern that shows.
  void poison();

  // After a copy from the host (source null: all written) or from `source`, where the bytes were at `from`.
  void take_states(std::uintptr_t to, std::size_t bytes, const Region* source, std::uintptr_t from);
  Word& word(std::uintptr_t a);  // of the present launch
  Touch& touch(Word& w, std::uint32_t i) { return i < Word::kInline ? w.touches[i] : overflow(w)[i - Word::kInline]; }
  std::vector<Touch>& overflow(const Word& w) { return overflow_[&w - words_.data()]; }
  void forget_touches(std::uint32_t launch);
  // What one thread touched in [a, a + n) at one clock, another did at another.
  void retouch(std::uintptr_t a, std::size_t n, std::uint32_t thread, Clock clock, std::uint32_t by, Clock at);
  // Calls f(address of the word, touch) for what is known of the present launch.
  template <class F>
  void each_touch(F&& f) {
    for (std::size_t i = 0; i < words_.size(); ++i) {
      Word& w = words_[i];
      for (std::uint32_t k = 0; w.launch == launch_ && k < w.n; ++k)
        f(std::max(begin_, (begin_ / 4 + i) * 4), touch(w, k));
    }
  }

  // "grad[3][17]", "2 bytes past the end of grad (4, 300) float32", …
  std::string describe(std::uintptr_t a) const;

  // Contents, states and touches of another of the same size and phase.
  void take_contents(const Region& other);
  const Block* block() const { return block_; }
  void set_block(const Block* block) { block_ = block; }
  const std::string& name() const { return name_; }
  // Which elements of an output nobody has written; empty where all are.
  std::string unwritten(const NamedView& view);
  void add_view(const NamedView& view);
  void remove_views();
  const std::vector<NamedView>& views() const { return views_; }

  // Counts an access by a thread of a block, and returns whose memory it is: a view, counted from 1, or 0, nobody's.
  unsigned count(std::uintptr_t a, std::size_t n, bool write, std::uint32_t block);
  std::string owner_name(unsigned owner) const;
  // What was counted, a named view each, or the buffer; and its part of the memory map.
  void add_counts(std::vector<BufferCounts>& out);
  void add_map(std::vector<MapLine>& out);

 private:
  struct Moved {
    std::int64_t reads = 0, writes = 0;
  };
  void start_counting();

  std::string name_;
  std::unique_ptr<unsigned char[]> memory_;
  std::uintptr_t begin_ = 0;
  std::size_t bytes_ = 0, redzone_ = 0;
  const Block* block_ = nullptr;
  std::vector<std::uint8_t> state_;
  std::vector<Word> words_;
  std::unordered_map<std::ptrdiff_t, std::vector<Touch>> overflow_;
  std::uint32_t launch_ = 0;
  std::vector<NamedView> views_;
  // Where accesses are counted. Of each byte: the view that owns it, and the block that has touched it.
  std::vector<std::uint16_t> owner_;
  std::vector<std::int32_t> touched_by_;
  std::vector<Moved> moved_;  // by owner
};

// Device memory of the process. Only with the lock of lock_device().
class Heap {
 public:
  void* allocate(std::size_t bytes);
  bool release(void* data);
  bool was_freed(std::uintptr_t a) const;  // and not allocated again, as far as is remembered
  Region* find(std::uintptr_t a);          // the one that is at or near it, or null
  std::vector<std::unique_ptr<Region>>& regions() { return regions_; }

 private:
  std::vector<std::unique_ptr<Region>> regions_;  // by address
  std::vector<std::pair<std::uintptr_t, std::size_t>> freed_;
};
Heap& heap();

}  // namespace strop::emu

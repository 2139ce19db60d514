#include "emu/memory.h"

#include <algorithm>
#include <cstring>

namespace strop::emu {
namespace {

constexpr std::uint8_t kPoison = 0xfb;  // a NaN in every float dtype, true as a mask, far outside as an index

std::uintptr_t align(std::uintptr_t a) { return (a + 1023) / 1024 * 1024; }

// Calls f(address, elements) for each stretch of a view's elements that lie one behind the other, in row-major order.
template <class F>
void for_each_run(const TensorView& v, F&& f) {
  int rank = v.rank;
  std::int64_t run = 1;
  while (rank > 0 && (v.strides[rank - 1] == run || v.shape[rank - 1] == 1)) run *= v.shape[--rank];
  const std::int64_t size = dtype_size(v.dtype);
  std::int64_t runs = 1, index[kMaxRank] = {};
  for (int d = 0; d < rank; ++d) runs *= v.shape[d];
  for (std::int64_t i = 0; i < (run > 0 ? runs : 0); ++i) {
    std::int64_t offset = 0;
    for (int d = 0; d < rank; ++d) offset += index[d] * v.strides[d];
    f(reinterpret_cast<std::uintptr_t>(v.data) + static_cast<std::uintptr_t>(offset * size), run);
    for (int d = rank - 1; d >= 0 && ++index[d] == v.shape[d]; --d) index[d] = 0;
  }
}

std::string shape_text(const TensorView& v) {
  std::string text = "(";
  for (int d = 0; d < v.rank; ++d) text += (d > 0 ? ", " : "") + std::to_string(v.shape[d]);
  return text + ") " + dtype_name(v.dtype);
}

std::string bytes_text(std::uintptr_t n) { return std::to_string(n) + (n == 1 ? " byte" : " bytes"); }
std::string past_text(std::uintptr_t n) {
  return (n == 0 ? std::string("right") : bytes_text(n)) + " past the end of ";
}

}  // namespace

Region::Region(std::string name, std::size_t bytes, const Block* block, std::uintptr_t phase)
    : name_(std::move(name)),
      memory_(new unsigned char[bytes + 2 * kRedzone + 1024 + phase]),
      begin_(align(reinterpret_cast<std::uintptr_t>(memory_.get()) + kRedzone) + phase),
      bytes_(bytes),
      redzone_(kRedzone),
      block_(block),
      state_(bytes) {
  std::memset(reinterpret_cast<void*>(begin_ - redzone_), kPoison, bytes_ + 2 * redzone_);
  poison();
}

Region::Region(std::string name, void* data, std::size_t bytes, const Block* block, bool written)
    : name_(std::move(name)),
      begin_(reinterpret_cast<std::uintptr_t>(data)),
      bytes_(bytes),
      block_(block),
      state_(bytes) {
  if (written) {
    set(begin_, bytes_, kReadable | kWritable | kWritten, 0);
  } else {
    poison();
  }
}

void Region::poison() {
  std::memset(reinterpret_cast<void*>(begin_), kPoison, bytes_);
  std::fill(state_.begin(), state_.end(), std::uint8_t{kReadable | kWritable});
  for (Word& w : words_) w.launch = 0;
  overflow_.clear();
}

void Region::set(std::uintptr_t a, std::size_t n, std::uint8_t set, std::uint8_t clear) {
  const std::uintptr_t from = std::max(a, begin_), to = std::min(a + n, end());
  if (from >= to) return;
  std::uint8_t* const s = &state_[from - begin_];
  const auto kept = static_cast<std::uint8_t>(~clear);
  for (std::size_t i = 0; i < to - from; ++i) s[i] = static_cast<std::uint8_t>((s[i] & kept) | set);
}

void Region::take_states(std::uintptr_t to, std::size_t bytes, const Region* source, std::uintptr_t from) {
  for (std::size_t i = 0; i < bytes; ++i) {
    const bool written = source == nullptr || (source->state_[from + i - source->begin_] & kWritten) != 0;
    set(to + i, 1, written ? kWritten : 0, kWritten);
  }
}

void Region::take_contents(const Region& other) {
  std::memcpy(reinterpret_cast<void*>(begin_), reinterpret_cast<const void*>(other.begin_), bytes_);
  state_ = other.state_, words_ = other.words_, overflow_ = other.overflow_, launch_ = other.launch_;
}

Word& Region::word(std::uintptr_t a) {
  // Words are counted from a multiple of 4, which begin_ may not be.
  if (words_.empty()) words_.resize((bytes_ + begin_ % 4) / 4 + 1);
  Word& w = words_[a / 4 - begin_ / 4];
  if (w.launch != launch_) w.launch = launch_, w.n = 0;
  return w;
}

void Region::forget_touches(std::uint32_t launch) {
  launch_ = launch;
  overflow_.clear();
  for (std::uint8_t& s : state_) s = s & (kReadable | kWritable | kWritten);
  owner_.clear(), touched_by_.clear(), moved_.clear();
}

void Region::retouch(std::uintptr_t a, std::size_t n, std::uint32_t thread, Clock clock, std::uint32_t by, Clock at) {
  for (std::uintptr_t i = a; i < a + n; i = i / 4 * 4 + 4) {
    if (!has(i)) continue;
    Word& w = word(i);
    for (std::uint32_t k = 0; k < w.n; ++k) {
      Touch& old = touch(w, k);
      if (old.thread == thread && old.clock == clock) old.thread = by, old.clock = at;
    }
  }
}

std::string Region::describe(std::uintptr_t a) const {
  struct Place {  // where the byte lies, seen from a view
    std::uintptr_t distance;
    std::string text;
  };
  Place best{~std::uintptr_t{0}, {}};
  for (const NamedView& named : views_) {
    const TensorView& v = named.view;
    const auto size = static_cast<std::uintptr_t>(dtype_size(v.dtype));
    const std::string what = std::string(named.name) + " " + shape_text(v);
    std::uintptr_t low = reinterpret_cast<std::uintptr_t>(v.data), high = low;
    std::int64_t before = 0;  // elements, in row-major order
    std::string element;
    for_each_run(v, [&](std::uintptr_t e, std::int64_t n) {
      const std::uintptr_t bytes = static_cast<std::uintptr_t>(n) * size;
      low = std::min(low, e), high = std::max(high, e + bytes);
      if (a - e < bytes && element.empty()) {
        std::int64_t i = before + static_cast<std::int64_t>((a - e) / size);
        for (int d = v.rank - 1; d >= 0; i /= v.shape[d--]) {
          std::string index = "[";
          index += std::to_string(i % v.shape[d]);
          index += "]";
          element.insert(0, index);
        }
        element.insert(0, named.name);
        if ((a - e) % size != 0) element += " byte " + std::to_string((a - e) % size);
        element += " of " + shape_text(v);
      }
      before += n;
    });
    if (!element.empty()) return element;
    Place place{0, "between the elements of " + what};
    if (a < low) place = {low - a, bytes_text(low - a) + " before " + what};
    if (a >= high) place = {a - high + 1, past_text(a - high) + what};
    if (place.distance < best.distance) best = std::move(place);
  }
  if (!best.text.empty()) return best.text;
  const std::string what = name_ + " (" + bytes_text(bytes_) + ")";
  if (a < begin_) return bytes_text(begin_ - a) + " before " + what;
  if (a >= end()) return past_text(a - end()) + what;
  return "byte " + std::to_string(a - begin_) + " of " + what;
}

void Region::add_view(const NamedView& named) {
  if (views_.empty()) set(begin_, bytes_, 0, kReadable | kWritable);
  views_.push_back(named);
  const auto size = static_cast<std::size_t>(dtype_size(named.view.dtype));
  const bool input = named.access == Access::kInput;
  const bool fresh = named.access == Access::kOutput || named.access == Access::kScratch;
  for_each_run(named.view, [&](std::uintptr_t a, std::int64_t n) {
    set(a, static_cast<std::size_t>(n) * size, input ? kReadable : kReadable | kWritable, fresh ? kWritten : 0);
  });
}

std::string Region::unwritten(const NamedView& named) {
  const auto size = static_cast<std::uintptr_t>(dtype_size(named.view.dtype));
  std::int64_t missing = 0;
  std::uintptr_t first = 0;
  for_each_run(named.view, [&](std::uintptr_t a, std::int64_t n) {
    for (; n > 0; --n, a += size) {
      if (has(a) && (state(a) & kWritten) == 0 && missing++ == 0) first = a;
    }
  });
  if (missing == 0) return "";
  return std::to_string(missing) +
         (missing == 1 ? " element of an output was never written: "
                       : " elements of an output were never written, the first is ") +
         describe(first);
}

// ---- Counts ---------------------------------------------------------------------------------------------------------

void Region::start_counting() {
  touched_by_.assign(bytes_, kNobody);
  moved_.assign(views_.size() + 1, {});
  owner_.assign(bytes_, 0);
  for (std::size_t i = 0; i < views_.size(); ++i) {
    const auto size = static_cast<std::uintptr_t>(dtype_size(views_[i].view.dtype));
    for_each_run(views_[i].view, [&](std::uintptr_t a, std::int64_t n) {
      for (const std::uintptr_t end = a + static_cast<std::uintptr_t>(n) * size; a < end; ++a) {
        if (has(a) && owner_[a - begin_] == 0) owner_[a - begin_] = static_cast<std::uint16_t>(i + 1);
      }
    });
  }
}

unsigned Region::count(std::uintptr_t a, std::size_t n, bool write, std::uint32_t block) {
  if (block_ != nullptr || !has(a)) return 0;
  if (touched_by_.empty()) start_counting();
  const auto me = static_cast<std::int32_t>(block);
  for (std::uintptr_t at = a - begin_; at < std::min(a - begin_ + n, bytes_); ++at) {
    Moved& m = moved_[owner_[at]];
    ++(write ? m.writes : m.reads);
    std::int32_t& who = touched_by_[at];
    who = who == kNobody || who == me ? me : kSeveral;
  }
  return owner_[a - begin_];
}

std::string Region::owner_name(unsigned owner) const { return owner == 0 ? name_ : views_[owner - 1].name; }

void Region::add_counts(std::vector<BufferCounts>& out) {
  if (touched_by_.empty() && views_.empty()) return;
  if (touched_by_.empty()) start_counting();
  std::vector<BufferCounts> counts;
  counts.push_back({name_, static_cast<std::int64_t>(bytes_)});
  for (const NamedView& named : views_) {
    BufferCounts c{named.name, dtype_size(named.view.dtype)};
    for (int d = 0; d < named.view.rank; ++d) {
      if (named.view.strides[d] != 0 || named.view.shape[d] == 0) c.size *= named.view.shape[d];
    }
    counts.push_back(std::move(c));
  }
  for (std::size_t i = 0; i < bytes_; ++i) {
    BufferCounts& c = counts[owner_[i]];
    c.bytes_read += (state_[i] & kCountRead) != 0, c.bytes_written += (state_[i] & kCountWrite) != 0;
  }
  for (std::size_t i = views_.empty() ? 0 : 1; i < counts.size(); ++i) {
    counts[i].reads = moved_[i].reads, counts[i].writes = moved_[i].writes;
    out.push_back(std::move(counts[i]));
  }
}

void Region::add_map(std::vector<MapLine>& out) {
  if (touched_by_.empty()) return;
  if (views_.empty()) out.push_back({name_, touched_by_});
  for (const NamedView& named : views_) {
    const auto size = static_cast<std::uintptr_t>(dtype_size(named.view.dtype));
    MapLine line{named.name, {}};
    for_each_run(named.view, [&](std::uintptr_t a, std::int64_t n) {
      for (; n > 0; --n, a += size) {
        std::int32_t who = kNobody;
        for (std::uintptr_t at = a; at < a + size && has(at); ++at) {
          const std::int32_t one = touched_by_[at - begin_];
          if (one != kNobody) who = who == kNobody || who == one ? one : kSeveral;
        }
        line.blocks.push_back(who);
      }
    });
    out.push_back(std::move(line));
  }
}

void Region::remove_views() {
  if (views_.empty()) return;
  views_.clear();
  set(begin_, bytes_, kReadable | kWritable, 0);
}

void* Heap::allocate(std::size_t bytes) {
  auto region = std::make_unique<Region>("a device buffer", bytes, nullptr);
  void* data = reinterpret_cast<void*>(region->begin());
  const auto at = std::lower_bound(regions_.begin(), regions_.end(), region->begin(),
                                   [](const auto& r, std::uintptr_t a) { return r->begin() < a; });
  regions_.insert(at, std::move(region));
  return data;
}

bool Heap::release(void* data) {
  const auto found = std::find_if(regions_.begin(), regions_.end(),
                                  [&](const auto& r) { return r->begin() == reinterpret_cast<std::uintptr_t>(data); });
  if (found == regions_.end()) return false;
  if (freed_.size() >= 64) freed_.erase(freed_.begin());
  freed_.emplace_back((*found)->begin(), (*found)->bytes());
  regions_.erase(found);
  return true;
}

bool Heap::was_freed(std::uintptr_t a) const {
  return std::any_of(freed_.begin(), freed_.end(), [&](const auto& f) { return a - f.first < f.second; });
}

Region* Heap::find(std::uintptr_t a) {
  auto at = std::upper_bound(regions_.begin(), regions_.end(), a,
                             [](std::uintptr_t x, const auto& r) { return x < r->begin(); });
  if (at != regions_.begin() && (*std::prev(at))->has(a)) return std::prev(at)->get();
  if (at != regions_.begin() && (*std::prev(at))->near(a)) return std::prev(at)->get();
  return at != regions_.end() && (*at)->near(a) ? at->get() : nullptr;
}

Heap& heap() {
  static Heap heap;
  return heap;
}

}  // namespace strop::emu

#include "runtime/arena.h"

#include <algorithm>

namespace strop::runtime {

Status Arena::add_chunk(std::size_t bytes) {
  void* data = nullptr;
  void* handle = nullptr;
  if (Status s = source_->allocate(bytes, &data, &handle); !s.ok()) return s;
  chunks_.push_back({static_cast<char*>(data), handle, bytes, 0});
  gaps_.push_back({chunks_.size() - 1, 0, bytes});
  return {};
}

Status Arena::reserve(std::size_t bytes) {
  bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (chunks_.size() == 1 && chunks_[0].bytes >= bytes) {
    chunks_[0].top = 0;
    return {};
  }
  clear();
  return bytes == 0 ? Status() : add_chunk(bytes);
}

Status Arena::allocate(std::size_t bytes, void** data, std::size_t* size) {
  bytes = std::max<std::size_t>((bytes + kAlignment - 1) / kAlignment * kAlignment, kAlignment);
  auto best = gaps_.end();
  for (auto gap = gaps_.begin(); gap != gaps_.end(); ++gap)
    if (gap->bytes >= bytes && (best == gaps_.end() || gap->bytes < best->bytes)) best = gap;
  if (best == gaps_.end()) {
    // As much again as there is, so that a first run with large shapes asks a few times only.
    std::size_t all = 0;
    for (const Chunk& chunk : chunks_) all += chunk.bytes;
    if (Status s = add_chunk(std::max(bytes, all)); !s.ok()) return s;
    best = gaps_.end() - 1;
  }
  Chunk& chunk = chunks_[best->chunk];
  *data = chunk.data + best->offset;
  *size = bytes;
  best->offset += bytes;
  best->bytes -= bytes;
  chunk.top = std::max(chunk.top, best->offset);
  if (best->bytes == 0) gaps_.erase(best);
  return {};
}

void Arena::release(void* data, std::size_t size) {
  char* const at = static_cast<char*>(data);
  std::size_t chunk = 0;
  while (at < chunks_[chunk].data || at >= chunks_[chunk].data + chunks_[chunk].bytes) ++chunk;
  const std::size_t offset = static_cast<std::size_t>(at - chunks_[chunk].data);
  auto next = std::find_if(gaps_.begin(), gaps_.end(), [&](const Gap& gap) {
    return gap.chunk > chunk || (gap.chunk == chunk && gap.offset > offset);
  });
  const bool joins_next = next != gaps_.end() && next->chunk == chunk && next->offset == offset + size;
  const bool joins_last =
      next != gaps_.begin() && (next - 1)->chunk == chunk && (next - 1)->offset + (next - 1)->bytes == offset;
  if (joins_last && joins_next) {
    (next - 1)->bytes += size + next->bytes;
    gaps_.erase(next);
  } else if (joins_last) {
    (next - 1)->bytes += size;
  } else if (joins_next) {
    next->offset = offset;
    next->bytes += size;
  } else {
    gaps_.insert(next, {chunk, offset, size});
  }
}

std::size_t Arena::needed() const {
  std::size_t bytes = 0;
  for (const Chunk& chunk : chunks_) bytes += chunk.top;
  return bytes;
}

bool Arena::all_free() const {
  std::size_t free = 0, all = 0;
  for (const Gap& gap : gaps_) free += gap.bytes;
  for (const Chunk& chunk : chunks_) all += chunk.bytes;
  return free == all;
}

void Arena::clear() {
  for (const Chunk& chunk : chunks_) source_->release(chunk.data, chunk.handle);
  chunks_.clear();
  gaps_.clear();
}

std::size_t SizeCache::find(std::uint64_t key) {
  for (Entry& entry : entries_) {
    if (entry.key == key) {
      entry.used = ++clock_;
      return entry.bytes;
    }
  }
  return 0;
}

void SizeCache::set(std::uint64_t key, std::size_t bytes) {
  for (Entry& entry : entries_) {
    if (entry.key == key) {
      entry.bytes = std::max(entry.bytes, bytes);
      return;
    }
  }
  if (entries_.size() < kMost) {
    entries_.push_back({key, ++clock_, bytes});
    return;
  }
  auto oldest = std::min_element(entries_.begin(), entries_.end(),
                                 [](const Entry& a, const Entry& b) { return a.used < b.used; });
  *oldest = {key, ++clock_, bytes};
}

}  // namespace strop::runtime

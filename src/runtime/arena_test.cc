#include "runtime/arena.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <random>
#include <vector>

namespace strop::runtime {
namespace {

class Malloc final : public MemorySource {
 public:
  Status allocate(std::size_t bytes, void** data, void** handle) override {
    if (bytes > most) return Status(StatusCode::kRuntimeError, "no memory");
    *data = std::aligned_alloc(256, bytes);
    *handle = *data;
    ++calls;
    ++alive;
    return {};
  }
  void release(void* data, void*) override {
    std::free(data);
    --alive;
  }
  int calls = 0, alive = 0;
  std::size_t most = 1 << 30;
};

struct Piece {
  void* data;
  std::size_t size;
};

// A fixed sequence of sizes and lifetimes.
std::vector<void*> replay(Arena& arena, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<Piece> live;
  std::vector<void*> places;
  for (int step = 0; step < 300; ++step) {
    if (live.size() > 8 || (!live.empty() && random() % 3 == 0)) {
      const std::size_t i = random() % live.size();
      arena.release(live[i].data, live[i].size);
      live.erase(live.begin() + static_cast<std::ptrdiff_t>(i));
    } else {
      Piece piece;
      EXPECT_TRUE(arena.allocate(random() % 5000, &piece.data, &piece.size).ok());
      for (const Piece& other : live) {
        const char *a = static_cast<char*>(piece.data), *b = static_cast<char*>(other.data);
        EXPECT_TRUE(a + piece.size <= b || b + other.size <= a);
      }
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(piece.data) % Arena::kAlignment, 0U);
      live.push_back(piece);
      places.push_back(piece.data);
    }
  }
  for (const Piece& piece : live) arena.release(piece.data, piece.size);
  EXPECT_TRUE(arena.all_free());
  return places;
}

TEST(Arena, PiecesNeverOverlapAndRepeatedRunsAskOnce) {
  Malloc memory;
  for (unsigned seed = 1; seed <= 20; ++seed) {
    Arena arena(memory);
    replay(arena, seed);
    EXPECT_GT(arena.chunks(), 1U);
    // One piece fits otherwise than several do, and may lack a little: then it grows once more.
    for (int round = 0; round < 3 && arena.chunks() > 1; ++round) {
      ASSERT_TRUE(arena.reserve(arena.needed()).ok());
      replay(arena, seed);
    }
    EXPECT_EQ(arena.chunks(), 1U);
    const int calls = memory.calls;
    ASSERT_TRUE(arena.reserve(arena.needed()).ok());
    const std::vector<void*> first = replay(arena, seed);
    ASSERT_TRUE(arena.reserve(arena.needed()).ok());
    EXPECT_EQ(replay(arena, seed), first);  // the same sizes, the same places
    EXPECT_EQ(memory.calls, calls);
  }
  EXPECT_EQ(memory.alive, 0);
}

TEST(Arena, TakesTheGapThatFitsBest) {
  Malloc memory;
  Arena arena(memory);
  ASSERT_TRUE(arena.reserve(1 << 20).ok());
  Piece big, wall, small, other;
  for (Piece* p : {&big, &wall, &small, &other})
    ASSERT_TRUE(arena.allocate(p == &big ? 8192 : p == &small ? 1024 : 256, &p->data, &p->size).ok());
  arena.release(big.data, big.size);
  arena.release(small.data, small.size);
  Piece again;
  ASSERT_TRUE(arena.allocate(1000, &again.data, &again.size).ok());
  EXPECT_EQ(again.data, small.data);
  arena.release(again.data, again.size);
  arena.release(wall.data, wall.size);
  arena.release(other.data, other.size);
  EXPECT_TRUE(arena.all_free());
  ASSERT_TRUE(arena.allocate(1 << 20, &again.data, &again.size).ok());  // gaps have joined
  EXPECT_EQ(memory.calls, 1);
}

TEST(Arena, SaysWhenThereIsNoMemory) {
  Malloc memory;
  memory.most = 4096;
  Arena arena(memory);
  void* data = nullptr;
  std::size_t size = 0;
  EXPECT_EQ(arena.allocate(1 << 20, &data, &size).code(), StatusCode::kRuntimeError);
  EXPECT_TRUE(arena.allocate(100, &data, &size).ok());
}

TEST(SizeCache, ForgetsTheOneThatWasUsedLast) {
  SizeCache cache;
  for (std::uint64_t key = 1; key <= SizeCache::kMost; ++key) cache.set(key, key * 10);
  EXPECT_EQ(cache.find(1), 10U);  // used: 2 is the oldest now
  cache.set(1000, 5);
  EXPECT_EQ(cache.size(), SizeCache::kMost);
  EXPECT_EQ(cache.find(2), 0U);
  EXPECT_EQ(cache.find(1), 10U);
  EXPECT_EQ(cache.find(1000), 5U);
  cache.set(1000, 3);  // never less than was needed once
  EXPECT_EQ(cache.find(1000), 5U);
}

}  // namespace
}  // namespace strop::runtime

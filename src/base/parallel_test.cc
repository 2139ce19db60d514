#include "base/parallel.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>
#include <vector>

#include "base/chunks.h"

namespace strop {
namespace {

void expect_each_once(std::int64_t n) {
  std::vector<std::atomic<int>> calls(static_cast<std::size_t>(n));
  parallel_for(n, [&](std::int64_t i) { calls[static_cast<std::size_t>(i)].fetch_add(1); });
  for (std::int64_t i = 0; i < n; ++i) ASSERT_EQ(calls[static_cast<std::size_t>(i)].load(), 1) << i << " of " << n;
}

TEST(Parallel, EveryItemOnce) {
  for (std::int64_t n : {0, 1, 2, 3, 17, 1000}) expect_each_once(n);
  for (int i = 0; i < 2000; ++i) expect_each_once(4);
}

TEST(Parallel, NegativeCountDoesNothing) {
  parallel_for(-1, [](std::int64_t) { FAIL(); });
}

TEST(Parallel, NestedAndFromSeveralThreads) {
  std::vector<std::thread> threads;
  std::atomic<int> sum{0};
  for (int t = 0; t < 6; ++t) {
    threads.emplace_back([&] {
      for (int repetition = 0; repetition < 50; ++repetition) {
        parallel_for(5, [&](std::int64_t) { parallel_for(7, [&](std::int64_t) { sum.fetch_add(1); }); });
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(sum.load(), 6 * 50 * 5 * 7);
}

TEST(Parallel, ChunksEachOnce) {
  for (bool parallel : {false, true}) {
    for (std::int64_t n : {0, 1, 5, 300}) {
      std::vector<std::atomic<int>> calls(static_cast<std::size_t>(n));
      for_each_chunk(n, parallel, [&](std::int64_t i) { calls[static_cast<std::size_t>(i)].fetch_add(1); });
      for (auto& count : calls) ASSERT_EQ(count.load(), 1);
    }
  }
}

TEST(Parallel, LentPoolIsUsedAndGivenBack) {
  static std::atomic<int> calls{0};
  const int own = num_threads();
  EXPECT_GE(own, 1);
  set_parallel_for(
      [](std::int64_t n, void (*body)(std::int64_t, std::int64_t, void*), void* context) {
        calls.fetch_add(1);
        body(0, n / 2, context);
        body(n / 2, n, context);
      },
      [] { return 5; });
  EXPECT_EQ(num_threads(), 5);
  expect_each_once(9);
  EXPECT_EQ(calls.load(), 1);
  set_parallel_for(nullptr, nullptr);
  EXPECT_EQ(num_threads(), own);
  expect_each_once(9);
  EXPECT_EQ(calls.load(), 1);
}

// Not under sanitizers: their own locks, which allocations and new threads take, may be held at the fork.
#if !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
// A child made by fork has none of the pool's threads, and a mutex that one of them held stays locked. It must neither
// wait for them nor crash.
TEST(Parallel, WorksInAForkedChild) {
  std::atomic<bool> stop{false};
  std::thread busy([&] {
    while (!stop.load()) expect_each_once(3);
  });
  for (int repetition = 0; repetition < 100; ++repetition) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      alarm(20);
      std::atomic<int> sum{0};
      parallel_for(100, [&](std::int64_t) { sum.fetch_add(1); });
      _exit(sum.load() == 100 ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "fork " << repetition;
    if (HasFailure()) break;
  }
  stop.store(true);
  busy.join();
}
#endif

}  // namespace
}  // namespace strop

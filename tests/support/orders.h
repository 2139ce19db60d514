// That results do not depend on what goes first: run the same in several orders and compare. run() returns what can be
// compared bit by bit, such as a tensor's bytes.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <thread>
#include <vector>

#include "strop/parallel.h"
#include "tests/support/backend.h"
#include "tests/support/random.h"
#if STROP_EMULATED
#include "strop/emu.h"
#endif

namespace strop::testing {

// The CPU's work by its own threads; in one piece by one; cut for several, a thread a piece and the last piece first.
template <class Run>
void expect_threads_change_nothing(const Run& run) {
  using Body = void (*)(std::int64_t, std::int64_t, void*);
  const auto own = run();
  set_parallel_for([](std::int64_t n, Body body, void* context) { body(0, n, context); }, [] { return 1; });
  const auto serial = run();
  set_parallel_for(
      [](std::int64_t n, Body body, void* context) {
        std::vector<std::thread> threads;
        for (std::int64_t i = n - 1; i >= 0; --i) threads.emplace_back(body, i, i + 1, context);
        for (std::thread& thread : threads) thread.join();
      },
      [] { return 16; });
  const auto reversed = run();
  set_parallel_for(nullptr, nullptr);
  EXPECT_TRUE(own == serial);
  EXPECT_TRUE(own == reversed);
}

#if STROP_EMULATED
// The emulator's warps and blocks in several orders.
template <class Run>
void expect_schedules_change_nothing(const Run& run) {
  emu::set_schedule({emu::Order::kForward});
  const auto first = run();
  for (const emu::Schedule& schedule :
       {emu::Schedule{emu::Order::kReverse}, {emu::Order::kRandom, 3}, {emu::Order::kRandom, 4}}) {
    emu::set_schedule(schedule);
    EXPECT_TRUE(run() == first);
  }
  emu::set_schedule({emu::Order::kRandom, test_seed()});
}
#endif

}  // namespace strop::testing

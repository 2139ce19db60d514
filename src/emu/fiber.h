// One stack a CUDA thread, and the switch between them.
#pragma once

#include <ucontext.h>

#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace strop::emu {

// A stretch of stacks that is kept for the next launch.
class Stacks {
 public:
  static constexpr std::size_t kBytes = 128 * 1024;  // each; pages that are never touched cost nothing

  ~Stacks();
  // A free stack's lowest address.
  std::uintptr_t take();
  void give_back(std::uintptr_t stack) { free_.push_back(stack); }

 private:
  std::vector<void*> slabs_;
  std::vector<std::uintptr_t> free_;
};

// Runs `entry(context)` on a stack of its own, in stretches: from resume() to suspend(), until `entry` returns.
class Fiber {
 public:
  void start(std::uintptr_t stack, void (*entry)(void*), void* context);
  // From outside: goes on with it until it suspends or ends.
  void resume();
  // From inside.
  void suspend();
  bool done() const { return done_; }
  std::uintptr_t stack() const { return stack_; }
  bool owns(std::uintptr_t address) const { return address - stack_ < Stacks::kBytes; }
  // Whether the deepest part of the stack was written to, which is taken for an overflow.
  bool overflown() const;

 private:
  static void enter(unsigned high, unsigned low);

  std::uintptr_t stack_ = 0;
  void (*entry_)(void*) = nullptr;
  void* context_ = nullptr;
  std::jmp_buf inside_, outside_;
  bool started_ = false, done_ = false;
};

}  // namespace strop::emu

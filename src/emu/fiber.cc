// glibc's checked longjmp takes a switch between stacks for an error.
#undef _FORTIFY_SOURCE
#include "emu/fiber.h"

#include <sys/mman.h>

#include <new>

namespace strop::emu {
namespace {
constexpr std::size_t kPerSlab = 256;
constexpr std::uint64_t kCanary = 0x5707'5707'5707'5707;
}  // namespace

Stacks::~Stacks() {
  for (void* slab : slabs_) munmap(slab, kPerSlab * kBytes);
}

std::uintptr_t Stacks::take() {
  if (free_.empty()) {
    void* slab =
        mmap(nullptr, kPerSlab * kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (slab == MAP_FAILED) throw std::bad_alloc();
    slabs_.push_back(slab);
    for (std::size_t i = kPerSlab; i-- > 0;) free_.push_back(reinterpret_cast<std::uintptr_t>(slab) + i * kBytes);
  }
  const std::uintptr_t stack = free_.back();
  free_.pop_back();
  return stack;
}

void Fiber::start(std::uintptr_t stack, void (*entry)(void*), void* context) {
  stack_ = stack, entry_ = entry, context_ = context;
  started_ = done_ = false;
  *reinterpret_cast<std::uint64_t*>(stack) = kCanary;
}

bool Fiber::overflown() const { return *reinterpret_cast<const std::uint64_t*>(stack_) != kCanary; }

void Fiber::enter(unsigned high, unsigned low) {
  auto* fiber = reinterpret_cast<Fiber*>(static_cast<std::uintptr_t>(high) << 32 | low);
  fiber->entry_(fiber->context_);
  fiber->done_ = true;
  _longjmp(fiber->outside_, 1);
}

// ucontext makes the stack; setjmp and longjmp switch, as swapcontext would ask the kernel for signal masks each time.
void Fiber::resume() {
  if (_setjmp(outside_) != 0) return;
  if (started_) _longjmp(inside_, 1);
  started_ = true;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = reinterpret_cast<void*>(stack_ + sizeof(kCanary));
  context.uc_stack.ss_size = Stacks::kBytes - sizeof(kCanary);
  context.uc_link = nullptr;
  const auto self = reinterpret_cast<std::uintptr_t>(this);
  makecontext(&context, reinterpret_cast<void (*)()>(&Fiber::enter), 2, static_cast<unsigned>(self >> 32),
              static_cast<unsigned>(self));
  setcontext(&context);
}

void Fiber::suspend() {
  if (_setjmp(inside_) == 0) _longjmp(outside_, 1);
}

}  // namespace strop::emu

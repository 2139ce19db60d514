// The functions of device.h, and those that the compiler calls before every access to memory (-fsanitize=thread without
// ThreadSanitizer's library: the calls come here).
#include "emu/device.h"

#include <cstdio>
#include <cstdlib>

#include "emu/async.h"
#include "emu/launch.h"

namespace strop::emu {
namespace {

// A name of CUDA's that is used outside of a kernel.
// For as long as it lives the launch's own code runs. Some of that is shared with the kernel's (inline functions of the
// standard library, of which the linker keeps one, instrumented or not), so what it touches must be ignored.
class Entered {
 public:
  explicit Entered(Launch& launch) : launch_(launch) { launch_.set_in_kernel(false); }
  ~Entered() { launch_.set_in_kernel(true); }
  Launch* operator->() { return &launch_; }

 private:
  Launch& launch_;
};

Launch& launch() {
  Launch* l = Launch::current();
  if (l == nullptr) {
    std::fputs("strop::emu: a device function was called outside of a kernel\n", stderr);
    std::abort();
  }
  return *l;
}
Thread& thread() { return launch().running(); }
Entered enter() { return Entered(launch()); }

}  // namespace

// The address of the call itself, not of what follows it.
#define STROP_PC (reinterpret_cast<std::uintptr_t>(__builtin_return_address(0)) - 1)

Dim3 thread_index() { return thread().at; }
Dim3 block_index() { return thread().block->at; }
Dim3 block_size() { return launch().spec().block; }
Dim3 grid_size() { return launch().spec().grid; }
unsigned lane_index() { return thread().lane(); }
unsigned cluster_size() { return launch().spec().cluster; }
unsigned cluster_rank() { return thread().block->id % launch().spec().cluster; }

void load(void* to, const void* p, std::size_t bytes, Op op) {
  enter()->access(reinterpret_cast<std::uintptr_t>(p), bytes, op, STROP_PC, true);
  std::memcpy(to, p, bytes);
}
void store(void* p, const void* from, std::size_t bytes, Op op) {
  enter()->access(reinterpret_cast<std::uintptr_t>(p), bytes, op, STROP_PC, true);
  std::memcpy(p, from, bytes);
}
void check_prefetch(const void* p, std::size_t bytes) {
  Entered l = enter();
  const auto a = reinterpret_cast<std::uintptr_t>(p);
  if (bytes == 0) return;
  Region* first = l->find(a);
  Region* last = l->find(a + bytes - 1);
  if (a % 16 == 0 && bytes % 16 == 0 && first != nullptr && first == last && first->has(a) && first->has(a + bytes - 1))
    return;
  l->report(a % 16 != 0 || bytes % 16 != 0 ? Kind::kMisaligned : Kind::kOutOfBounds,
            "a prefetch of " + std::to_string(bytes) + " bytes" +
                (first != nullptr ? " from " + first->describe(a) : std::string()),
            STROP_PC, &l->running());
}
void* dynamic_shared() { return reinterpret_cast<void*>(thread().block->shared->begin()); }
void* map_shared(const void* p, unsigned rank) {
  return enter()->map_shared(reinterpret_cast<std::uintptr_t>(p), rank, STROP_PC);
}

void block_barrier_sync(unsigned id, unsigned threads) { enter()->block_barrier(id, threads, true, STROP_PC); }
void block_barrier_arrive(unsigned id, unsigned threads) { enter()->block_barrier(id, threads, false, STROP_PC); }
void cluster_arrive() { enter()->cluster_arrive(STROP_PC); }
void cluster_wait() { enter()->cluster_wait(STROP_PC); }
std::uint64_t grid_arrive() { return enter()->grid_arrive(STROP_PC); }
void grid_wait(std::uint64_t arrival) { enter()->grid_wait(arrival, STROP_PC); }

void fence(Scope scope) { enter()->fence(scope); }
std::uint64_t atomic(void* p, std::size_t bytes, MemoryOrder order, std::uint64_t (*apply)(std::uint64_t, const void*),
                     const void* context) {
  return enter()->atomic(reinterpret_cast<std::uintptr_t>(p), bytes, order, apply, context, STROP_PC);
}

std::uint64_t atomic_unwritten(void* p, std::size_t bytes, MemoryOrder order,
                               std::uint64_t (*apply)(std::uint64_t, const void*), const void* context) {
  return enter()->atomic(reinterpret_cast<std::uintptr_t>(p), bytes, order, apply, context, STROP_PC, Op::kPoll);
}
void atomic_store(void* p, std::uint32_t value, MemoryOrder order) {
  enter()->atomic_store(reinterpret_cast<std::uintptr_t>(p), value, order, STROP_PC);
}

void send(void* p, const void* from, std::size_t bytes) {
  enter()->send(reinterpret_cast<std::uintptr_t>(p), from, bytes, STROP_PC);
}
void poll(void* to, const void* p, std::size_t bytes) {
  enter()->poll(to, reinterpret_cast<std::uintptr_t>(p), bytes, STROP_PC);
}

void warp_meet(const char* what, unsigned mask, void* payload, void (*complete)(void* const*, unsigned),
               bool orders_memory) {
  enter()->warp_meet(what, mask, payload, complete, orders_memory, STROP_PC);
}
void report_shuffle(const char* what, unsigned mask, unsigned source) {
  char lanes[16];
  std::snprintf(lanes, sizeof lanes, "0x%08x", mask);
  Entered l = enter();
  l->report(Kind::kWarp,
            std::string(what) + " with mask " + lanes + " reads from lane " + std::to_string(source) +
                ", which does not take part",
            STROP_PC, &thread());
}

void copy_async(void* to, const void* from, std::size_t bytes, std::size_t from_bytes) {
  enter()->copy(CopyKind::kAsync, reinterpret_cast<Pc>(to), reinterpret_cast<Pc>(from), bytes, from_bytes, 0, STROP_PC);
}
void copy_async_commit() { enter()->copies_commit(CopyKind::kAsync); }
void copy_async_wait(unsigned newest) { enter()->copies_wait(CopyKind::kAsync, newest, false); }
void bulk_load(void* to, const void* from, std::size_t bytes, void* barrier) {
  enter()->copy(CopyKind::kBulkLoad, reinterpret_cast<Pc>(to), reinterpret_cast<Pc>(from), bytes, bytes,
                reinterpret_cast<Pc>(barrier), STROP_PC);
}
void bulk_store(void* to, const void* from, std::size_t bytes) {
  enter()->copy(CopyKind::kBulkStore, reinterpret_cast<Pc>(to), reinterpret_cast<Pc>(from), bytes, bytes, 0, STROP_PC);
}
void bulk_store_commit() { enter()->copies_commit(CopyKind::kBulkStore); }
void bulk_store_wait(unsigned newest, bool sources_only) {
  enter()->copies_wait(CopyKind::kBulkStore, newest, sources_only);
}
void mbarrier_init(void* barrier, unsigned count) {
  enter()->mbarrier_init(reinterpret_cast<Pc>(barrier), count, STROP_PC);
}
void mbarrier_arrive(void* barrier, unsigned count, std::int64_t bytes) {
  enter()->mbarrier_arrive(reinterpret_cast<Pc>(barrier), count, bytes, STROP_PC);
}
bool mbarrier_test(void* barrier, unsigned parity) {
  return enter()->mbarrier_test(reinterpret_cast<Pc>(barrier), parity, STROP_PC);
}
void mbarrier_wait(void* barrier, unsigned parity) {
  enter()->mbarrier_wait(reinterpret_cast<Pc>(barrier), parity, STROP_PC);
}

namespace {

inline void seen(void* p, std::size_t n, Op op, bool aligned, Pc pc) {
  Launch* l = Launch::current();
  if (l != nullptr && l->in_kernel()) Entered(*l)->access(reinterpret_cast<std::uintptr_t>(p), n, op, pc, aligned);
}
inline void seen_volatile(void* p, std::size_t n, bool write, Pc pc) {
  Launch* l = Launch::current();
  if (l != nullptr && l->in_kernel()) Entered(*l)->volatile_access(reinterpret_cast<std::uintptr_t>(p), n, write, pc);
}

}  // namespace
}  // namespace strop::emu

#define STROP_HOOKS(n)                                                                                             \
  extern "C" void __tsan_read##n(void* p) { strop::emu::seen(p, n, strop::emu::Op::kRead, true, STROP_PC); }       \
  extern "C" void __tsan_write##n(void* p) { strop::emu::seen(p, n, strop::emu::Op::kWrite, true, STROP_PC); }     \
  extern "C" void __tsan_unaligned_read##n(void* p) {                                                              \
    strop::emu::seen(p, n, strop::emu::Op::kRead, false, STROP_PC);                                                \
  }                                                                                                                \
  extern "C" void __tsan_unaligned_write##n(void* p) {                                                             \
    strop::emu::seen(p, n, strop::emu::Op::kWrite, false, STROP_PC);                                               \
  }                                                                                                                \
  extern "C" void __tsan_volatile_read##n(void* p) { strop::emu::seen_volatile(p, n, false, STROP_PC); }           \
  extern "C" void __tsan_volatile_write##n(void* p) { strop::emu::seen_volatile(p, n, true, STROP_PC); }           \
  extern "C" void __tsan_unaligned_volatile_read##n(void* p) { strop::emu::seen_volatile(p, n, false, STROP_PC); } \
  extern "C" void __tsan_unaligned_volatile_write##n(void* p) { strop::emu::seen_volatile(p, n, true, STROP_PC); }
STROP_HOOKS(1)
STROP_HOOKS(2)
STROP_HOOKS(4)
STROP_HOOKS(8)
STROP_HOOKS(16)

extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_vptr_update(void**, void*) {}
extern "C" void __tsan_vptr_read(void**) {}
// A copy of a struct: its bytes, 16 at a time.
extern "C" void __tsan_read_range(void* p, unsigned long n) {
  for (unsigned long i = 0; i < n; i += 16)
    strop::emu::seen(static_cast<char*>(p) + i, n - i < 16 ? n - i : 16, strop::emu::Op::kRead, false, STROP_PC);
}
extern "C" void __tsan_write_range(void* p, unsigned long n) {
  for (unsigned long i = 0; i < n; i += 16)
    strop::emu::seen(static_cast<char*>(p) + i, n - i < 16 ? n - i : 16, strop::emu::Op::kWrite, false, STROP_PC);
}

// Atomics of C++ in instrumented host code (the guard of a static variable, for example): just done.
#define STROP_ATOMICS(n, T)                                                                                       \
  extern "C" T __tsan_atomic##n##_load(const volatile T* p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); } \
  extern "C" void __tsan_atomic##n##_store(volatile T* p, T v, int) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); } \
  extern "C" T __tsan_atomic##n##_exchange(volatile T* p, T v, int) {                                             \
    return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST);                                                           \
  }                                                                                                               \
  extern "C" T __tsan_atomic##n##_fetch_add(volatile T* p, T v, int) {                                            \
    return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST);                                                            \
  }                                                                                                               \
  extern "C" T __tsan_atomic##n##_fetch_sub(volatile T* p, T v, int) {                                            \
    return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST);                                                            \
  }                                                                                                               \
  extern "C" bool __tsan_atomic##n##_compare_exchange_strong(volatile T* p, T* expected, T v, int, int) {         \
    return __atomic_compare_exchange_n(p, expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                \
  }                                                                                                               \
  extern "C" bool __tsan_atomic##n##_compare_exchange_weak(volatile T* p, T* expected, T v, int, int) {           \
    return __atomic_compare_exchange_n(p, expected, v, true, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                 \
  }
STROP_ATOMICS(8, std::uint8_t)
STROP_ATOMICS(16, std::uint16_t)
STROP_ATOMICS(32, std::uint32_t)
STROP_ATOMICS(64, std::uint64_t)
extern "C" void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

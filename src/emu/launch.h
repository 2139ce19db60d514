// A running launch: blocks of fibers, what they wait for, and what was found.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "emu/clocks.h"
#include "emu/device.h"
#include "emu/fiber.h"
#include "emu/memory.h"
#include "strop/emu.h"

namespace strop::emu {

using Pc = std::uintptr_t;
inline constexpr unsigned kWarpSize = 32;

struct Thread;

enum class CopyKind : std::uint8_t { kAsync /* cp.async */, kBulkLoad /* to shared memory */, kBulkStore };
struct Copy {
  CopyKind kind;
  Thread* by;
  Clock clock;
  std::uintptr_t to, from;
  std::size_t bytes, from_bytes;  // the rest is filled with zeros
  std::uint64_t group = 0;
  std::uintptr_t barrier = 0;  // the mbarrier that counts its bytes, by place()
  Pc at;
  std::vector<unsigned char> read{};  // what it brings, once somebody has waited for it to be read
  bool reported = false;              // that somebody has not waited for it
};

struct Thread {
  Fiber fiber;
  Block* block = nullptr;
  std::uint32_t index = 0;  // in its block
  Dim3 at{};

  Clock clock = 1;
  KnowledgePtr knows;
  // Of fences: what a relaxed atomic write publishes, and what relaxed atomic reads saw, for the next fence to take in.
  KnowledgePtr fenced_gpu, fenced_block, seen_gpu, seen_block;

  bool ready = true, done = false;
  const char* waits_for = nullptr;  // while it waits
  Pc waits_at = 0;
  std::string waits_how;  // more to say of it in a report on a deadlock
  std::uint64_t cluster_arrival = 0;
  bool cluster_arrived = false;
  std::uint64_t groups[2] = {};                                  // committed ones, of cp.async and of bulk stores
  std::vector<Copy> copies;                                      // of those two kinds, on their way
  std::unordered_map<std::uint64_t, std::uint32_t> occurrences;  // of each counted access

  unsigned lane() const { return index % kWarpSize; }
  unsigned warp() const { return index / kWarpSize; }
};

// What threads that meet pass on: what happened before, what their fences have published, and what atomic reads have
// seen. The latter because __threadfence is sequentially consistent: a barrier may lie between it and the atomic.
struct Passed {
  KnowledgePtr known, fenced, seen;
};
struct Gathered {
  std::vector<Meeting> known, fenced, seen;
  void add(Meeting m, const Thread& t);
  Passed join(std::uint32_t slots) const;
};

// Where threads meet. A generation ends when `expected` have arrived.
struct Barrier {
  const char* what = "";
  std::uint32_t expected = 0, leaving = 0;  // of the cluster's: those that exit are not expected any more
  Gathered arrived;
  std::vector<Thread*> arrived_threads, waiting;
  Pc first_at = 0;
  std::uint64_t generation = 0;
  Passed released;  // by the last generation that ended
};

// Lanes on their way to one warp operation.
struct Meet {
  const char* what;
  unsigned mask;
  void (*complete)(void* const*, unsigned);
  bool orders_memory;
  unsigned arrived = 0;
  Gathered met;
  void* payloads[kWarpSize] = {};
  Thread* threads[kWarpSize] = {};
  Pc at[kWarpSize] = {};
};

struct Block {
  std::uint32_t id = 0;  // linear
  Dim3 at{};
  std::uint32_t cluster = 0;
  std::unique_ptr<Region> shared;                // dynamic
  std::vector<std::unique_ptr<Region>> statics;  // __shared__ variables, by their number in the launch; may be null
  std::vector<std::unique_ptr<Thread>> threads;
  std::map<unsigned, Barrier> barriers;
  std::vector<std::vector<Meet>> meets;  // by warp
  std::uint32_t exited = 0;
  Clock loaded = 0;  // of its bulk loads: how many have arrived
  bool done() const { return exited == threads.size(); }
};

struct Cluster {
  std::vector<std::unique_ptr<Block>> blocks;
  Barrier barrier;
  bool done() const;
};

// A static __shared__ variable that this launch has touched: one address for all blocks, so its contents are swapped
// when another block runs.
struct StaticShared {
  std::string name;
  std::uintptr_t address;
  std::size_t bytes;
  std::shared_ptr<Region> live{};  // the variable itself
};

// What an atomic location publishes.
struct Published {
  KnowledgePtr gpu, block;
  std::uint32_t block_id = 0;
};

// The emulator's side of an mbarrier in shared memory.
struct MBarrier {
  std::uint32_t count = 0, pending = 0;
  std::int64_t bytes = 0;  // expected and not yet there
  bool asked = false;      // somebody wants the phase's end
  Pc at = 0;               // the last arrival, or that which expected bytes
  std::uint64_t phase = 0;
  std::vector<Meeting> arrived;
  KnowledgePtr released;
  std::vector<Thread*> waiting;
};

class Counter;  // counter.h

struct LaunchSpec {
  Dim3 grid{1, 1, 1}, block{1, 1, 1};
  std::size_t shared_bytes = 0;
  unsigned cluster = 1;
  bool cooperative = false;
  std::size_t resident = 1;  // blocks that the device holds at once
  const void* kernel = nullptr;
  void (*invoke)(void* arguments) = nullptr;
  void* arguments = nullptr;
  std::size_t arguments_bytes = 0;
};

class Launch {
 public:
  Launch(const LaunchSpec& spec, const Schedule& schedule, std::uint32_t number);
  ~Launch();
  void run();

  // The launch that this host thread runs, or null; the thread of it that runs.
  static Launch* current();
  Thread& running() { return *running_; }
  // Whether the kernel's own code runs now, so that accesses count.
  bool in_kernel() const { return in_kernel_; }
  void set_in_kernel(bool in) { in_kernel_ = in; }

  // ---- of the running thread
  void access(std::uintptr_t a, std::size_t n, Op op, Pc pc, bool aligned);
  void barrier_arrive(Barrier& barrier, Pc pc);
  void barrier_wait(Barrier& barrier, std::uint64_t generation, const char* what, Pc pc);
  void block_barrier(unsigned id, unsigned threads, bool wait, Pc pc);
  void cluster_arrive(Pc pc);
  void cluster_wait(Pc pc);
  std::uint64_t grid_arrive(Pc pc);
  void grid_wait(std::uint64_t arrival, Pc pc);
  void warp_meet(const char* what, unsigned mask, void* payload, void (*complete)(void* const*, unsigned),
                 bool orders_memory, Pc pc);
  void fence(Scope scope);
  std::uint64_t atomic(std::uintptr_t a, std::size_t n, MemoryOrder order,
                       std::uint64_t (*apply)(std::uint64_t, const void*), const void* context, Pc pc,
                       Op read = Op::kAtomicRead);
  void atomic_store(std::uintptr_t a, std::uint32_t value, MemoryOrder order, Pc pc);
  void send(std::uintptr_t a, const void* from, std::size_t n, Pc pc);
  void poll(void* to, std::uintptr_t a, std::size_t n, Pc pc);
  void volatile_access(std::uintptr_t a, std::size_t n, bool write, Pc pc);
  void polled(Pc pc);  // after a read of what other threads may change: lets them run
  void wait(const char* what, Pc pc, std::string how = {});
  void* map_shared(std::uintptr_t a, unsigned rank, Pc pc);
  Meeting meeting();  // of the running thread; its clock goes on

  // ---- asynchronous copies (copies.cc)
  void copy(CopyKind kind, std::uintptr_t to, std::uintptr_t from, std::size_t bytes, std::size_t from_bytes,
            std::uintptr_t barrier, Pc pc);
  void copies_commit(CopyKind kind);
  void copies_wait(CopyKind kind, std::uint64_t newest, bool sources_only);
  void mbarrier_init(std::uintptr_t a, std::uint32_t count, Pc pc);
  void mbarrier_arrive(std::uintptr_t a, std::uint32_t count, std::int64_t bytes, Pc pc);
  bool mbarrier_test(std::uintptr_t a, unsigned parity, Pc pc);
  void mbarrier_wait(std::uintptr_t a, unsigned parity, Pc pc);

  // ---- reports
  // `thread`: whose stack leads to `pc`; null where that does not matter. `other`: a second line of the same mistake.
  void report(Kind kind, std::string text, Pc pc, const Thread* thread, Pc other = 0);
  std::string thread_text(std::uint32_t block, std::uint32_t index) const;
  std::string thread_text(const Thread& t) const { return thread_text(t.block->id, t.index); }
  [[noreturn]] void give_up();  // leaves the running thread for ever, and ends the launch

  const LaunchSpec& spec() const { return spec_; }
  std::uint32_t block_threads() const { return threads_; }
  Region* find(std::uintptr_t a);
  Dim3 position(std::uint32_t linear, const Dim3& size) const;

  std::string kernel_name;
  Counts totals;

 private:
  struct Found {
    Kind kind;
    std::string text;
    std::vector<Pc> where;
    Pc pc = 0, other = 0;
    std::uint64_t times = 1;
  };
  void start_cluster();
  void end_thread(Thread& t);
  bool unstall();    // where nobody can go on: lands a copy, starts more blocks; false: it is a deadlock
  bool land_copy();  // that somebody asks for
  void land(std::vector<Copy>& copies, std::size_t i);
  void settle(std::uintptr_t barrier, MBarrier& b);
  void report_deadlock();
  std::string how_it_waits(const Thread& t);
  void check_left_barriers(Block& block);
  void check_left_shared(Block& block);  // accesses of other blocks that its exit did not wait for
  void take(Thread& t, const Passed& passed);
  Cluster& cluster_of(const Block& block);
  void finish_barrier(Barrier& barrier);
  void settle_meet(Block& block, unsigned warp, unsigned mask);  // ends it where nobody more can come
  void wake(Thread* t);
  void switch_statics(Block* to);
  Region* find_static(std::uintptr_t a);
  Region& static_of(Block& block, std::size_t i);  // the block's contents while another runs
  Region& live_static(Block& block, std::size_t i);
  Copy* copy_at(const Region& r, std::uintptr_t a, bool arriving);  // that is on its way to a byte, or reads it
  bool check_bytes(Region& r, std::uintptr_t a, std::size_t n, Op op, Pc pc);
  void check_race(Region& r, std::uintptr_t a, std::size_t n, Op op, Pc pc);
  void finish_counts();
  void publish_reports();
  bool knows(const Thread& t, const Touch& touch) const;
  MBarrier* find_mbarrier(std::uintptr_t a, Pc pc);
  // What is kept by address finds it by this one: a static __shared__ variable has the same address in every block.
  std::uintptr_t place(std::uintptr_t a);

  static void enter(void* thread);

  LaunchSpec spec_;
  Schedule schedule_;
  std::uint32_t number_;
  std::uint32_t threads_, blocks_;
  std::uint32_t slots_;  // of a block in clocks and touches: its threads, and its bulk loads
  std::uint32_t slot(const Thread& t) const { return t.block->id * slots_ + t.index; }
  std::uint64_t random_;
  std::uint32_t slow_ = ~0u;  // a block that has few turns, in every second random schedule
  std::uint64_t random();
  std::vector<std::unique_ptr<Cluster>> clusters_;  // that run
  std::vector<std::uint32_t> to_start_;             // clusters, last first
  std::size_t resident_ = 0;                        // blocks
  std::deque<Thread*> ready_;
  Thread* running_ = nullptr;
  Block* statics_of_ = nullptr;  // whose contents static __shared__ variables have
  std::vector<StaticShared> statics_;
  std::vector<std::unique_ptr<Region>> variables_;  // __device__ ones that this launch has touched
  Barrier grid_;
  std::unordered_map<std::uintptr_t, Published> published_;  // by place()
  std::vector<Copy> bulk_loads_;                             // on their way
  std::unordered_map<std::uintptr_t, MBarrier> mbarriers_;   // by place()
  std::uint64_t progress_ = 0, stalled_at_ = 0, spins_ = 0;
  bool over_ = false, in_kernel_ = false;
  std::vector<Found> found_;
  Region* last_region_ = nullptr;
  std::unique_ptr<Counter> counter_;
  std::uint64_t switches_ = 0, barriers_ = 0;
  Stacks& stacks_;
};

// Runs it, with its reports and counts going to the calling thread.
void run_launch(const LaunchSpec& spec);
std::unique_lock<std::recursive_mutex> lock_device();
// A launch that was refused.
void report_refused(const void* kernel, const std::string& why);

// What the thread has set (emulator.cc).
struct Settings {
  int device = 0;
  Schedule schedule;
  bool replay = false;
  Schedule replayed;
  bool print = true, counting = false;
  std::uint32_t launches = 0;
  std::uint64_t drawn = 0;  // seeds, since set_schedule
  std::vector<Report> reports;
  std::size_t failures = 0;  // reports since the last cudaDeviceSynchronize or cudaGetLastError
  std::vector<NamedView> names;
  Counts counts;
  std::vector<MapLine> map;  // of the last launch that was counted
};
Settings& settings();
std::vector<Device>& devices();

// Source lines of program addresses, innermost function first; frames of the emulator and of PTX wrappers are left out.
std::vector<std::vector<Frame>> frames_of(const std::vector<std::vector<Pc>>& stacks);
Pc program_start();
std::string lanes_text(unsigned mask);  // "lane 4", "lanes 0-3, 7"
// The kernel's or a variable's name; the variable that has an address (name, start, size), from the symbol table.
std::string symbol_name(const void* address);
struct Symbol {
  std::string name;
  std::uintptr_t address = 0;
  std::size_t bytes = 0;
  bool shared = false;    // a static __shared__ variable: of a function, and without a value at first
  bool writable = false;  // no constant
};
bool find_variable(std::uintptr_t address, Symbol* symbol);

}  // namespace strop::emu

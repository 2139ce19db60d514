// Barriers, warps, fences and atomics.
#include <algorithm>
#include <bit>
#include <cstring>
#include <map>

#include "emu/launch.h"

namespace strop::emu {
namespace {

// Whether two addresses are of one source line: a compiler may have copied it.
bool same_line(Pc a, Pc b) {
  static std::map<std::pair<Pc, Pc>, bool> known;
  const auto [at, fresh] = known.try_emplace({a, b}, false);
  if (fresh) {
    const auto frames = frames_of({{a}, {b}});
    at->second = !frames[0].empty() && !frames[1].empty() && frames[0][0].line == frames[1][0].line &&
                 frames[0][0].file == frames[1][0].file;
  }
  return at->second;
}

}  // namespace

std::string lanes_text(unsigned mask) {
  std::string text;
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    unsigned last = lane;
    while (last + 1 < kWarpSize && (mask >> (last + 1) & 1) != 0) ++last;
    text += (text.empty() ? "" : ", ") + std::to_string(lane);
    if (last > lane) text += "-" + std::to_string(last);
    lane = last;
  }
  return (std::has_single_bit(mask) ? "lane " : "lanes ") + text;
}

// ---- Barriers -------------------------------------------------------------------------------------------------------

Meeting Launch::meeting() {
  Thread& t = *running_;
  return {t.block->id, t.index, t.clock++, t.knows};
}

void Gathered::add(Meeting m, const Thread& t) {
  known.push_back(std::move(m));
  if (t.fenced_gpu != nullptr) fenced.push_back({0, 0, 0, t.fenced_gpu});
  if (t.seen_gpu != nullptr) seen.push_back({0, 0, 0, t.seen_gpu});
}
Passed Gathered::join(std::uint32_t slots) const {
  const auto all = [&](const std::vector<Meeting>& m) { return m.empty() ? nullptr : Knowledge::join(m, slots); };
  return {all(known), all(fenced), all(seen)};
}
void Launch::take(Thread& t, const Passed& passed) {
  t.knows = Knowledge::join(t.knows, passed.known);
  t.fenced_gpu = Knowledge::join(t.fenced_gpu, passed.fenced);
  t.seen_gpu = Knowledge::join(t.seen_gpu, passed.seen);
}

void Launch::barrier_arrive(Barrier& barrier, Pc pc) {
  if (barrier.arrived_threads.empty()) barrier.first_at = pc;
  barrier.arrived.add(meeting(), *running_);
  barrier.arrived_threads.push_back(running_);
  if (barrier.arrived_threads.size() == barrier.expected) finish_barrier(barrier);
}

void Launch::finish_barrier(Barrier& barrier) {
  ++progress_, ++barriers_;
  barrier.released = barrier.arrived.join(slots_);
  barrier.arrived = {};
  barrier.arrived_threads.clear();
  barrier.expected -= std::exchange(barrier.leaving, 0);
  ++barrier.generation;
  for (Thread* t : barrier.waiting) wake(t);
  barrier.waiting.clear();
}

void Launch::barrier_wait(Barrier& barrier, std::uint64_t generation, const char* what, Pc pc) {
  Thread& t = *running_;
  if (barrier.generation == generation) {
    barrier.waiting.push_back(&t);
    wait(what, pc);
  }
  take(t, barrier.released);
}

void Launch::block_barrier(unsigned id, unsigned threads, bool wait_too, Pc pc) {
  Thread& t = *running_;
  Block& block = *t.block;
  Barrier& b = block.barriers[id];
  b.what = id == 0 ? "__syncthreads" : "a named barrier";
  const std::uint32_t expected = threads == 0 ? threads_ : threads;
  if (!b.arrived_threads.empty() && b.expected != expected) {
    report(Kind::kDivergentBarrier,
           thread_text(t) + " comes to barrier " + std::to_string(id) + " for " + std::to_string(expected) +
               " threads, at which others wait for " + std::to_string(b.expected),
           pc, &t);
    give_up();
  }
  if (!b.arrived_threads.empty() && threads == 0 && pc != b.first_at && !same_line(pc, b.first_at)) {
    report(Kind::kDivergentBarrier,
           "__syncthreads in divergent code: " + thread_text(t) + " is at one, " + thread_text(*b.arrived_threads[0]) +
               " at another",
           pc, &t, b.first_at);
  }
  b.expected = expected;
  const std::uint64_t generation = b.generation;
  barrier_arrive(b, pc);
  check_left_barriers(block);
  if (wait_too) barrier_wait(b, generation, b.what, pc);
}

void Launch::check_left_barriers(Block& block) {
  for (auto& [id, b] : block.barriers) {
    if (b.arrived_threads.empty() || b.expected != threads_ || block.exited == 0) continue;
    if (b.arrived_threads.size() + block.exited < b.expected) continue;
    const auto gone = std::find_if(block.threads.begin(), block.threads.end(), [](const auto& t) { return t->done; });
    report(Kind::kDivergentBarrier,
           std::string(b.what) + " of block " + std::to_string(block.id) + " is for " + std::to_string(threads_) +
               " threads, of which " + std::to_string(block.exited) + (block.exited == 1 ? " has" : " have") +
               " exited; the first is " + thread_text(**gone),
           b.first_at, b.arrived_threads[0]);
    for (const auto& t : block.threads) {  // as if they had come, so that one report is enough
      if (t->done) b.arrived.add({block.id, t->index, t->clock, t->knows}, *t);
    }
    finish_barrier(b);
  }
}

Cluster& Launch::cluster_of(const Block& block) {
  return **std::find_if(clusters_.begin(), clusters_.end(),
                        [&](const auto& c) { return c->blocks[0]->cluster == block.cluster; });
}

void Launch::cluster_arrive(Pc pc) {
  Thread& t = *running_;
  Barrier& b = cluster_of(*t.block).barrier;
  if (t.cluster_arrived) {
    report(Kind::kDivergentBarrier, thread_text(t) + " arrives at the cluster's barrier twice without a wait between",
           pc, &t);
    give_up();
  }
  t.cluster_arrived = true;
  t.cluster_arrival = b.generation;
  barrier_arrive(b, pc);
}

void Launch::cluster_wait(Pc pc) {
  Thread& t = *running_;
  if (!t.cluster_arrived) {
    report(Kind::kDivergentBarrier, thread_text(t) + " waits at the cluster's barrier without having arrived", pc, &t);
    give_up();
  }
  t.cluster_arrived = false;
  barrier_wait(cluster_of(*t.block).barrier, t.cluster_arrival, "the cluster's barrier", pc);
}

std::uint64_t Launch::grid_arrive(Pc pc) {
  if (!spec_.cooperative) {
    report(Kind::kLaunch, "a grid barrier in a launch that is not cooperative: its blocks need not run at once", pc,
           running_);
    give_up();
  }
  const std::uint64_t generation = grid_.generation;
  barrier_arrive(grid_, pc);
  return generation;
}

void Launch::grid_wait(std::uint64_t arrival, Pc pc) { barrier_wait(grid_, arrival, "the grid barrier", pc); }

// ---- Warps ----------------------------------------------------------------------------------------------------------

void Launch::warp_meet(const char* what, unsigned mask, void* payload, void (*complete)(void* const*, unsigned),
                       bool orders_memory, Pc pc) {
  Thread& t = *running_;
  const unsigned lane = t.lane();
  if ((mask >> lane & 1) == 0) {
    report(Kind::kWarp,
           thread_text(t) + ", lane " + std::to_string(lane) + ", calls " + what + " with a mask of " +
               lanes_text(mask) + ", in which it is not",
           pc, &t);
    give_up();
  }
  std::vector<Meet>& meets = t.block->meets[t.warp()];
  auto meet = std::find_if(meets.begin(), meets.end(), [&](const Meet& m) { return m.mask == mask; });
  if (meet == meets.end()) {
    meets.push_back({what, mask, complete, orders_memory, 0, {}});
    meet = meets.end() - 1;
  } else if (std::strcmp(meet->what, what) != 0) {
    const unsigned first = static_cast<unsigned>(std::countr_zero(meet->arrived));
    report(Kind::kWarp,
           "lanes of a warp meet at different operations: " + thread_text(t) + " is at " + what + ", " +
               lanes_text(meet->arrived) + " at " + meet->what,
           pc, &t, meet->at[first]);
    give_up();
  }
  meet->arrived |= 1u << lane;
  meet->payloads[lane] = payload;
  meet->threads[lane] = &t;
  meet->at[lane] = pc;
  if (meet->orders_memory) meet->met.add(meeting(), t);
  settle_meet(*t.block, t.warp(), mask);
  if (std::any_of(meets.begin(), meets.end(), [&](const Meet& m) { return m.mask == mask; })) wait(what, pc);
}

void Launch::settle_meet(Block& block, unsigned warp, unsigned mask) {
  std::vector<Meet>& meets = block.meets[warp];
  const auto meet = std::find_if(meets.begin(), meets.end(), [&](const Meet& m) { return m.mask == mask; });
  if (meet == meets.end() || meet->arrived == 0) return;
  unsigned gone = 0;
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    const std::uint32_t index = warp * kWarpSize + lane;
    if ((mask >> lane & 1) != 0 && (index >= threads_ || block.threads[index]->done)) gone |= 1u << lane;
  }
  if ((meet->arrived | gone) != mask) return;
  Meet m = std::move(*meet);
  meets.erase(meet);
  if ((gone & ~m.arrived) != 0) {
    const unsigned first = static_cast<unsigned>(std::countr_zero(m.arrived));
    report(Kind::kWarp,
           thread_text(*m.threads[first]) + ": " + m.what + " by " + lanes_text(m.mask) + " waits for " +
               lanes_text(gone & ~m.arrived) +
               ((warp + 1) * kWarpSize > threads_ ? ": beyond the block's last thread" : ": exited already"),
           m.at[first], m.threads[first]);
  }
  if (m.complete != nullptr) m.complete(m.payloads, m.arrived);
  const Passed passed = m.met.join(slots_);
  ++progress_;
  for (Thread* t : m.threads) {
    if (t == nullptr) continue;
    take(*t, passed);
    if (t != running_) wake(t);
  }
}

// ---- Fences and atomics ---------------------------------------------------------------------------------------------

void Launch::fence(Scope scope) {
  Thread& t = *running_;
  KnowledgePtr published = Knowledge::join({meeting()}, slots_);
  if (scope == Scope::kGpu) t.fenced_gpu = published;
  t.fenced_block = std::move(published);
  if (scope == Scope::kGpu) t.knows = Knowledge::join(t.knows, t.seen_gpu);
  t.knows = Knowledge::join(t.knows, t.seen_block);
}

std::uint64_t Launch::atomic(std::uintptr_t a, std::size_t n, MemoryOrder order,
                             std::uint64_t (*apply)(std::uint64_t, const void*), const void* context, Pc pc, Op read) {
  Thread& t = *running_;
  if (schedule_.order == Order::kRandom && random() % 4 == 0) {  // who comes first is open
    t.ready = true;
    ready_.push_back(&t);
    t.fiber.suspend();
  }
  access(a, n, read, pc, true);
  if (apply != nullptr) access(a, n, Op::kAtomicWrite, pc, true);
  std::uint64_t old = 0;
  std::memcpy(&old, reinterpret_cast<void*>(a), n);
  bool changed = false;
  if (apply != nullptr) {
    const std::uint64_t now = apply(old, context);
    changed = std::memcmp(&now, &old, n) != 0;
    std::memcpy(reinterpret_cast<void*>(a), &now, n);
  }
  Published& p = published_[place(a)];
  const bool same_block = p.block_id == t.block->id;
  if (order == MemoryOrder::kAcquire || order == MemoryOrder::kAcquireRelease)
    t.knows = Knowledge::join(t.knows, p.gpu);
  t.seen_gpu = Knowledge::join(t.seen_gpu, p.gpu);
  t.seen_block = Knowledge::join(t.seen_block, same_block ? Knowledge::join(p.block, p.gpu) : p.gpu);
  if (apply != nullptr) {
    KnowledgePtr own = t.fenced_gpu;
    if (order == MemoryOrder::kRelease || order == MemoryOrder::kAcquireRelease)
      own = Knowledge::join({meeting()}, slots_);
    p.gpu = Knowledge::join(p.gpu, own);
    p.block = same_block ? Knowledge::join(p.block, t.fenced_block) : t.fenced_block;
    p.block_id = t.block->id;
  }
  // Where nothing changed it is a poll.
  if (changed) {
    ++progress_;
  } else {
    polled(pc);
  }
  return old;
}

void Launch::atomic_store(std::uintptr_t a, std::uint32_t value, MemoryOrder order, Pc pc) {
  Thread& t = *running_;
  access(a, sizeof value, Op::kAtomicWrite, pc, true);
  std::memcpy(reinterpret_cast<void*>(a), &value, sizeof value);
  ++progress_;
  // Unlike an atomic operation, a store does not pass on what was published before it.
  const bool releases = order == MemoryOrder::kRelease || order == MemoryOrder::kAcquireRelease;
  published_[place(a)] = {releases ? Knowledge::join({meeting()}, slots_) : t.fenced_gpu, t.fenced_block, t.block->id};
}

void Launch::send(std::uintptr_t a, const void* from, std::size_t n, Pc pc) {
  access(a, n, Op::kAtomicWrite, pc, true);
  std::memcpy(reinterpret_cast<void*>(a), from, n);
  ++progress_;
}

void Launch::poll(void* to, std::uintptr_t a, std::size_t n, Pc pc) {
  access(a, n, Op::kPoll, pc, true);
  std::memcpy(to, reinterpret_cast<const void*>(a), n);
  polled(pc);
}

// Like a relaxed atomic load or store. The store itself follows.
void Launch::volatile_access(std::uintptr_t a, std::size_t n, bool write, Pc pc) {
  Thread& t = *running_;
  access(a, n, write ? Op::kAtomicWrite : Op::kAtomicRead, pc, true);
  if (t.fiber.owns(a)) return;
  Published& p = published_[place(a)];
  if (write) {
    ++progress_;
    p = {t.fenced_gpu, t.fenced_block, t.block->id};
    return;
  }
  polled(pc);
  t.seen_gpu = Knowledge::join(t.seen_gpu, p.gpu);
  t.seen_block = Knowledge::join(t.seen_block, p.block_id == t.block->id ? Knowledge::join(p.block, p.gpu) : p.gpu);
}

void* Launch::map_shared(std::uintptr_t a, unsigned rank, Pc pc) {
  Thread& t = *running_;
  if (rank >= spec_.cluster) {
    report(Kind::kOutOfBounds,
           "shared memory of block " + std::to_string(rank) + " of a cluster of " + std::to_string(spec_.cluster), pc,
           &t);
    give_up();
  }
  const std::uint32_t id = t.block->cluster * spec_.cluster + rank;
  (void)find(a);  // so that a static variable is known which this launch has not touched yet
  for (const auto& cluster : clusters_) {
    if (cluster->blocks[0]->cluster != t.block->cluster) continue;
    Block& to = *cluster->blocks[rank];
    if (&to == t.block) return reinterpret_cast<void*>(a);
    if (t.block->shared->near(a)) return reinterpret_cast<void*>(to.shared->begin() + (a - t.block->shared->begin()));
    for (std::size_t i = 0; i < statics_.size(); ++i) {
      if (a - statics_[i].address >= statics_[i].bytes) continue;
      return reinterpret_cast<void*>(static_of(to, i).begin() + (a - statics_[i].address));
    }
  }
  report(Kind::kOutOfBounds,
         "an address that is not in the block's shared memory has no place in block " + std::to_string(id), pc, &t);
  give_up();
}

// ---- Static shared memory -------------------------------------------------------------------------------------------
// A __shared__ variable has one address. Each block's contents lie in a region of its own; those of the block that runs
// lie at the variable, whose states are then looked up in the block's region.

Region& Launch::static_of(Block& block, std::size_t i) {
  if (block.statics.size() <= i) block.statics.resize(i + 1);
  if (block.statics[i] == nullptr) {
    block.statics[i] =
        std::make_unique<Region>("__shared__ " + statics_[i].name, statics_[i].bytes, &block, statics_[i].address % 16);
    block.statics[i]->forget_touches(number_);
  }
  return *block.statics[i];
}

Region* Launch::find_static(std::uintptr_t a) {
  Block& block = *running_->block;
  for (std::size_t i = 0; i < statics_.size(); ++i) {
    if (a - statics_[i].address < statics_[i].bytes) return &live_static(block, i);
  }
  for (const auto& variable : variables_) {
    if (variable->has(a)) return variable.get();
  }
  Symbol symbol;
  if (!find_variable(a, &symbol) || !symbol.writable) return nullptr;
  // The first time in this launch.
  if (!symbol.shared) {
    variables_.push_back(std::make_unique<Region>("__device__ " + symbol.name, reinterpret_cast<void*>(symbol.address),
                                                  symbol.bytes, nullptr, true));
    variables_.back()->forget_touches(number_);
    return variables_.back().get();
  }
  statics_.push_back({symbol.name, symbol.address, symbol.bytes});
  statics_of_ = &block;
  Region& r = live_static(block, statics_.size() - 1);
  r.poison();
  return &r;
}

std::uintptr_t Launch::place(std::uintptr_t a) {
  for (std::size_t i = 0; i < statics_.size(); ++i) {
    const std::uintptr_t offset = a - statics_[i].address;
    if (offset < statics_[i].bytes) return static_of(*running_->block, i).begin() + offset;
  }
  return a;
}

Region& Launch::live_static(Block& block, std::size_t i) {
  const StaticShared& s = statics_[i];
  if (s.live == nullptr) {
    statics_[i].live =
        std::make_shared<Region>("__shared__ " + s.name, reinterpret_cast<void*>(s.address), s.bytes, &block);
    statics_[i].live->forget_touches(number_);
  }
  return *statics_[i].live;
}

void Launch::switch_statics(Block* to) {
  if (statics_.empty() || statics_of_ == to) return;
  for (std::size_t i = 0; i < statics_.size(); ++i) {
    if (statics_of_ != nullptr) static_of(*statics_of_, i).take_contents(live_static(*statics_of_, i));
    const bool had = to->statics.size() > i && to->statics[i] != nullptr;
    Region& live = live_static(*to, i);
    if (had) {
      live.take_contents(*to->statics[i]);
    } else {
      live.poison();
    }
    live.set_block(to);
  }
  statics_of_ = to;
}

}  // namespace strop::emu

// Blocks and threads of a launch: who runs next, and what happens where nobody can.
#include "emu/launch.h"

#include <algorithm>
#include <cstring>

#include "emu/counter.h"

namespace strop::emu {
namespace {

thread_local Launch* tls_launch = nullptr;
thread_local Stacks tls_stacks;
// Device memory and its states are the process's: launches of several host threads take turns.
std::recursive_mutex device_mutex;

}  // namespace

Launch* Launch::current() { return tls_launch; }

bool Cluster::done() const {
  return std::all_of(blocks.begin(), blocks.end(), [](const auto& b) { return b->done(); });
}

Launch::Launch(const LaunchSpec& spec, const Schedule& schedule, std::uint32_t number)
    : kernel_name(symbol_name(spec.kernel)),
      spec_(spec),
      schedule_(schedule),
      number_(number),
      threads_(spec.block.x * spec.block.y * spec.block.z),
      blocks_(spec.grid.x * spec.grid.y * spec.grid.z),
      slots_(threads_ + 1),
      random_(schedule.seed * 0x9e3779b97f4a7c15ull + 1),
      stacks_(tls_stacks) {
  for (std::uint32_t c = blocks_ / spec.cluster; c-- > 0;) to_start_.push_back(c);
  if (schedule.order == Order::kReverse) std::reverse(to_start_.begin(), to_start_.end());
  if (schedule.order == Order::kRandom) {
    for (std::size_t i = to_start_.size(); i > 1; --i) std::swap(to_start_[i - 1], to_start_[random() % i]);
    if (blocks_ > 1 && schedule.seed % 2 == 0) slow_ = static_cast<std::uint32_t>(random() % blocks_);
  }
  grid_.what = "the grid barrier";
  grid_.expected = blocks_ * threads_;
  if (settings().counting) counter_ = std::make_unique<Counter>();
}

Launch::~Launch() = default;

std::uint64_t Launch::random() {  // splitmix64
  std::uint64_t z = random_ += 0x9e3779b97f4a7c15ull;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ z >> 27) * 0x94d049bb133111ebull;
  return z ^ z >> 31;
}

Dim3 Launch::position(std::uint32_t linear, const Dim3& size) const {
  return {linear % size.x, linear / size.x % size.y, linear / size.x / size.y};
}

void Launch::enter(void* thread) {
  (void)thread;
  Launch& l = *tls_launch;
  l.in_kernel_ = true;
  l.spec_.invoke(l.spec_.arguments);
  l.in_kernel_ = false;
}

void Launch::start_cluster() {
  const std::uint32_t id = to_start_.back();
  to_start_.pop_back();
  auto cluster = std::make_unique<Cluster>();
  cluster->barrier.what = "the cluster's barrier";
  cluster->barrier.expected = spec_.cluster * threads_;
  for (std::uint32_t rank = 0; rank < spec_.cluster; ++rank) {
    auto block = std::make_unique<Block>();
    block->id = id * spec_.cluster + rank;
    block->cluster = id;
    block->at = position(block->id, spec_.grid);
    block->shared = std::make_unique<Region>("shared memory", spec_.shared_bytes, block.get());
    block->shared->forget_touches(number_);
    block->meets.resize((threads_ + kWarpSize - 1) / kWarpSize);
    for (std::uint32_t i = 0; i < threads_; ++i) {
      auto t = std::make_unique<Thread>();
      t->block = block.get();
      t->index = i;
      t->at = position(i, spec_.block);
      t->fiber.start(stacks_.take(), &Launch::enter, t.get());
      block->threads.push_back(std::move(t));
    }
    cluster->blocks.push_back(std::move(block));
  }
  resident_ += spec_.cluster;
  std::vector<Thread*> started;
  for (const auto& block : cluster->blocks) {
    for (const auto& t : block->threads) started.push_back(t.get());
  }
  if (schedule_.order == Order::kReverse) std::reverse(started.begin(), started.end());
  for (Thread* t : started) ready_.push_back(t);
  clusters_.push_back(std::move(cluster));
}

void Launch::run() {
  tls_launch = this;
  if (spec_.cooperative) {
    while (!to_start_.empty()) start_cluster();
  }
  while (!over_) {
    if (ready_.empty()) {
      if (resident_ == 0) {
        if (to_start_.empty()) break;
        start_cluster();
      } else if (!unstall()) {
        report_deadlock();
        break;
      }
      continue;
    }
    if (schedule_.order == Order::kRandom) {
      // Fair turns never let one block fall far behind the others. Where these only poll for it, it has its turns.
      int tries = 8;
      do {
        std::swap(ready_.front(), ready_[random() % ready_.size()]);
      } while (ready_.front()->block->id == slow_ && spins_ < 256 && --tries > 0);
      if (!bulk_loads_.empty() && random() % 8 == 0) land_copy();
    }
    Thread* const t = ready_.front();
    ready_.pop_front();
    t->ready = false;
    switch_statics(t->block);
    running_ = t;
    ++switches_;
    t->fiber.resume();
    running_ = nullptr, in_kernel_ = false;
    if (t->fiber.done() && t->fiber.overflown()) {
      report(Kind::kOutOfBounds,
             thread_text(*t) + " used more than " + std::to_string(Stacks::kBytes) + " bytes of stack", 0, t);
      break;
    }
    if (t->fiber.done() && !over_) end_thread(*t);
  }
  for (const auto& cluster : clusters_) {  // where it was given up
    for (const auto& block : cluster->blocks) {
      for (const auto& t : block->threads) {
        if (!t->done) stacks_.give_back(t->fiber.stack());
      }
    }
  }
  if (!over_ && found_.empty()) {
    for (const NamedView& named : settings().names) {
      if (named.access != Access::kOutput || named.view.data == nullptr || named.view.numel() == 0) continue;
      Region* r = heap().find(reinterpret_cast<std::uintptr_t>(named.view.data));
      if (r == nullptr) continue;
      if (const std::string missing = r->unwritten(named); !missing.empty())
        report(Kind::kUnwritten, missing, 0, nullptr);
    }
  }
  finish_counts();
  publish_reports();
  tls_launch = nullptr;
}

void Launch::end_thread(Thread& t) {
  t.done = true;
  ++progress_;
  stacks_.give_back(t.fiber.stack());
  Block& block = *t.block;
  ++block.exited;
  while (!t.copies.empty()) {  // bulk loads may outlive their thread, but not the block
    const Copy& c = t.copies.front();
    if (c.read.empty() && !c.reported) {
      report(Kind::kCopyInFlight, thread_text(t) + " exits while an asynchronous copy that it started is on its way",
             c.at, nullptr);
    }
    land(t.copies, 0);
  }
  const std::vector<Meet> meets = block.meets[t.warp()];  // those that end leave the original
  for (const Meet& m : meets) {
    if ((m.mask >> t.lane() & 1) != 0 && (m.arrived >> t.lane() & 1) == 0) settle_meet(block, t.warp(), m.mask);
  }
  check_left_barriers(block);
  Cluster& cluster = cluster_of(block);
  if (t.cluster_arrived && t.cluster_arrival == cluster.barrier.generation) {
    ++cluster.barrier.leaving;
  } else if (--cluster.barrier.expected == cluster.barrier.arrived_threads.size() && cluster.barrier.expected > 0) {
    finish_barrier(cluster.barrier);
  }
  if (!block.done()) return;
  check_left_shared(block);
  for (const Copy& c : bulk_loads_) {
    if (c.by->block != &block || c.reported) continue;
    report(Kind::kCopyInFlight,
           "block " + std::to_string(block.id) + " exits while a bulk load of " + thread_text(*c.by) + " is on its way",
           c.at, nullptr);
    break;
  }
  std::erase_if(bulk_loads_, [&](const Copy& c) { return c.by->block == &block; });
  std::erase_if(mbarriers_, [&](const auto& m) {
    return block.shared->has(m.first) || std::any_of(block.statics.begin(), block.statics.end(),
                                                     [&](const auto& s) { return s != nullptr && s->has(m.first); });
  });
  if (statics_of_ == &block) statics_of_ = nullptr;
  --resident_;
  if (!cluster.done()) return;
  if (last_region_ != nullptr && last_region_->block() != nullptr) last_region_ = nullptr;
  std::erase_if(clusters_, [&](const auto& c) { return c.get() == &cluster; });
}

void Launch::check_left_shared(Block& block) {
  if (spec_.cluster == 1) return;
  Gathered exited;
  for (const auto& t : block.threads) exited.known.push_back({block.id, t->index, t->clock, t->knows});
  Thread all;  // that knows what any of the block's threads did
  all.block = &block, all.index = ~0u;
  all.knows = exited.join(slots_).known;
  const auto check = [&](Region& r) {
    r.each_touch([&](std::uintptr_t a, const Touch& touch) {
      if (touch.thread / slots_ == block.id || knows(all, touch)) return;
      report(Kind::kExitedBlock,
             r.describe(a) + " is accessed by " + thread_text(touch.thread / slots_, touch.thread % slots_) +
                 ": nothing keeps block " + std::to_string(block.id) + ", whose memory it is, from exiting before",
             program_start() + touch.pc, nullptr);
    });
  };
  check(*block.shared);
  for (std::size_t i = 0; i < statics_.size() && statics_of_ == &block; ++i) check(live_static(block, i));
}

void Launch::wake(Thread* t) {
  if (t->ready || t->done) return;
  t->ready = true;
  t->waits_for = nullptr;
  ready_.push_back(t);
}

void Launch::wait(const char* what, Pc pc, std::string how) {
  Thread& t = *running_;
  t.waits_for = what, t.waits_at = pc, t.waits_how = std::move(how);
  t.fiber.suspend();
}

void Launch::give_up() {
  over_ = true;
  for (;;) running_->fiber.suspend();
}

void Launch::polled(Pc pc) {
  Thread& t = *running_;
  t.waits_for = "memory to change", t.waits_at = pc, t.waits_how.clear();
  if (progress_ != stalled_at_) stalled_at_ = progress_, spins_ = 0;
  // Nobody has changed anything while everybody polled several times over.
  if (++spins_ > 64 * ready_.size() + 4096) {
    const bool moved = unstall();
    spins_ = 0;
    if (!moved) {
      report_deadlock();
      give_up();
    }
  }
  t.ready = true;
  ready_.push_back(&t);
  t.fiber.suspend();
  t.waits_for = nullptr;
}

bool Launch::unstall() {
  if (land_copy()) return true;
  if (to_start_.empty() || resident_ + spec_.cluster > spec_.resident) return false;
  start_cluster();
  return true;
}

void run_launch(const LaunchSpec& spec) {
  const std::lock_guard lock(device_mutex);
  Settings& s = settings();
  ++s.launches;
  Schedule schedule = s.replay ? s.replayed : s.schedule;
  if (!s.replay) schedule.seed += s.drawn++;
  s.replay = false;
  for (const auto& region : heap().regions()) region->forget_touches(s.launches);
  for (const NamedView& named : s.names) {
    Region* r = heap().find(reinterpret_cast<std::uintptr_t>(named.view.data));
    if (r != nullptr) r->add_view(named);
  }
  Launch(spec, schedule, s.launches).run();
  for (const auto& region : heap().regions()) region->remove_views();
}

std::unique_lock<std::recursive_mutex> lock_device() { return std::unique_lock(device_mutex); }

}  // namespace strop::emu

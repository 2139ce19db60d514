// Asynchronous copies and the barriers in shared memory that count their bytes.
//
// A copy's bytes arrive as late as they may: cp.async and bulk stores when their group is waited for, a bulk load once
// somebody asks for the end of its mbarrier's phase: where nobody could go on otherwise or, with a random schedule, at
// some time before. What is known of its accesses changes then: they are those of the thread that waits, now, and of
// nobody for a bulk load, which only the mbarrier makes known.
#include <algorithm>
#include <cstring>

#include "emu/launch.h"

namespace strop::emu {
namespace {

const char* name_of(CopyKind kind) {
  return kind == CopyKind::kAsync ? "cp.async" : kind == CopyKind::kBulkLoad ? "a bulk load" : "a bulk store";
}

std::string state_of(const MBarrier& b) {
  return "in phase " + std::to_string(b.phase) + " " + std::to_string(b.count - b.pending) + " of " +
         std::to_string(b.count) + " arrivals have come" +
         (b.bytes != 0 ? ", and " + std::to_string(b.bytes) + " bytes of copies have not" : "");
}

}  // namespace

void Launch::copy(CopyKind kind, std::uintptr_t to, std::uintptr_t from, std::size_t bytes, std::size_t from_bytes,
                  std::uintptr_t barrier, Pc pc) {
  Thread& t = *running_;
  const std::size_t unit = kind == CopyKind::kAsync ? bytes : 16;
  if (bytes % unit != 0 || to % unit != 0 || from % unit != 0) {
    report(Kind::kMisaligned,
           std::string(name_of(kind)) + " of " + std::to_string(bytes) +
               " bytes: both addresses and the size must be multiples of " + std::to_string(unit),
           pc, &t);
    give_up();
  }
  if (from_bytes > bytes) {
    report(
        Kind::kOutOfBounds,
        std::string(name_of(kind)) + " of " + std::to_string(bytes) + " bytes that reads " + std::to_string(from_bytes),
        pc, &t);
    give_up();
  }
  // Both ends are touched now, by this thread; nobody else may rely on it before the copy has been waited for.
  for (std::size_t i = 0; i < bytes; i += 16) {
    const std::size_t n = std::min<std::size_t>(16, bytes - i);
    if (i < from_bytes) access(from + i, std::min(n, from_bytes - i), Op::kRead, pc, false);
    access(to + i, n, Op::kCopy, pc, false);
  }
  // Null: a variable of the program, or the thread's own stack; from where nothing is read, anything.
  Region* const to_region = find(to);
  Region* const from_region = from_bytes > 0 ? find(from) : nullptr;
  Region* const shared = kind == CopyKind::kBulkStore ? from_region : to_region;
  if (bytes > 0 && (shared == nullptr || shared->block() != t.block || t.fiber.owns(from) || t.fiber.owns(to))) {
    report(Kind::kOutOfBounds,
           std::string(name_of(kind)) +
               " that is not between global memory and the block's shared "
               "memory",
           pc, &t);
    give_up();
  }
  const std::uint64_t group = kind == CopyKind::kBulkLoad ? 0 : t.groups[kind == CopyKind::kBulkStore];
  Copy c{kind, &t, t.clock++, to, from, bytes, from_bytes, group, barrier != 0 ? place(barrier) : 0, pc};
  if (kind == CopyKind::kBulkLoad) {
    if (find_mbarrier(barrier, pc) == nullptr) give_up();
  }
  if (to_region != nullptr) to_region->set(to, bytes, kArriving, 0);
  if (from_region != nullptr) from_region->set(from, from_bytes, kLeaving, 0);
  (kind == CopyKind::kBulkLoad ? bulk_loads_ : t.copies).push_back(c);
}

void Launch::land(std::vector<Copy>& copies, std::size_t i) {
  const Copy c = std::move(copies[i]);
  copies.erase(copies.begin() + static_cast<std::ptrdiff_t>(i));
  ++progress_;
  Thread* const before = running_;
  Block* const live = statics_of_;
  running_ = c.by;  // addresses are looked up as its own, and static variables have its block's contents
  switch_statics(c.by->block);
  const bool load = c.kind == CopyKind::kBulkLoad;
  const std::uint32_t by = load ? c.by->block->id * slots_ + threads_ : slot(*c.by);
  const Clock at = load ? ++c.by->block->loaded : c.by->clock;
  if (Region* r = find(c.from); r != nullptr && c.read.empty()) {
    r->set(c.from, c.from_bytes, 0, kLeaving);
    r->retouch(c.from, c.from_bytes, slot(*c.by), c.clock, by, at);
  }
  if (Region* r = find(c.to); r != nullptr) {
    r->set(c.to, c.bytes, kWritten | kChanged, kArriving);
    r->retouch(c.to, c.bytes, slot(*c.by), c.clock, by, at);
  }
  std::memcpy(reinterpret_cast<void*>(c.to), c.read.empty() ? reinterpret_cast<const void*>(c.from) : c.read.data(),
              c.from_bytes);
  std::memset(reinterpret_cast<void*>(c.to + c.from_bytes), 0, c.bytes - c.from_bytes);
  running_ = before;
  if (live != nullptr) switch_statics(live);
  if (!load) return;
  MBarrier& b = mbarriers_[c.barrier];
  b.bytes -= static_cast<std::int64_t>(c.bytes);
  b.arrived.push_back({c.by->block->id, threads_, at, nullptr});
  settle(c.barrier, b);
}

bool Launch::land_copy() {
  std::vector<std::size_t> loads;
  for (std::size_t i = 0; i < bulk_loads_.size(); ++i) {
    if (mbarriers_[bulk_loads_[i].barrier].asked) loads.push_back(i);
  }
  if (loads.empty()) return false;
  land(bulk_loads_, schedule_.order == Order::kRandom ? loads[random() % loads.size()] : loads.front());
  return true;
}

void Launch::copies_commit(CopyKind kind) { ++running_->groups[kind == CopyKind::kBulkStore]; }

void Launch::copies_wait(CopyKind kind, std::uint64_t newest, bool sources_only) {
  Thread& t = *running_;
  const std::uint64_t committed = t.groups[kind == CopyKind::kBulkStore];
  const std::uint64_t done = committed > newest ? committed - newest : 0;  // groups below this one
  for (std::size_t i = 0; i < t.copies.size();) {
    Copy& c = t.copies[i];
    if (c.kind != kind || c.group >= done) {
      ++i;
    } else if (sources_only) {
      if (c.read.empty()) {  // no later: the source may be written again
        const auto* from = reinterpret_cast<const unsigned char*>(c.from);
        c.read.assign(from, from + c.from_bytes);
        if (Region* r = find(c.from); r != nullptr) {
          r->set(c.from, c.from_bytes, 0, kLeaving);
          r->retouch(c.from, c.from_bytes, slot(t), c.clock, slot(t), t.clock);
        }
      }
      ++i;
    } else {
      land(t.copies, i);
    }
  }
}

// ---- mbarriers ------------------------------------------------------------------------------------------------------

MBarrier* Launch::find_mbarrier(std::uintptr_t a, Pc pc) {
  const auto found = mbarriers_.find(place(a));
  if (found != mbarriers_.end()) return &found->second;
  Region* r = find(a);
  report(Kind::kBarrierMisuse,
         "an mbarrier that nobody has initialised, at " +
             (r != nullptr ? r->describe(a) : std::string("an unknown address")),
         pc, running_);
  return nullptr;
}

void Launch::mbarrier_init(std::uintptr_t a, std::uint32_t count, Pc pc) {
  access(a, 8, Op::kWrite, pc, true);
  std::memset(reinterpret_cast<void*>(a), 0, 8);
  MBarrier b;
  b.count = b.pending = count;
  mbarriers_[place(a)] = b;
}

void Launch::mbarrier_arrive(std::uintptr_t a, std::uint32_t count, std::int64_t bytes, Pc pc) {
  MBarrier* b = find_mbarrier(a, pc);
  if (b == nullptr) give_up();
  access(a, 8, Op::kAtomicWrite, pc, true);
  if (count > b->pending) {
    report(Kind::kBarrierMisuse, "an arrival too many at the mbarrier at " + find(a)->describe(a) + ": " + state_of(*b),
           pc, running_);
    give_up();
  }
  if (bytes > 0 || b->pending == b->count) b->at = pc;
  b->bytes += bytes;
  b->pending -= count;
  if (count > 0) b->arrived.push_back(meeting());
  settle(place(a), *b);
}

void Launch::settle(std::uintptr_t barrier, MBarrier& b) {
  ++progress_;
  if (b.pending > 0 || b.bytes != 0) return;
  for (Copy& c : bulk_loads_) {
    if (c.barrier != barrier || c.reported) continue;
    report(Kind::kBarrierMisuse,
           "phase " + std::to_string(b.phase) +
               " of an mbarrier expects too few bytes: it ends while a "
               "bulk load of " +
               std::to_string(c.bytes) + " more is on its way",
           b.at, nullptr, c.at);
    c.reported = true;
  }
  b.released = Knowledge::join(b.released, Knowledge::join(b.arrived, slots_));
  b.arrived.clear();
  b.pending = b.count, b.asked = false, b.at = 0;
  ++b.phase;
  for (Thread* t : b.waiting) wake(t);
  b.waiting.clear();
}

bool Launch::mbarrier_test(std::uintptr_t a, unsigned parity, Pc pc) {
  MBarrier* b = find_mbarrier(a, pc);
  if (b == nullptr) give_up();
  access(a, 8, Op::kAtomicRead, pc, true);
  if ((b->phase & 1) == (parity & 1)) {
    b->asked = true;
    polled(pc);
    return false;
  }
  running_->knows = Knowledge::join(running_->knows, b->released);
  return true;
}

void Launch::mbarrier_wait(std::uintptr_t a, unsigned parity, Pc pc) {
  MBarrier* b = find_mbarrier(a, pc);
  if (b == nullptr) give_up();
  access(a, 8, Op::kAtomicRead, pc, true);
  while ((b->phase & 1) == (parity & 1)) {
    b->asked = true;
    b->waiting.push_back(running_);
    wait("an mbarrier", pc, state_of(*b));
  }
  running_->knows = Knowledge::join(running_->knows, b->released);
}

}  // namespace strop::emu

// One access to memory: is it there, may it be made, was it written, and does anything order it after the others?
#include <algorithm>
#include <bit>
#include <cstring>

#include "emu/counter.h"
#include "emu/launch.h"

namespace strop::emu {
namespace {

bool writes(Op op) { return op == Op::kWrite || op == Op::kAtomicWrite || op == Op::kCopy; }
bool is_atomic(Op op) { return op == Op::kAtomicRead || op == Op::kAtomicWrite || op == Op::kPoll; }
bool conflict(Op a, Op b) { return (writes(a) || writes(b)) && !(is_atomic(a) && is_atomic(b)); }
const char* name_of(Op op) {
  switch (op) {
    case Op::kWrite:
      return "a write";
    case Op::kReadOnly:
      return "a read through the read-only cache";
    case Op::kAtomicRead:
      return "an atomic read";
    case Op::kAtomicWrite:
      return "an atomic operation";
    case Op::kPoll:
      return "a poll";
    case Op::kCopy:
      return "an asynchronous write";
    default:
      return "a read";
  }
}
// "a read of", "a write to"
std::string a_of(Op op) {
  return std::string(name_of(op)) + (op == Op::kWrite || op == Op::kCopy ? " to "
                                     : op == Op::kAtomicWrite            ? " on "
                                                                         : " of ");
}

}  // namespace

Region* Launch::find(std::uintptr_t a) {
  Block& block = *running_->block;
  if (block.shared->has(a)) return block.shared.get();
  if (last_region_ != nullptr && last_region_->has(a)) return last_region_;
  if (Region* r = heap().find(a); r != nullptr) {
    if (r->has(a)) last_region_ = r;
    return r;
  }
  if (block.shared->near(a)) return block.shared.get();
  for (const auto& cluster : clusters_) {
    if (cluster->blocks[0]->cluster != block.cluster) continue;
    for (const auto& other : cluster->blocks) {
      if (other->shared->near(a)) return other->shared.get();
      for (const auto& variable : other->statics) {
        if (other.get() != &block && variable != nullptr && variable->has(a)) return variable.get();
      }
    }
  }
  Region* r = find_static(a);
  if (r != nullptr && r->block() == nullptr) last_region_ = r;
  return r;
}

Copy* Launch::copy_at(const Region& r, std::uintptr_t a, bool arriving) {
  const auto in = [&](std::vector<Copy>& copies) -> Copy* {
    for (Copy& c : copies) {
      if (r.block() != nullptr && r.block() != c.by->block) continue;  // another block's static variable
      if (a - (arriving ? c.to : c.from) < (arriving ? c.bytes : c.from_bytes)) return &c;
    }
    return nullptr;
  };
  if (Copy* c = in(bulk_loads_)) return c;
  for (const auto& cluster : clusters_) {
    for (const auto& block : cluster->blocks) {
      for (const auto& t : block->threads) {
        if (Copy* c = in(t->copies)) return c;
      }
    }
  }
  return nullptr;
}

void Launch::access(std::uintptr_t a, std::size_t n, Op op, Pc pc, bool aligned) {
  Thread& t = *running_;
  // Its own stack, and the launch's arguments.
  if (t.fiber.owns(a)) return;
  if (a - reinterpret_cast<std::uintptr_t>(spec_.arguments) < spec_.arguments_bytes && !writes(op)) return;
  Region* r = find(a);
  const auto of_bytes = [&] { return std::string(name_of(op)) + " of " + std::to_string(n) + " bytes"; };
  if (r != nullptr && !r->has(a) && heap().was_freed(a)) r = nullptr;  // it only lies near another buffer
  if (r == nullptr) {
    if (Symbol symbol; find_variable(a, &symbol)) {  // a constant
      if (!writes(op)) return;
      report(Kind::kReadOnly, a_of(op) + symbol.name + ", which is constant", pc, &t);
      give_up();
    }
    std::string where = " that are neither in a device buffer nor in shared memory";
    if (heap().was_freed(a)) where = " in a buffer that was freed";
    if (a < 4096) where = " at a null pointer";
    for (std::size_t i = 0; i < statics_.size(); ++i) {
      if (a - (statics_[i].address - 1024) < statics_[i].bytes + 2048)
        where = ", " + live_static(*t.block, i).describe(a);
    }
    report(Kind::kOutOfBounds, of_bytes() + where, pc, &t);
    give_up();  // the access itself would crash
  }
  if (aligned && a % n != 0 && std::has_single_bit(n)) {
    report(Kind::kMisaligned,
           of_bytes() + " at " + r->describe(a) + ", whose address is " + std::to_string(a % n) +
               " past a multiple of " + std::to_string(n),
           pc, &t);
    give_up();  // this one, too
  }
  if (r->block() != nullptr && r->block()->done()) {
    report(Kind::kExitedBlock,
           a_of(op) + "the shared memory of block " + std::to_string(r->block()->id) + ", which has exited", pc, &t);
  } else if (r->block() != nullptr && r->block() != t.block && (t.knows == nullptr || !t.knows->any(r->block()->id))) {
    report(Kind::kExitedBlock,
           a_of(op) + "the shared memory of block " + std::to_string(r->block()->id) +
               ", which may not have begun: nothing has come from it yet",
           pc, &t);
  }
  if (!check_bytes(*r, a, n, op, pc)) return;
  if (op == Op::kWrite || op == Op::kCopy) ++progress_;
  if (counter_ != nullptr)
    counter_->add(t, t.block->id, t.block->id * ((threads_ + kWarpSize - 1) / kWarpSize) + t.warp(), *r, a, n,
                  writes(op), pc);
  check_race(*r, a, n, op, pc);
}

bool Launch::check_bytes(Region& r, std::uintptr_t a, std::size_t n, Op op, Pc pc) {
  const std::uint8_t needed = writes(op) ? kWritable : op == Op::kPoll ? kReadable : kReadable | kWritten;
  const std::uint8_t bad = writes(op) ? kArriving | kLeaving : op == Op::kReadOnly ? kArriving | kChanged : kArriving;
  for (std::size_t i = 0; i < n; ++i) {
    const std::uintptr_t at = a + i;
    const std::uint8_t s = r.has(at) ? r.state(at) : 0;
    if ((s & needed) == needed && (s & bad) == 0) continue;
    Kind kind = Kind::kOutOfBounds;
    const std::string what = a_of(op) + r.describe(at);
    std::string text;
    Copy* copy = nullptr;
    if ((s & (kReadable | kWritable)) == 0) {
      text = std::string(name_of(op)) + " of " + std::to_string(n) + " bytes, " +
             (i > 0 ? "of which byte " + std::to_string(i) + " is " : "") + r.describe(at);
    } else if (writes(op) && (s & kWritable) == 0) {
      kind = Kind::kReadOnly;
      text = what + ", which is an input";
    } else if ((s & (kArriving | kLeaving) & bad) != 0) {
      kind = Kind::kCopyInFlight;
      copy = copy_at(r, at, (s & kArriving) != 0);
      text = what + ((s & kArriving) != 0 ? ", to which an asynchronous copy is on its way that nobody has waited for"
                                          : ", which an asynchronous copy is still reading");
    } else if (!writes(op) && (s & kWritten) == 0) {
      kind = Kind::kUninitialised;
      text = what + ", which nobody has written";
    } else {
      kind = Kind::kStaleRead;
      text = what + ", which this launch has written";
    }
    report(kind, text, pc, running_, copy != nullptr ? copy->at : 0);
    if (copy != nullptr) copy->reported = true;
    if (kind == Kind::kOutOfBounds && !r.near(at)) give_up();
    if (kind == Kind::kUninitialised) r.set(a, n, kWritten, 0);  // once is enough
    return kind != Kind::kOutOfBounds;
  }
  if (writes(op)) r.set(a, n, kWritten | kChanged | kCountWrite, 0);
  if (counter_ != nullptr && !writes(op)) r.set(a, n, kCountRead, 0);
  return true;
}

bool Launch::knows(const Thread& t, const Touch& touch) const {
  const std::uint32_t block = touch.thread / slots_, index = touch.thread % slots_;
  if (block == t.block->id && index == t.index) return true;
  return t.knows != nullptr && t.knows->of(block, index) >= touch.clock;
}

void Launch::check_race(Region& r, std::uintptr_t a, std::size_t n, Op op, Pc pc) {
  Thread& t = *running_;
  const std::uint32_t self = slot(t);
  for (std::uintptr_t at = a; at < a + n; at = at / 4 * 4 + 4) {
    if (!r.has(at)) return;
    if ((r.state(at) & kWritable) == 0) return;  // an input: nobody writes it
    const std::uintptr_t end = std::min(a + n, at / 4 * 4 + 4);
    const auto bytes = static_cast<std::uint8_t>((1u << (end - at / 4 * 4)) - (1u << at % 4));
    Word& w = r.word(at);
    std::vector<Touch>* more = w.n >= Word::kInline ? &r.overflow(w) : nullptr;
    const auto touch_at = [&](std::uint32_t i) -> Touch& {
      return i < Word::kInline ? w.touches[i] : (*more)[i - Word::kInline];
    };
    for (std::uint32_t i = 0; i < w.n;) {
      Touch& old = touch_at(i);
      bool over = false;
      if ((old.bytes & bytes) != 0) {
        const bool mine = old.thread == self, before = mine || knows(t, old);
        if (!before && conflict(old.op, op)) {
          // Whether the copy is there by now or not: for all that this thread knows it is on its way.
          report(old.op == Op::kCopy ? Kind::kCopyInFlight : Kind::kRace,
                 a_of(op) + r.describe(at) + " by " + thread_text(t) + ", and " + name_of(old.op) + " by " +
                     thread_text(old.thread / slots_, old.thread % slots_) + ", with nothing between that orders them",
                 pc, &t, program_start() + old.pc);
          over = true;
        }
        // What this access follows, and conflicts with whatever the old one would, need not be kept.
        if (op == Op::kWrite || op == Op::kCopy || (before && !is_atomic(op) && !writes(old.op)) ||
            (mine && old.op == op)) {
          old.bytes &= static_cast<std::uint8_t>(~bytes);
          over = old.bytes == 0;
        }
      }
      if (!over) {
        ++i;
        continue;
      }
      old = touch_at(w.n - 1);
      if (w.n > Word::kInline) more->pop_back();
      --w.n;
    }
    if (w.n >= Word::kInline) {
      r.overflow(w).push_back({});
      more = &r.overflow(w);
    }
    touch_at(w.n++) = {self, t.clock, static_cast<std::uint32_t>(pc - program_start()), bytes, op};
  }
}

}  // namespace strop::emu

// The public API of the emulator: strop/emu.h.
#include "strop/emu.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "emu/launch.h"

namespace strop::emu {
namespace {

Schedule schedule_of_environment() {
  Schedule s;
  if (const char* order = std::getenv("STROP_EMU_ORDER"); order != nullptr) {
    if (std::strcmp(order, "forward") == 0) s.order = Order::kForward;
    if (std::strcmp(order, "reverse") == 0) s.order = Order::kReverse;
  }
  if (const char* seed = std::getenv("STROP_EMU_SEED"); seed != nullptr) s.seed = std::strtoull(seed, nullptr, 10);
  return s;
}

}  // namespace

Settings& settings() {
  thread_local Settings settings = [] {
    Settings s;
    s.schedule = schedule_of_environment();
    return s;
  }();
  return settings;
}

const Device& device() { return settings().device; }
void set_device(const Device& device) { settings().device = device; }

void set_schedule(const Schedule& schedule) {
  settings().schedule = schedule;
  settings().drawn = 0;
}
void replay(const Schedule& schedule) {
  settings().replay = true;
  settings().replayed = schedule;
}

Names::Names(std::initializer_list<NamedView> views) : before_(settings().names.size()) {
  for (const NamedView& v : views) {
    if (v.view.data != nullptr) settings().names.push_back(v);
  }
}
Names::~Names() { settings().names.resize(before_); }

const char* kind_name(Kind kind) {
  switch (kind) {
    case Kind::kOutOfBounds:
      return "out of bounds";
    case Kind::kMisaligned:
      return "misaligned";
    case Kind::kUninitialised:
      return "uninitialised";
    case Kind::kReadOnly:
      return "write to an input";
    case Kind::kUnwritten:
      return "unwritten output";
    case Kind::kRace:
      return "race";
    case Kind::kStaleRead:
      return "stale read";
    case Kind::kDivergentBarrier:
      return "divergent barrier";
    case Kind::kWarp:
      return "warp";
    case Kind::kCopyInFlight:
      return "copy in flight";
    case Kind::kBarrierMisuse:
      return "mbarrier";
    case Kind::kExitedBlock:
      return "exited block";
    case Kind::kDeadlock:
      return "deadlock";
    case Kind::kLaunch:
      return "launch";
  }
  return "?";
}

const std::vector<Report>& reports() { return settings().reports; }
void clear_reports() {
  settings().reports.clear();
  settings().failures = 0;
}
void print_reports(bool print) { settings().print = print; }

void set_counting(bool counting) { settings().counting = counting; }
const Counts& counts() { return settings().counts; }

std::string memory_map(int columns) {
  static constexpr char kNames[] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
  std::size_t width = 0;
  for (const auto& line : settings().map) width = std::max(width, line.name.size());
  std::string text;
  for (const auto& line : settings().map) {
    text += line.name + std::string(width - line.name.size() + 2, ' ');
    const std::size_t n = line.words.size();
    const std::size_t shown = std::min<std::size_t>(n, static_cast<std::size_t>(std::max(columns, 1)));
    for (std::size_t c = 0; c < shown; ++c) {
      int who = -1;
      for (std::size_t i = c * n / shown; i < std::max((c + 1) * n / shown, c * n / shown + 1); ++i) {
        const int w = line.words[i];
        if (w == -1) continue;
        who = who == -1 || who == w ? w : -2;
      }
      text += who == -1 ? '.' : who == -2 ? '*' : who < 62 ? kNames[who] : '#';
    }
    text += "\n";
  }
  return text;
}

}  // namespace strop::emu

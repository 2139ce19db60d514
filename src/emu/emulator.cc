// The public API of the emulator: strop/emu.h.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "emu/launch.h"
#include "strop/emu.h"

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

std::vector<Device>& devices() {
  static std::vector<Device> devices(1);
  return devices;
}
void set_devices(const std::vector<Device>& d) {
  if (!d.empty()) devices() = d;
}
const Device& device() { return devices()[static_cast<std::size_t>(settings().device)]; }

void set_schedule(const Schedule& schedule) {
  settings().schedule = schedule;
  settings().drawn = 0;
}
void replay(const Schedule& schedule) {
  settings().replay = true;
  settings().replayed = schedule;
}

Names::Names(std::span<const NamedView> views) : before_(settings().names.size()) {
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
  static constexpr char kBlocks[] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
  std::size_t width = 0;
  for (const MapLine& line : settings().map) width = std::max(width, line.name.size());
  std::string text;
  for (const MapLine& line : settings().map) {
    text += line.name + std::string(width - line.name.size() + 2, ' ');
    const std::size_t n = line.blocks.size();
    const std::size_t shown = std::min<std::size_t>(n, static_cast<std::size_t>(std::max(columns, 1)));
    for (std::size_t c = 0; c < shown; ++c) {
      std::int32_t who = kNobody;
      for (std::size_t i = c * n / shown; i < (c + 1) * n / shown; ++i) {
        const std::int32_t one = line.blocks[i];
        if (one != kNobody) who = who == kNobody || who == one ? one : kSeveral;
      }
      text += who == kNobody ? '.' : who == kSeveral ? '*' : kBlocks[static_cast<std::size_t>(who) % 62];
    }
    text += "\n";
  }
  return text;
}

}  // namespace strop::emu

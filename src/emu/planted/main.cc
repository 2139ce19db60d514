// Runs the planted mistakes: `strop_planted` all of them under several schedules, `strop_planted NAME` one with its
// reports, `strop_planted --list`. On a GPU: `strop_planted_cuda NAME broken|twin [--dangerous]`.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <set>
#include <string>
#include <tuple>

#include "emu/planted/planted.h"

namespace strop::planted {

std::vector<Plant>& plants() {
  static std::vector<Plant> plants;
  return plants;
}

namespace {

const char* tool_name(Tool tool) {
  switch (tool) {
    case Tool::kMemcheck:
      return "memcheck";
    case Tool::kInitcheck:
      return "initcheck";
    case Tool::kRacecheck:
      return "racecheck";
    case Tool::kSynccheck:
      return "synccheck";
    case Tool::kNone:
      break;
  }
  return "none";
}

int list() {
  for (const Plant& p : plants()) {
    std::printf("%s\n    %s\n    compute-sanitizer: %s%s\n", p.name, p.mistake, tool_name(p.tool),
                p.hangs ? "; may hang a GPU" : "");
  }
  return 0;
}

const Plant* find(const char* name) {
  const auto found =
      std::find_if(plants().begin(), plants().end(), [&](const Plant& p) { return std::strcmp(p.name, name) == 0; });
  if (found != plants().end()) return &*found;
  std::fprintf(stderr, "planted: there is no %s; --list names them\n", name);
  return nullptr;
}

#if STROP_EMULATED

// "bounds.cu:30, 32"
using Lines = std::set<std::pair<std::string, int>>;
std::string text(const Lines& lines) {
  std::string all, last;
  for (const auto& [file, line] : lines) {
    if (file != last) all += (all.empty() ? "" : ", ") + file + ":" + std::to_string(line);
    if (file == last) all += ", " + std::to_string(line);
    last = file;
  }
  return all.empty() ? "no line" : all;
}

// Paths may be relative to where the compiler ran (ccache makes them so): only their ends count.
std::string file_name(const std::string& path) { return path.substr(path.rfind('/') + 1); }

// The lines of the plant's source that end in its marker. One marker may name several plants.
Lines marked(const Plant& p) {
  Lines lines;
  std::ifstream file(STROP_PLANTED_FOLDER "/" + file_name(p.file));
  std::string text;
  for (int line = 1; std::getline(file, text); ++line) {
    const auto marker = text.find("planted: ");
    if (marker == std::string::npos) continue;
    const std::string names = text.substr(marker + 8) + ",", name = p.name;
    if (names.find(' ' + name + ',') != std::string::npos) lines.emplace(file_name(p.file), line);
  }
  return lines;
}

Lines named(const emu::Report& r) {
  Lines lines;
  for (const auto* frames : {&r.where, &r.other}) {
    if (!frames->empty()) lines.emplace(file_name((*frames)[0].file), (*frames)[0].line);
  }
  return lines;
}

struct Outcome {
  std::string missed, false_alarm;  // why; empty where all is well
  std::set<std::string> extra;      // what else was reported of the broken kernel
};

std::string text(const emu::Report& r) { return std::string(emu::kind_name(r.kind)) + " at " + text(named(r)); }

Outcome run(const Plant& p, const Lines& expected) {
  Outcome o;
  std::vector<emu::Schedule> schedules = {{emu::Order::kForward, 1}, {emu::Order::kReverse, 1}};
  for (std::uint64_t seed = 1; seed <= 5; ++seed) schedules.push_back({emu::Order::kRandom, seed});
  for (const emu::Schedule& s : schedules) {
    const std::string order = s.order == emu::Order::kForward   ? "forward"
                              : s.order == emu::Order::kReverse ? "reverse"
                                                                : "seed " + std::to_string(s.seed);
    emu::set_schedule(s);
    emu::clear_reports();
    (void)p.broken();
    bool caught = false;
    for (const emu::Report& r : emu::reports()) {
      const bool right = r.kind == p.kind && named(r) == expected;
      caught |= right;
      if (!right) o.extra.insert(text(r));
    }
    if (!caught) o.missed += (o.missed.empty() ? "" : ", ") + order;

    emu::set_schedule(s);
    emu::clear_reports();
    const bool right = p.twin();
    for (const emu::Report& r : emu::reports()) o.false_alarm += "; " + order + ": " + text(r);
    if (!right) o.false_alarm += "; " + order + ": a wrong result";
  }
  return o;
}

int run_all() {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  emu::print_reports(false);
  std::size_t caught = 0, false_alarms = 0;
  for (const Plant& p : plants()) {
    const Lines expected = marked(p);
    const Outcome o = run(p, expected);
    caught += o.missed.empty(), false_alarms += !o.false_alarm.empty();
    std::printf("%-28s %-18s %-28s %s%s%s\n", p.name, emu::kind_name(p.kind), text(expected).c_str(),
                o.missed.empty() ? "caught" : ("MISSED: " + o.missed).c_str(),
                o.false_alarm.empty() ? "" : "; FALSE ALARM", o.false_alarm.c_str());
    for (const std::string& extra : o.extra) std::printf("%28s also: %s\n", "", extra.c_str());
  }
  std::printf("%zu planted, %zu caught, %zu false alarms\n", plants().size(), caught, false_alarms);
  return caught == plants().size() && false_alarms == 0 ? 0 : 1;
}

int run_one(const Plant& p) {
  std::printf("%s: %s\n", p.name, p.mistake);
  (void)p.broken();
  const bool found = std::any_of(emu::reports().begin(), emu::reports().end(),
                                 [&](const emu::Report& r) { return r.kind == p.kind && named(r) == marked(p); });
  std::printf("broken: %s: %s at %s\n", found ? "caught" : "MISSED", emu::kind_name(p.kind), text(marked(p)).c_str());
  emu::clear_reports();
  const bool right = p.twin();
  std::printf("twin: %zu reports, the result is %s\n", emu::reports().size(), right ? "right" : "WRONG");
  return found && right && emu::reports().empty() ? 0 : 1;
}

int main(int argc, char** argv) {
  if (argc == 1) return run_all();
  if (std::strcmp(argv[1], "--list") == 0) return list();
  const Plant* p = find(argv[1]);
  return p == nullptr ? 2 : run_one(*p);
}

#else

int main(int argc, char** argv) {
  if (argc == 2 && std::strcmp(argv[1], "--list") == 0) return list();
  const bool broken = argc > 2 && std::strcmp(argv[2], "broken") == 0;
  if (argc < 3 || (!broken && std::strcmp(argv[2], "twin") != 0)) {
    std::fprintf(stderr, "usage: %s --list | NAME broken|twin [--dangerous]\n", argv[0]);
    return 2;
  }
  const Plant* p = find(argv[1]);
  if (p == nullptr) return 2;
  if (broken && p->hangs && (argc < 4 || std::strcmp(argv[3], "--dangerous") != 0)) {
    std::fprintf(stderr, "planted: %s may hang the GPU; --dangerous runs it all the same\n", p->name);
    return 3;
  }
  const bool right = broken ? p->broken() : p->twin();
  const cudaError_t error = cudaDeviceSynchronize();
  std::printf("%s %s: the result is %s (%s)\n", p->name, argv[2], right ? "right" : "wrong", cudaGetErrorName(error));
  return right && error == cudaSuccess ? 0 : 1;
}

#endif

}  // namespace
}  // namespace strop::planted

int main(int argc, char** argv) {
  auto& plants = strop::planted::plants();
  std::sort(plants.begin(), plants.end(), [](const auto& a, const auto& b) {
    return std::make_tuple(std::string(a.file), a.line) < std::make_tuple(std::string(b.file), b.line);
  });
  return strop::planted::main(argc, argv);
}

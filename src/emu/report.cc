// From program addresses to source lines, and from findings to text.
#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <link.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>

#include "emu/launch.h"

namespace strop::emu {
namespace {

constexpr std::size_t kMostFindings = 12;  // of a launch; then it is given up

// The file that this code was linked into, and where it was loaded.
const Dl_info& program() {
  static const Dl_info info = [] {
    Dl_info i{};
    dladdr(reinterpret_cast<const void*>(&run_launch), &i);
    return i;
  }();
  return info;
}

std::string program_path() {
  char path[4096];
  return realpath(program().dli_fname, path) != nullptr ? path : "/proc/self/exe";
}

// Addresses in the file start at 0 where it may be loaded anywhere.
Pc load_bias() {
  const auto* header = reinterpret_cast<const ElfW(Ehdr)*>(program().dli_fbase);
  return header->e_type == ET_DYN ? reinterpret_cast<Pc>(program().dli_fbase) : 0;
}

std::string demangled(const char* name) {
  int status = 0;
  char* text = abi::__cxa_demangle(name, nullptr, nullptr, &status);
  const std::string result = status == 0 ? text : name;
  std::free(text);
  return result;
}

// Functions and variables of the program's symbol table, which dladdr does not see.
struct Symbols {
  std::vector<Symbol> variables, functions;

  Symbols() {
    std::ifstream file(program_path(), std::ios::binary);
    std::stringstream all;
    all << file.rdbuf();
    const std::string bytes = all.str();
    if (bytes.size() < sizeof(ElfW(Ehdr))) return;
    const auto* header = reinterpret_cast<const ElfW(Ehdr)*>(bytes.data());
    const auto* sections = reinterpret_cast<const ElfW(Shdr)*>(bytes.data() + header->e_shoff);
    for (int i = 0; i < header->e_shnum; ++i) {
      if (sections[i].sh_type != SHT_SYMTAB) continue;
      const auto* symbols = reinterpret_cast<const ElfW(Sym)*>(bytes.data() + sections[i].sh_offset);
      const char* names = bytes.data() + sections[sections[i].sh_link].sh_offset;
      for (std::size_t k = 0; k < sections[i].sh_size / sizeof(ElfW(Sym)); ++k) {
        const auto& s = symbols[k];
        const int type = ELF64_ST_TYPE(s.st_info);
        if (s.st_shndx == SHN_UNDEF || s.st_size == 0 || (type != STT_OBJECT && type != STT_FUNC)) continue;
        const char* name = names + s.st_name;
        if (s.st_shndx >= header->e_shnum) continue;
        const auto& section = sections[s.st_shndx];
        const bool local = std::strncmp(name, "_ZZ", 3) == 0;  // to a function
        Symbol symbol{name, load_bias() + s.st_value, s.st_size, local && section.sh_type == SHT_NOBITS,
                      (section.sh_flags & SHF_WRITE) != 0};
        (type == STT_OBJECT ? variables : functions).push_back(std::move(symbol));
      }
    }
    const auto by_address = [](const Symbol& a, const Symbol& b) { return a.address < b.address; };
    std::sort(variables.begin(), variables.end(), by_address);
    std::sort(functions.begin(), functions.end(), by_address);
  }

  static const Symbol* find(const std::vector<Symbol>& in, std::uintptr_t address) {
    const auto after = std::upper_bound(in.begin(), in.end(), address,
                                        [](std::uintptr_t a, const Symbol& s) { return a < s.address; });
    if (after == in.begin()) return nullptr;
    const Symbol& s = *std::prev(after);
    return address - s.address < s.bytes ? &s : nullptr;
  }
};

const Symbols& symbols() {
  static const Symbols symbols;
  return symbols;
}

// Wrappers, in which nobody looks for a mistake.
bool is_plumbing(const Frame& f) {
  if (f.file.find("/src/emu/planted/") != std::string::npos || f.file.ends_with("_test.cu")) return false;
  for (const char* part :
       {"/src/emu/", "/strop/emulator/", "/base/ptx/", "strop/launch.h", "/include/c++/", "/sysdeps/"}) {
    if (f.file.find(part) != std::string::npos) return true;
  }
  return f.file.empty();
}

// Without arguments, which are long, and the line says it; and without the type that a template returns.
std::string tidy(std::string function) {
  const std::string part = "(anonymous namespace)::";
  for (auto at = function.find(part); at != std::string::npos; at = function.find(part))
    function.erase(at, part.size());
  int depth = 0;
  std::size_t name = 0;
  for (std::size_t i = 0; i < function.size(); ++i) {
    if (function[i] == '<') ++depth;
    if (function[i] == '>') --depth;
    if (function[i] == ' ' && depth == 0) name = i + 1;
    if (function[i] == '(' && depth == 0 && i > name) return function.substr(name, i - name);
  }
  return function;
}

// The addresses to return to, from the innermost call on.
std::vector<Pc> walk(const Thread* t) {
  std::vector<Pc> stack;
  auto frame = reinterpret_cast<std::uintptr_t>(__builtin_frame_address(0));
  const std::uintptr_t low = frame;
  const std::uintptr_t high = t != nullptr ? t->fiber.stack() + Stacks::kBytes : low + (1u << 20);
  while (frame >= low && frame + 16 <= high && frame % 8 == 0 && stack.size() < 64) {
    const auto* f = reinterpret_cast<const std::uintptr_t*>(frame);
    stack.push_back(f[1] - 1);
    if (f[0] <= frame) break;
    frame = f[0];
  }
  return stack;
}

// From the current folder, where it lies below that.
std::string shown(const std::string& file) {
  std::error_code error;
  const std::string here = std::filesystem::current_path(error).string() + "/";
  return !error && file.rfind(here, 0) == 0 ? file.substr(here.size()) : file;
}

std::string frames_text(const std::vector<Frame>& frames) {
  std::string text;
  for (const Frame& f : frames) {
    text += "      at " + shown(f.file) + ":" + std::to_string(f.line) + " in " + f.function + "\n";
  }
  return text.empty() ? "      at an unknown line (build with -g; addr2line of binutils must be installed)\n" : text;
}

const char* order_name(Order order) {
  return order == Order::kForward ? "forward" : order == Order::kReverse ? "reverse" : "random";
}

}  // namespace

Pc program_start() { return reinterpret_cast<Pc>(program().dli_fbase); }

std::string symbol_name(const void* address) {
  const Symbol* s = Symbols::find(symbols().functions, reinterpret_cast<std::uintptr_t>(address));
  return s == nullptr ? "kernel" : tidy(demangled(s->name.c_str()));
}

bool find_variable(std::uintptr_t address, Symbol* symbol) {
  const Symbol* s = Symbols::find(symbols().variables, address);
  if (s == nullptr) return false;
  *symbol = *s;
  symbol->name = demangled(s->name.c_str());
  if (const auto at = symbol->name.rfind("::"); s->shared && at != std::string::npos) symbol->name.erase(0, at + 2);
  return true;
}

std::vector<std::vector<Frame>> frames_of(const std::vector<std::vector<Pc>>& stacks) {
  static std::map<Pc, std::vector<Frame>> known;
  std::vector<Pc> asked;
  for (const auto& stack : stacks) {
    for (const Pc pc : stack) {
      if (pc != 0 && known.count(pc) == 0) asked.push_back(pc);
    }
  }
  std::sort(asked.begin(), asked.end());
  asked.erase(std::unique(asked.begin(), asked.end()), asked.end());
  // -a prints each address before its frames.
  for (std::size_t done = 0; done < asked.size(); done += 256) {
    std::ostringstream command;
    command << "addr2line -a -i -f -C -e '" << program_path() << "'" << std::hex;
    for (std::size_t i = done; i < std::min(done + 256, asked.size()); ++i) command << " 0x" << asked[i] - load_bias();
    command << " 2>/dev/null";
    FILE* pipe = popen(command.str().c_str(), "r");
    if (pipe == nullptr) break;
    char line[8192];
    Pc pc = 0;
    std::string function;
    while (std::fgets(line, sizeof line, pipe) != nullptr) {
      std::string text(line, std::strcspn(line, "\n"));
      if (text.rfind("0x", 0) == 0) {
        pc = std::strtoull(text.c_str(), nullptr, 16) + load_bias();
        known[pc];  // even without a line
        function.clear();
      } else if (function.empty()) {
        function = text;
      } else {
        // Relative to where the compiler ran, it may lead through that folder.
        const std::string path = std::filesystem::path(text.substr(0, text.rfind(':'))).lexically_normal().string();
        Frame f{tidy(function), path, std::atoi(text.substr(text.rfind(':') + 1).c_str())};
        if (f.line > 0 && !is_plumbing(f)) known[pc].push_back(std::move(f));
        function.clear();
      }
    }
    pclose(pipe);
  }
  std::vector<std::vector<Frame>> frames;
  for (const auto& stack : stacks) {
    frames.emplace_back();
    for (const Pc pc : stack) {
      const auto found = known.find(pc);  // not there where addr2line could not be run
      if (found != known.end()) frames.back().insert(frames.back().end(), found->second.begin(), found->second.end());
    }
  }
  return frames;
}

std::string Launch::thread_text(std::uint32_t block, std::uint32_t index) const {
  const auto text = [](const Dim3& at, const Dim3& size) {
    std::string s = std::to_string(at.x);
    if (size.y > 1 || size.z > 1) s = "(" + s + ", " + std::to_string(at.y) + ", " + std::to_string(at.z) + ")";
    return s;
  };
  return (index == threads_ ? "a bulk load" : "thread " + text(position(index, spec_.block), spec_.block)) +
         " of block " + text(position(block, spec_.grid), spec_.grid);
}

void Launch::report(Kind kind, std::string text, Pc pc, const Thread* thread, Pc other) {
  for (Found& f : found_) {
    if (f.kind != kind || f.pc != pc || f.other != other) continue;
    ++f.times;
    return;
  }
  Found f{kind, std::move(text), {}, pc, other};
  if (thread != nullptr && thread == running_) {
    if (const std::string name = thread_text(*thread); f.text.find(name) == std::string::npos)
      f.text = name + ": " + f.text;
    f.where = walk(thread);
    const auto here = std::find(f.where.begin(), f.where.end(), pc);
    f.where.erase(f.where.begin(), here == f.where.end() ? f.where.begin() : here);
  } else if (pc != 0) {
    f.where = {pc};
  } else if (running_ == nullptr) {
    f.where = walk(nullptr);  // of the launch as a whole: the host's line that launches
  }
  found_.push_back(std::move(f));
  strop_emu_found();
  if (found_.size() >= kMostFindings && running_ != nullptr) give_up();
}

void report_refused(const void* kernel, const std::string& why) {
  Settings& s = settings();
  const auto frames = frames_of({walk(nullptr)});
  Report r{Kind::kLaunch, symbol_name(kernel), frames[0], {}, {}, {}};
  r.text = "strop::emu: launch: " + why + "\n" + frames_text(r.where) + "    kernel " + r.kernel + "\n";
  if (s.print) std::fputs(r.text.c_str(), stderr);
  s.reports.push_back(std::move(r));
  ++s.failures;
}

void Launch::publish_reports() {
  std::vector<std::vector<Pc>> stacks;
  for (const Found& f : found_) {
    stacks.push_back(f.where);
    stacks.push_back({f.other});
  }
  const auto frames = frames_of(stacks);
  Settings& s = settings();
  for (std::size_t i = 0; i < found_.size(); ++i) {
    const Found& f = found_[i];
    Report r{f.kind, kernel_name, frames[2 * i], frames[2 * i + 1], {}, schedule_};
    r.text = std::string("strop::emu: ") + kind_name(f.kind) + ": " + f.text + "\n" +
             (f.where.empty() ? "" : frames_text(r.where));
    const bool copy = f.kind == Kind::kCopyInFlight || f.kind == Kind::kBarrierMisuse;
    if (f.other != 0) r.text += (copy ? "    the copy\n" : "    the other\n") + frames_text(r.other);
    r.text += "    in kernel " + kernel_name + ", grid " + std::to_string(blocks_) + ", block " +
              std::to_string(threads_) + (spec_.cluster > 1 ? ", cluster " + std::to_string(spec_.cluster) : "") +
              (f.times > 1 ? "; " + std::to_string(f.times) + " times" : "") +
              "; to replay: STROP_EMU_ORDER=" + order_name(schedule_.order) +
              " STROP_EMU_SEED=" + std::to_string(schedule_.seed) + "\n";
    if (s.print) std::fputs(r.text.c_str(), stderr);
    s.reports.push_back(std::move(r));
    ++s.failures;
  }
}

void Launch::report_deadlock() {
  std::vector<const Thread*> waiting;
  std::vector<std::vector<Pc>> stacks;
  bool meets = false;
  for (const auto& cluster : clusters_) {
    for (const auto& block : cluster->blocks) {
      for (const auto& t : block->threads) {
        if (t->done || t->waits_for == nullptr) continue;
        waiting.push_back(t.get());
        stacks.push_back({t->waits_at});
      }
      for (const auto& m : block->meets) meets |= !m.empty();
    }
  }
  // Threads that wait at the same line for the same, together.
  const auto frames = frames_of(stacks);
  std::map<std::pair<std::string, std::string>, std::vector<const Thread*>> groups;
  for (std::size_t i = 0; i < waiting.size(); ++i) {
    const std::string line =
        frames[i].empty() ? "" : shown(frames[i][0].file) + ":" + std::to_string(frames[i][0].line);
    groups[{waiting[i]->waits_for, line}].push_back(waiting[i]);
  }
  std::string text = "nobody can go on";
  const Thread* culprit = nullptr;
  for (const auto& [where, threads] : groups) {
    const std::string how = how_it_waits(*threads[0]);
    text += "\n      " + std::to_string(threads.size()) +
            (threads.size() == 1 ? " thread waits for " : " threads wait for ") + where.first +
            (how.empty() ? "" : " (" + how + ")") + (threads.size() == 1 ? ": " : ", among them ") +
            thread_text(*threads[0]) + (where.second.empty() ? "" : ", at " + where.second);
    // Who waits at __syncthreads seldom made the mistake.
    if (culprit == nullptr || std::strcmp(culprit->waits_for, "__syncthreads") == 0) culprit = threads[0];
  }
  report(meets ? Kind::kWarp : Kind::kDeadlock, text, culprit != nullptr ? culprit->waits_at : 0, nullptr);
}

std::string Launch::how_it_waits(const Thread& t) {
  const auto come = [&](const Barrier& b) {
    if (std::find(b.waiting.begin(), b.waiting.end(), &t) == b.waiting.end()) return std::string();
    return std::to_string(b.arrived_threads.size()) + " of " + std::to_string(b.expected) + " threads have come";
  };
  for (const auto& [id, b] : t.block->barriers) {
    if (const std::string text = come(b); !text.empty())
      return (id > 0 ? "number " + std::to_string(id) + "; " : "") + text;
  }
  for (const Barrier* b : {&grid_, &cluster_of(*t.block).barrier}) {
    if (const std::string text = come(*b); !text.empty()) return text;
  }
  for (const Meet& m : t.block->meets[t.warp()]) {
    if (m.threads[t.lane()] == &t)
      return "by " + lanes_text(m.mask) + ", but not yet by " + lanes_text(m.mask & ~m.arrived);
  }
  return t.waits_how;
}

// Not inlined, not empty: a place for a breakpoint.
extern "C" [[gnu::noinline]] void strop_emu_found() {
  static volatile int calls = 0;
  calls = calls + 1;
}
extern "C" bool strop_emu_is(unsigned block, unsigned thread) {
  Launch* l = Launch::current();
  return l != nullptr && l->in_kernel() && l->running().block->id == block && l->running().index == thread;
}

}  // namespace strop::emu

#include "emu/counter.h"

#include <algorithm>
#include <map>
#include <set>

namespace strop::emu {
namespace {

constexpr std::uintptr_t kSector = 32, kBanks = 32, kBankBytes = 4;

std::uint64_t key(std::uint64_t a, std::uint64_t b) { return a * 0x9e3779b97f4a7c15ull + b; }

}  // namespace

void Counter::add(Thread& t, std::uint32_t block, std::uint32_t warp, Region& r, std::uintptr_t a, std::size_t n,
                  bool write, Pc pc) {
  const bool shared = r.block() != nullptr;
  Site& site = sites_[pc * 4 + (shared ? 2 : 0) + (write ? 1 : 0)];
  site.pc = pc, site.shared = shared, site.write = write;
  ++site.threads;
  site.bytes += static_cast<std::int64_t>(n);
  const std::uint32_t occurrence = t.occurrences[pc * 2 + (write ? 1 : 0)]++;
  site.warps[key(warp, occurrence)].push_back({a, static_cast<std::uint32_t>(n), t.lane()});
  (write ? r.writes : r.reads) += static_cast<std::int64_t>(n);
  if (r.touched_by.empty()) r.touched_by.assign(r.bytes() / 4 + 1, -1);
  for (std::uintptr_t at = a; at < a + n; at += 4) {
    std::int16_t& who = r.touched_by[std::min((at - r.begin()) / 4, r.touched_by.size() - 1)];
    const auto me = static_cast<std::int16_t>(block % 32000);
    who = who == -1 || who == me ? me : std::int16_t{-2};
  }
}

std::vector<LineCounts> Counter::lines() {
  std::vector<LineCounts> lines;
  std::vector<std::vector<Pc>> stacks;
  for (auto& [unused, site] : sites_) {
    LineCounts l;
    l.shared = site.shared, l.write = site.write, l.threads = site.threads;
    l.warps = static_cast<std::int64_t>(site.warps.size());
    for (auto& [warp, lanes] : site.warps) {
      if (!site.shared) {
        std::set<std::uintptr_t> sectors, bytes;
        for (const Lane& lane : lanes) {
          for (std::uintptr_t b = lane.address; b < lane.address + lane.bytes; ++b) {
            sectors.insert(b / kSector);
            bytes.insert(b);
          }
        }
        l.moved += static_cast<std::int64_t>(sectors.size());
        l.least += static_cast<std::int64_t>((bytes.size() + kSector - 1) / kSector);
        continue;
      }
      // 8- and 16-byte accesses are served a half and a quarter of a warp at a time.
      const std::uint32_t size = lanes.front().bytes;
      const std::uint32_t at_once = size <= 4 ? 32 : size <= 8 ? 16 : 8;
      std::map<std::uint32_t, std::set<std::uintptr_t>> parts;
      for (const Lane& lane : lanes) {
        for (std::uintptr_t w = lane.address / kBankBytes; w <= (lane.address + lane.bytes - 1) / kBankBytes; ++w)
          parts[lane.lane / at_once].insert(w);
      }
      for (const auto& [part, words] : parts) {
        std::int64_t banks[kBanks] = {};
        for (const std::uintptr_t w : words) ++banks[w % kBanks];
        l.moved += *std::max_element(banks, banks + kBanks);
        l.least += static_cast<std::int64_t>((words.size() + kBanks - 1) / kBanks);
      }
    }
    stacks.push_back({site.pc});
    lines.push_back(std::move(l));
  }
  const auto frames = frames_of(stacks);
  for (std::size_t i = 0; i < lines.size(); ++i) {
    if (!frames[i].empty()) lines[i].where = frames[i].front();
  }
  // Copies of a line that the compiler made are one.
  std::map<std::tuple<std::string, int, bool, bool>, LineCounts> merged;
  for (LineCounts& l : lines) {
    const auto [at, fresh] = merged.try_emplace({l.where.file, l.where.line, l.shared, l.write}, l);
    if (fresh) continue;
    at->second.threads += l.threads, at->second.warps += l.warps;
    at->second.moved += l.moved, at->second.least += l.least;
  }
  lines.clear();
  for (auto& [unused, l] : merged) lines.push_back(std::move(l));
  return lines;
}

void Launch::finish_counts() {
  if (counter_ == nullptr) return;
  Counts& c = settings().counts;
  c = {};
  c.kernel = kernel_name;
  c.grid = blocks_, c.block = threads_, c.cluster = spec_.cluster;
  c.shared_bytes = spec_.shared_bytes;
  c.barriers = static_cast<std::int64_t>(barriers_), c.switches = static_cast<std::int64_t>(switches_);
  c.lines = counter_->lines();
  for (const auto& region : heap().regions()) region->add_counts(c.buffers);
  settings().map.clear();
  for (const auto& region : heap().regions()) region->add_map(settings().map);
}

}  // namespace strop::emu

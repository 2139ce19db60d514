#include "emu/counter.h"

#include <algorithm>
#include <map>
#include <utility>

namespace strop::emu {
namespace {

constexpr std::uintptr_t kSector = 32, kBanks = 32, kBankBytes = 4;

std::int64_t parts_of(std::int64_t n, std::int64_t size) { return (n + size - 1) / size; }

template <class T>
void sort_unique(std::vector<T>& v) {
  std::sort(v.begin(), v.end());
  v.erase(std::unique(v.begin(), v.end()), v.end());
}

}  // namespace

void Counter::add(Thread& t, std::uint32_t block, std::uint32_t warp, Region& r, std::uintptr_t a, std::size_t n,
                  bool write, Pc pc) {
  const bool shared = r.block() != nullptr;
  const unsigned owner = r.count(a, n, write, block);
  Site& site = sites_[{pc, shared ? nullptr : &r, owner, write}];
  if (site.threads++ == 0) site.buffer = shared ? "shared memory" : r.owner_name(owner);
  const std::uint32_t occurrence = t.occurrences[pc * 2 + (write ? 1 : 0)]++;
  site.warps[std::uint64_t{warp} << 32 | occurrence].push_back(
      {a, static_cast<std::uint32_t>(n), t.lane(), shared ? r.block()->id : 0});
}

void Counter::count_sectors(const Lanes& lanes, LineCounts& l) {
  std::vector<std::pair<std::uintptr_t, std::uintptr_t>> spans;
  std::vector<std::uintptr_t> sectors;
  for (const Lane& lane : lanes) {
    spans.emplace_back(lane.address, lane.address + lane.bytes);
    for (std::uintptr_t s = lane.address / kSector; s <= (lane.address + lane.bytes - 1) / kSector; ++s)
      sectors.push_back(s);
  }
  sort_unique(sectors);
  std::sort(spans.begin(), spans.end());
  std::uintptr_t bytes = 0, covered = 0;  // different ones; up to where
  for (const auto& [begin, end] : spans) {
    if (end > covered) bytes += end - std::max(begin, covered), covered = end;
  }
  l.moved += static_cast<std::int64_t>(sectors.size());
  l.least += parts_of(static_cast<std::int64_t>(bytes), kSector);
}

void Counter::count_banks(const Lanes& lanes, LineCounts& l) {
  // 8- and 16-byte accesses are served a half and a quarter of a warp at a time.
  const std::uint32_t size = lanes.front().bytes, at_once = size <= 4 ? 32 : size <= 8 ? 16 : 8;
  std::map<std::pair<std::uint32_t, std::uint32_t>, std::vector<std::uintptr_t>> parts;
  for (const Lane& lane : lanes) {
    auto& words = parts[{lane.block, lane.lane / at_once}];  // each block of a cluster has banks of its own
    for (std::uintptr_t w = lane.address / kBankBytes; w <= (lane.address + lane.bytes - 1) / kBankBytes; ++w)
      words.push_back(w);
  }
  for (auto& [part, words] : parts) {
    sort_unique(words);  // lanes that want the same word are served together
    std::int64_t banks[kBanks] = {};
    for (const std::uintptr_t w : words) ++banks[w % kBanks];
    l.moved += *std::max_element(banks, banks + kBanks);
    l.least += parts_of(static_cast<std::int64_t>(words.size()), kBanks);
  }
}

std::vector<LineCounts> Counter::lines() {
  std::vector<LineCounts> lines;
  std::vector<std::vector<Pc>> stacks;
  for (const auto& [key, site] : sites_) {
    const auto& [pc, region, owner, write] = key;
    LineCounts l;
    l.buffer = site.buffer, l.shared = region == nullptr, l.write = write, l.threads = site.threads;
    l.warps = static_cast<std::int64_t>(site.warps.size());
    for (const auto& [warp, lanes] : site.warps) l.shared ? count_banks(lanes, l) : count_sectors(lanes, l);
    stacks.push_back({pc});
    lines.push_back(std::move(l));
  }
  const auto frames = frames_of(stacks);
  // Copies of a line that the compiler made are one.
  std::map<std::tuple<std::string, int, bool, std::string, bool>, LineCounts> merged;
  for (std::size_t i = 0; i < lines.size(); ++i) {
    LineCounts& l = lines[i];
    if (!frames[i].empty()) l.where = frames[i].front();
    const auto [at, fresh] = merged.try_emplace({l.where.file, l.where.line, l.shared, l.buffer, l.write}, l);
    if (fresh) continue;
    LineCounts& sum = at->second;
    sum.threads += l.threads, sum.warps += l.warps, sum.moved += l.moved, sum.least += l.least;
  }
  lines.clear();
  for (auto& [unused, l] : merged) lines.push_back(std::move(l));
  return lines;
}

void Launch::finish_counts() {
  Counts& c = settings().counts;
  c = {};
  c.kernel = kernel_name;
  c.grid = blocks_, c.block = threads_, c.cluster = spec_.cluster;
  c.shared_bytes = spec_.shared_bytes;
  c.barriers = static_cast<std::int64_t>(barriers_), c.switches = static_cast<std::int64_t>(switches_);
  if (counter_ == nullptr) return;
  c.lines = counter_->lines();
  settings().map.clear();
  for (const auto& region : heap().regions()) {
    region->add_counts(c.buffers);
    region->add_map(settings().map);
  }
  // As they were named, wherever they lie.
  const auto place = [](const std::string& name) {
    const auto& names = settings().names;
    return std::find_if(names.begin(), names.end(), [&](const NamedView& v) { return v.name == name; }) - names.begin();
  };
  const auto sort = [&](auto& items) {
    std::stable_sort(items.begin(), items.end(),
                     [&](const auto& a, const auto& b) { return place(a.name) < place(b.name); });
  };
  sort(c.buffers);
  sort(settings().map);
}

}  // namespace strop::emu

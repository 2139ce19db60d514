// Counts accesses by line and by warp: bytes, sectors of global memory, passes over the banks of shared memory.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "emu/launch.h"

namespace strop::emu {

class Counter {
 public:
  // An access by thread t. Lanes of a warp that make their k-th access at `pc` count as one warp's access: what the
  // hardware sees of lanes that have not diverged.
  void add(Thread& t, std::uint32_t block, std::uint32_t warp, Region& r, std::uintptr_t a, std::size_t n, bool write,
           Pc pc);
  std::vector<LineCounts> lines();

 private:
  struct Lane {
    std::uintptr_t address;
    std::uint32_t bytes;
    std::uint32_t lane;
    std::uint32_t block;  // whose shared memory it is
  };
  using Lanes = std::vector<Lane>;
  struct Site {
    std::string buffer;
    std::int64_t threads = 0;
    std::unordered_map<std::uint64_t, Lanes> warps;  // by warp and occurrence
  };
  static void count_sectors(const Lanes& lanes, LineCounts& l);
  static void count_banks(const Lanes& lanes, LineCounts& l);

  // By instruction, what it accesses (null: shared memory), whose part of that, and whether it writes.
  std::map<std::tuple<Pc, const Region*, unsigned, bool>, Site> sites_;
};

}  // namespace strop::emu

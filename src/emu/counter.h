// Counts accesses by line and by warp: bytes, sectors of global memory, passes over the banks of shared memory.
#pragma once

#include <cstdint>
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
  };
  struct Site {
    Pc pc = 0;
    bool shared = false, write = false;
    std::int64_t threads = 0, bytes = 0;
    std::unordered_map<std::uint64_t, std::vector<Lane>> warps;  // by warp and occurrence
  };
  std::unordered_map<std::uint64_t, Site> sites_;
};

}  // namespace strop::emu

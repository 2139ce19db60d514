// Who knows what happened before: vector clocks, an array a block, shared by all threads that know the same.
//
// A thread's clock counts its synchronisations. An access by thread u at clock c happened before what thread t does now
// where t knows at least c of u. A barrier gives all who meet there what any of them knew, and their own clocks.
// After Flanagan and Freund 2009, FastTrack (doi:10.1145/1542476.1542490).
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace strop::emu {

using Clock = std::uint32_t;

// Clocks of the threads of a block, by index; 0: nothing is known of the thread. One more stands for its bulk loads, of
// which only their mbarriers tell.
using BlockClocks = std::vector<Clock>;

class Knowledge;
using KnowledgePtr = std::shared_ptr<const Knowledge>;

// A thread that meets others: its block, its index there, its clock (0: not to be passed on), and what it knew.
struct Meeting {
  std::uint32_t block = 0, index = 0;
  Clock clock = 0;
  KnowledgePtr knew;
};

class Knowledge {
 public:
  Clock of(std::uint32_t block, std::uint32_t index) const;
  bool any(std::uint32_t block) const;  // something of one of its threads

  // What all who meet know together; `size` is that of BlockClocks. A thread may meet several times over.
  static KnowledgePtr join(const std::vector<Meeting>& met, std::uint32_t size);
  static KnowledgePtr join(const KnowledgePtr& a, const KnowledgePtr& b);

 private:
  std::vector<std::pair<std::uint32_t, std::shared_ptr<const BlockClocks>>> blocks_;  // by block
};

}  // namespace strop::emu

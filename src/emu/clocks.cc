#include "emu/clocks.h"

#include <algorithm>
#include <map>

namespace strop::emu {

Clock Knowledge::of(std::uint32_t block, std::uint32_t index) const {
  const auto found = std::lower_bound(blocks_.begin(), blocks_.end(), block,
                                      [](const auto& entry, std::uint32_t b) { return entry.first < b; });
  return found == blocks_.end() || found->first != block ? 0 : (*found->second)[index];
}

bool Knowledge::any(std::uint32_t block) const {
  return std::any_of(blocks_.begin(), blocks_.end(), [&](const auto& entry) { return entry.first == block; });
}

KnowledgePtr Knowledge::join(const std::vector<Meeting>& met, std::uint32_t size) {
  struct Known {
    std::shared_ptr<BlockClocks> own;                        // clocks of those who meet
    std::uint32_t present = 0;                               // how many they are
    std::vector<std::shared_ptr<const BlockClocks>> arrays;  // what they knew, each array once
  };
  std::map<std::uint32_t, Known> known;
  std::vector<const Knowledge*> seen;  // most who meet share what they knew
  for (const Meeting& m : met) {
    if (m.clock > 0) {
      Known& k = known[m.block];
      if (k.own == nullptr) k.own = std::make_shared<BlockClocks>(size, 0);
      Clock& clock = (*k.own)[m.index];
      if (clock == 0) ++k.present;
      clock = std::max(clock, m.clock);
    }
    if (m.knew == nullptr || std::find(seen.begin(), seen.end(), m.knew.get()) != seen.end()) continue;
    seen.push_back(m.knew.get());
    for (const auto& [block, array] : m.knew->blocks_) {
      auto& arrays = known[block].arrays;
      if (std::find(arrays.begin(), arrays.end(), array) == arrays.end()) arrays.push_back(array);
    }
  }
  auto joined = std::make_shared<Knowledge>();
  for (auto& [block, k] : known) {
    if (k.own == nullptr && k.arrays.size() == 1) {
      joined->blocks_.emplace_back(block, k.arrays[0]);
      continue;
    }
    if (k.own == nullptr) k.own = std::make_shared<BlockClocks>(size, 0);
    // A thread's own clock is the latest that anybody knows of it: where all have met only the bulk loads are left.
    for (const auto& a : k.arrays) {
      for (std::uint32_t i = k.present + 1 < size ? 0 : size - 1; i < size; ++i)
        (*k.own)[i] = std::max((*k.own)[i], (*a)[i]);
    }
    joined->blocks_.emplace_back(block, std::move(k.own));
  }
  return joined;
}

KnowledgePtr Knowledge::join(const KnowledgePtr& a, const KnowledgePtr& b) {
  if (a == nullptr || a == b) return b;
  if (b == nullptr) return a;
  auto joined = std::make_shared<Knowledge>();
  auto i = a->blocks_.begin(), j = b->blocks_.begin();
  while (i != a->blocks_.end() || j != b->blocks_.end()) {
    if (j == b->blocks_.end() || (i != a->blocks_.end() && i->first < j->first)) {
      joined->blocks_.push_back(*i++);
    } else if (i == a->blocks_.end() || j->first < i->first) {
      joined->blocks_.push_back(*j++);
    } else {
      if (i->second == j->second) {
        joined->blocks_.push_back(*i);
      } else {
        auto array = std::make_shared<BlockClocks>(*i->second);
        for (std::size_t k = 0; k < array->size(); ++k) (*array)[k] = std::max((*array)[k], (*j->second)[k]);
        joined->blocks_.emplace_back(i->first, std::move(array));
      }
      ++i, ++j;
    }
  }
  return joined;
}

}  // namespace strop::emu

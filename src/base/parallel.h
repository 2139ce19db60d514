// parallel_for over the pool in force (include/strop/parallel.h).
#pragma once

#include <cstdint>
#include <type_traits>

#include "strop/parallel.h"

namespace strop {

namespace detail {
void parallel_for_erased(std::int64_t n, void (*body)(std::int64_t, std::int64_t, void*), void* context);
}

// Calls f(i) for every i in [0, n), on all cores, each i once. n is a number of work items that are worth a thread
// each, not of elements: cut the work so that results do not depend on the number of threads. f must not throw.
template <class F>
void parallel_for(std::int64_t n, F&& f) {
  detail::parallel_for_erased(
      n,
      [](std::int64_t begin, std::int64_t end, void* context) {
        auto& g = *static_cast<std::remove_reference_t<F>*>(context);
        for (std::int64_t i = begin; i < end; ++i) g(i);
      },
      const_cast<void*>(static_cast<const void*>(&f)));
}

}  // namespace strop

// How the CPU backend uses the cores. By default it runs on a pool of its own; a host that has a pool already
// (PyTorch, OpenMP, TBB) lends it here, so that two pools do not fight for the same cores.
#pragma once

#include <cstdint>

namespace strop {

// Runs body(begin, end, context) over disjoint ranges that cover [0, n), on any threads, and returns when all
// are done. Must be callable from several threads at once. Bodies never throw.
using ParallelForFunction = void (*)(std::int64_t n, void (*body)(std::int64_t begin, std::int64_t end, void* context),
                                     void* context);

// Replaces the pool for the whole process; null restores the library's own. Call it before the first loss.
// `threads` says how many threads the pool has (a hint for how finely work is cut; results do not depend on it).
void set_parallel_for(ParallelForFunction function, int (*threads)());

// Threads that the CPU backend uses at present. Its own pool takes STROP_NUM_THREADS, else the cores that the
// process may run on.
int num_threads();

}  // namespace strop

#include "base/parallel.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace strop {
namespace {

using Body = void (*)(std::int64_t, std::int64_t, void*);

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

int default_threads() {
  if (const char* text = std::getenv("STROP_NUM_THREADS")) {
    const long n = std::strtol(text, nullptr, 10);
    if (n >= 1) return static_cast<int>(std::min(n, 1024L));
  }
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
}

// One parallel_for. It lives on its caller's stack and is in the pool's list while items may be left.
struct Job {
  Body body;
  void* context;
  std::int64_t n;
  std::atomic<std::int64_t> next{0};
  std::atomic<int> workers{0};  // pool threads inside run(); changed under the pool's mutex
  Job* link = nullptr;

  bool has_items() const { return next.load(std::memory_order_relaxed) < n; }
  void run() {
    for (std::int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n;) body(i, i + 1, context);
  }
};

// The library's own threads. The caller of a job works on it too, so a job always ends, nested ones included.
// Never destroyed: its threads sleep in it until the process ends.
class Pool {
 public:
  explicit Pool(int threads) {
    for (int i = 1; i < threads; ++i) std::thread([this] { work(); }).detach();
  }

  void run(std::int64_t n, Body body, void* context) {
    Job job{body, context, n};
    {
      std::lock_guard lock(mutex_);
      job.link = jobs_;
      jobs_ = &job;
    }
    version_.fetch_add(1, std::memory_order_release);
    wake_.notify_all();
    job.run();
    {
      std::lock_guard lock(mutex_);  // from here on no worker joins
      Job** slot = &jobs_;
      while (*slot != &job) slot = &(*slot)->link;
      *slot = job.link;
    }
    // The last items usually end within a few microseconds of ours, less than a sleep and a wake-up would take.
    for (int spin = 0; job.workers.load(std::memory_order_acquire) != 0 && spin < kSpins; ++spin) pause();
    if (job.workers.load(std::memory_order_acquire) == 0) return;
    std::unique_lock lock(mutex_);
    done_.wait(lock, [&] { return job.workers.load(std::memory_order_acquire) == 0; });
  }

 private:
  static constexpr int kSpins = 1000;

  void work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      Job* job = jobs_;
      while (job != nullptr && !job->has_items()) job = job->link;
      if (job == nullptr) {
        // Calls come in bursts: look for the next job for a moment before the kernel is asked to sleep.
        const std::uint64_t seen = version_.load(std::memory_order_acquire);
        lock.unlock();
        for (int spin = 0; spin < kSpins && version_.load(std::memory_order_acquire) == seen; ++spin) pause();
        lock.lock();
        wake_.wait(lock, [&] { return version_.load(std::memory_order_acquire) != seen || any_items(); });
        continue;
      }
      job->workers.fetch_add(1, std::memory_order_relaxed);
      lock.unlock();
      job->run();
      lock.lock();
      if (job->workers.fetch_sub(1, std::memory_order_release) == 1) done_.notify_all();
    }
  }

  bool any_items() const {
    for (const Job* job = jobs_; job != nullptr; job = job->link) {
      if (job->has_items()) return true;
    }
    return false;
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::atomic<std::uint64_t> version_{0};  // counts jobs, so that a worker notices one without the mutex
  Job* jobs_ = nullptr;
};

std::atomic<Pool*> pool{nullptr};
std::atomic<ParallelForFunction> lent_function{nullptr};
std::atomic<int (*)()> lent_threads{nullptr};

// Not a function's static: a fork while another thread initialises one would leave it locked in the child.
std::atomic<int> own_thread_count{0};

int own_threads() {
  int n = own_thread_count.load(std::memory_order_relaxed);
  if (n == 0) own_thread_count.store(n = default_threads(), std::memory_order_relaxed);
  return n;
}

// Held while the pool is made, and by whoever forks: a fork never meets a pool half made.
pthread_mutex_t making = PTHREAD_MUTEX_INITIALIZER;

// A forked child has none of the parent's threads, and perhaps a locked mutex of the pool: it starts a pool of its own.
// Registered when the library is loaded, before anyone can fork.
[[maybe_unused]] const int fork_handlers =
    pthread_atfork([] { pthread_mutex_lock(&making); }, [] { pthread_mutex_unlock(&making); },
                   [] {
                     pool.store(nullptr);
                     pthread_mutex_unlock(&making);
                   });

Pool& own_pool() {
  Pool* p = pool.load(std::memory_order_acquire);
  if (p != nullptr) return *p;
  pthread_mutex_lock(&making);
  p = pool.load(std::memory_order_acquire);
  if (p == nullptr) {
    p = new Pool(own_threads());
    pool.store(p, std::memory_order_release);
  }
  pthread_mutex_unlock(&making);
  return *p;
}

}  // namespace

namespace detail {

void parallel_for_erased(std::int64_t n, Body body, void* context) {
  if (n <= 0) return;
  if (n == 1) return body(0, 1, context);
  if (ParallelForFunction function = lent_function.load(std::memory_order_acquire)) return function(n, body, context);
  if (own_threads() == 1) return body(0, n, context);
  own_pool().run(n, body, context);
}

}  // namespace detail

void set_parallel_for(ParallelForFunction function, int (*threads)()) {
  lent_threads.store(function == nullptr ? nullptr : threads, std::memory_order_release);
  lent_function.store(function, std::memory_order_release);
}

int num_threads() {
  if (int (*threads)() = lent_threads.load(std::memory_order_acquire)) return std::max(1, threads());
  return own_threads();
}

}  // namespace strop

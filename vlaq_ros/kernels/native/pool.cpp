#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace vlaq {
namespace {

constexpr std::chrono::microseconds SPIN{50};
constexpr int MAX_WORKERS = 255;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Workers wait for the number of the round to change: first spinning, because the next layer usually
// follows within microseconds, then asleep. A worker that wakes up late finds the round closed and
// goes back to waiting; nobody waits for it.
class Pool {
 public:
  void run(int threads, int64_t count, void (*task)(void*, int64_t), void* context) {
    grow(threads - 1);
    task_ = task;
    context_ = context;
    count_ = count;
    next_.store(0, std::memory_order_relaxed);
    seats_.store(threads - 1, std::memory_order_relaxed);
    state_.store(OPEN, std::memory_order_release);
    {
      // With the mutex no worker can miss the change between its last look and its sleep.
      std::lock_guard<std::mutex> lock(mutex_);
      round_.fetch_add(1, std::memory_order_release);
    }
    if (asleep_.load(std::memory_order_acquire)) wake_.notify_all();
    take_part();
    // From here on nobody enters; those inside finish what they have taken.
    state_.fetch_and(~OPEN, std::memory_order_acq_rel);
    while (state_.load(std::memory_order_acquire)) pause();
  }

  void pin(const int32_t* cpus, int count) {
    std::lock_guard<std::mutex> lock(mutex_);
    cpus_.assign(cpus, cpus + count);
    for (size_t i = 0; i < workers_.size(); i++) pin_one(i);
  }

  std::mutex caller;  // held by the caller that has the pool

 private:
  static constexpr int64_t OPEN = 1, INSIDE = 2;  // state_ = OPEN + INSIDE * (workers at work)

  void take_part() {
    for (;;) {
      const int64_t index = next_.fetch_add(1, std::memory_order_relaxed);
      if (index >= count_) return;
      task_(context_, index);
    }
  }

  void work() {
    uint64_t seen = 0;
    for (;;) {
      seen = wait_for_round(seen);
      int64_t state = state_.load(std::memory_order_acquire);
      while (state & OPEN)
        if (state_.compare_exchange_weak(state, state + INSIDE, std::memory_order_acq_rel)) break;
      if (!(state & OPEN)) continue;
      if (seats_.fetch_sub(1, std::memory_order_relaxed) > 0) take_part();
      state_.fetch_sub(INSIDE, std::memory_order_acq_rel);
    }
  }

  uint64_t wait_for_round(uint64_t seen) {
    const auto until = std::chrono::steady_clock::now() + SPIN;
    do {
      for (int i = 0; i < 32; i++) {
        if (round_.load(std::memory_order_acquire) != seen)
          return round_.load(std::memory_order_acquire);
        pause();
      }
    } while (std::chrono::steady_clock::now() < until);
    std::unique_lock<std::mutex> lock(mutex_);
    asleep_.fetch_add(1, std::memory_order_acq_rel);
    wake_.wait(lock, [&] { return round_.load(std::memory_order_acquire) != seen; });
    asleep_.fetch_sub(1, std::memory_order_acq_rel);
    return round_.load(std::memory_order_acquire);
  }

  void grow(int workers) {
    std::lock_guard<std::mutex> lock(mutex_);
    while (int(workers_.size()) < workers && int(workers_.size()) < MAX_WORKERS) {
      std::thread thread([this] { work(); });
      workers_.push_back(thread.native_handle());
      thread.detach();
      pin_one(workers_.size() - 1);
    }
  }

  void pin_one(size_t worker) {
#if defined(__linux__)
    cpu_set_t set;
    CPU_ZERO(&set);
    if (cpus_.empty())
      for (int i = 0; i < CPU_SETSIZE; i++) CPU_SET(i, &set);
    else if (worker < cpus_.size() && cpus_[worker] >= 0 && cpus_[worker] < CPU_SETSIZE)
      CPU_SET(cpus_[worker], &set);
    else
      return;
    pthread_setaffinity_np(workers_[worker], sizeof set, &set);
#else
    (void)worker;
#endif
  }

  std::mutex mutex_;  // workers_, cpus_, and sleeping
  std::condition_variable wake_;
  std::vector<pthread_t> workers_;
  std::vector<int32_t> cpus_;
  std::atomic<uint64_t> round_{0};
  std::atomic<int> asleep_{0}, seats_{0};
  std::atomic<int64_t> next_{0}, state_{0};
  void (*task_)(void*, int64_t) = nullptr;
  void* context_ = nullptr;
  int64_t count_ = 0;
};

// Never destroyed: detached workers may still wait in it while the process ends. A child of fork()
// has no workers, and locks that nobody will release: it starts with a pool of its own.
std::atomic<Pool*> pool{nullptr};

Pool& the_pool() {
  static const bool forgets = !pthread_atfork(nullptr, nullptr, [] { pool.store(nullptr); });
  (void)forgets;
  Pool* found = pool.load(std::memory_order_acquire);
  if (found) return *found;
  Pool* fresh = new Pool;
  if (pool.compare_exchange_strong(found, fresh, std::memory_order_acq_rel)) return *fresh;
  delete fresh;
  return *found;
}

}  // namespace

void run_parallel(int threads, int64_t count, void (*task)(void* context, int64_t index),
                  void* context) {
  if (int64_t(threads) > count) threads = int(count);
  if (threads > 1) {
    Pool& shared = the_pool();
    std::unique_lock<std::mutex> mine(shared.caller, std::try_to_lock);
    if (mine.owns_lock()) {
      shared.run(threads, count, task, context);
      return;
    }
  }
  for (int64_t i = 0; i < count; i++) task(context, i);
}

void pin_workers(const int32_t* cpus, int count) { the_pool().pin(cpus, count); }

}  // namespace vlaq

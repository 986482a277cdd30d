#include "pool.h"

#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "context.h"

namespace looplm::cpu {

namespace {
inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}
int available_cores() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  int n = int(std::thread::hardware_concurrency());
  return n > 0 ? n : 1;
}
struct Scratch {
  void* data = nullptr;
  size_t bytes = 0;
};
}  // namespace

struct Pool::State {
  ~State() {
    {
      std::lock_guard lock(mutex);
      stop = true;
    }
    wake.notify_all();
    for (auto& worker : workers) worker.join();
    for (auto& s : scratch) std::free(s.data);
  }
  std::vector<std::thread> workers;
  std::vector<Scratch> scratch;
  std::mutex mutex;
  std::condition_variable wake;
  // A job is published by setting `open` and announced by incrementing `epoch`. A worker increments `active` before it checks
  // `open`. So a worker that comes late finds the job closed, and nobody waits for it. The job's fields change only while
  // `open` is false and `active` is 0.
  std::atomic<uint64_t> epoch{0};
  std::atomic<bool> open{false};
  std::atomic<int> active{0};
  std::atomic<int64_t> next{0};
  std::atomic<int> sleepers{0};
  std::atomic<bool> stop{false};
  int64_t tasks = 0;
  Task task = nullptr;
  void* context = nullptr;
  std::exception_ptr error;  // the first exception of the job; guarded by mutex

  void work(int thread) {
    try {
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) task(context, i, thread);
    } catch (...) {
      next.store(tasks, std::memory_order_relaxed);
      std::lock_guard lock(mutex);
      if (!error) error = std::current_exception();
    }
  }
  void loop(int thread) {
    uint64_t seen = 0;
    for (;;) {
      // spin for some tens of microseconds, the gap between two kernels; then sleep, so that an idle engine costs nothing
      for (int spin = 0; spin < 4000 && epoch.load(std::memory_order_acquire) == seen && !stop; spin++) pause();
      if (epoch.load(std::memory_order_acquire) == seen && !stop) {
        std::unique_lock lock(mutex);
        sleepers.fetch_add(1);
        wake.wait(lock, [&] { return epoch.load() != seen || stop.load(); });
        sleepers.fetch_sub(1);
      }
      if (stop) return;
      seen = epoch.load(std::memory_order_acquire);
      active.fetch_add(1);
      if (open.load()) work(thread);
      active.fetch_sub(1, std::memory_order_release);
    }
  }
};

Pool::Pool(int threads) {
  if (threads <= 0) threads = available_cores();
  auto made = std::make_unique<State>();  // its destructor ends the threads that have started if another one cannot be
                                          // created
  made->scratch.resize(size_t(threads) + 1);
  made->workers.reserve(size_t(threads));
  for (int i = 1; i < threads; i++) made->workers.emplace_back([s = made.get(), i] { s->loop(i); });
  state = made.release();
}

Pool::~Pool() { delete state; }

int Pool::threads() const { return int(state->scratch.size()) - 1; }

void Pool::dispatch(int64_t tasks, Task task, void* context) {
  State& s = *state;
  s.tasks = tasks;
  s.task = task;
  s.context = context;
  s.next.store(0, std::memory_order_relaxed);
  s.open.store(true);
  s.epoch.fetch_add(1, std::memory_order_seq_cst);
  if (s.sleepers.load(std::memory_order_seq_cst) > 0) {
    { std::lock_guard lock(s.mutex); }
    s.wake.notify_all();
  }
  s.work(0);
  s.open.store(false);
  for (int spin = 0; s.active.load(std::memory_order_seq_cst) != 0; spin++) {
    if (spin < 20000) pause();
    else std::this_thread::yield();
  }
  if (s.error) std::rethrow_exception(std::exchange(s.error, nullptr));
}

void* Pool::scratch(int thread, size_t bytes) {
  Scratch& s = state->scratch[size_t(thread)];
  if (s.bytes < bytes) {
    std::free(std::exchange(s.data, nullptr));
    s.bytes = 0;
    const size_t rounded = bytes | 4095;
    s.data = allocate_aligned(rounded);
    if (!s.data) throw OutOfScratch(bytes);
    s.bytes = rounded;
  }
  return s.data;
}

}  // namespace looplm::cpu

// The engine's thread pool, one per device context. Parallel work is a numbered list of tasks; each thread takes the next
// one.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <new>

namespace looplm::cpu {

// A kernel could not allocate its scratch memory. The table (table.cpp) reports it as LOOP_OUT_OF_MEMORY.
struct OutOfScratch : std::bad_alloc {
  explicit OutOfScratch(size_t wanted) : bytes(wanted) {}
  size_t bytes;
};

class Pool {
 public:
  // threads <= 0: one per available core. The calling thread counts as one. Throws std::system_error if the system refuses a
  // thread.
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  int threads() const;

  // Calls f(task, thread) for every task in [0, tasks), with 0 <= thread < threads(). Which thread runs a task is not fixed,
  // so results must depend only on the task. Returns when all tasks are done. If a task throws on any thread, tasks that have
  // not started are skipped, and the exception is rethrown here. Not re-entrant.
  template <class F>
  void run(int64_t tasks, F&& f) {
    if (tasks == 1 || threads() == 1) {
      for (int64_t i = 0; i < tasks; i++) f(i, 0);
      return;
    }
    dispatch(
        tasks, [](void* context, int64_t task, int thread) { (*static_cast<F*>(context))(task, thread); }, &f);
  }
  // Scratch memory of one thread, or with thread = threads() of the caller. 64-byte aligned, only grows, contents undefined.
  // Throws OutOfScratch.
  void* scratch(int thread, size_t bytes);

 private:
  using Task = void (*)(void*, int64_t, int);
  void dispatch(int64_t tasks, Task task, void* context);
  struct State;
  State* state;
};

}  // namespace looplm::cpu

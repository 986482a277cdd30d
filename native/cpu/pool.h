// The engine's own threads. One Pool per device context; parallel work is a numbered list of tasks that threads take in turn.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <new>

namespace looplm::cpu {

// A kernel's own memory could not be had. The table (table.cpp) reports it as LOOP_OUT_OF_MEMORY.
struct OutOfScratch : std::bad_alloc {
  explicit OutOfScratch(size_t wanted) : bytes(wanted) {}
  size_t bytes;
};

class Pool {
 public:
  // threads <= 0: one per available core, the caller's thread counted. Throws std::system_error when the system refuses a thread.
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  int threads() const;

  // Calls f(task, thread) for every task in [0, tasks), 0 <= thread < threads(). Which thread runs a task is not fixed, so a
  // result must depend on the task alone. Returns when all are done. When a task throws, on whatever thread, tasks that have not
  // begun are skipped and the exception comes out here. Not re-entrant.
  template <class F>
  void run(int64_t tasks, F&& f) {
    if (tasks == 1 || threads() == 1) {
      for (int64_t i = 0; i < tasks; i++) f(i, 0);
      return;
    }
    dispatch(
        tasks, [](void* context, int64_t task, int thread) { (*static_cast<F*>(context))(task, thread); }, &f);
  }
  // Memory of one thread (or, with thread = threads(), of the caller) that grows and is kept; 64-byte aligned, contents
  // undefined. Throws OutOfScratch.
  void* scratch(int thread, size_t bytes);

 private:
  using Task = void (*)(void*, int64_t, int);
  void dispatch(int64_t tasks, Task task, void* context);
  struct State;
  State* state;
};

}  // namespace looplm::cpu

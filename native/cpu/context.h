// The CPU backend's context: its threads and its error text. Kernels use no other state.
#pragma once
#include <stdint.h>
#include <stdlib.h>  // defines: free

#include "int8.h"
#include "pool.h"

namespace looplm::cpu {

struct Context {
  explicit Context(int threads) : pool(threads) {}
  Pool pool;
  const Int8Kernels* int8 = nullptr;
  char error[256] = "";
  char description[64] = "";
};

// A context for the instruction set that cpu.cpp chooses. Throws std::bad_alloc or std::system_error.
Context* make_context(int threads);

// 64-byte aligned memory, as for the table's `allocate`; NULL if there is none. Free it with free().
void* allocate_aligned(size_t bytes);

// Owns memory of allocate_aligned, and frees it at the end of the scope. data: NULL for 0 bytes. Throws OutOfScratch.
struct Aligned {
  explicit Aligned(size_t bytes) : data(bytes > 0 ? allocate_aligned(bytes) : nullptr) {
    if (bytes > 0 && !data) throw OutOfScratch(bytes);
  }
  ~Aligned() { free(data); }
  Aligned(const Aligned&) = delete;
  void* const data;
};

// How many rows of d elements one task handles: enough for some microseconds of work, few enough to share among threads.
inline int64_t rows_per_task(int64_t rows, int64_t d) {
  int64_t n = 16384 / (d > 0 ? d : 1);
  if (n < 1) n = 1;
  return n < rows ? n : (rows > 0 ? rows : 1);
}

// Runs f(begin, end, thread) over [0, rows) in blocks whose size does not depend on the threads.
template <class F>
void for_rows(Context& ctx, int64_t rows, int64_t d, F&& f) {
  if (rows <= 0) return;
  int64_t block = rows_per_task(rows, d), tasks = (rows + block - 1) / block;
  ctx.pool.run(tasks, [&](int64_t task, int thread) {
    int64_t begin = task * block, end = begin + block < rows ? begin + block : rows;
    f(begin, end, thread);
  });
}

}  // namespace looplm::cpu

// Emulates a CUDA device, for kernels that g++ compiles. A launch runs its blocks on a few operating-system threads. A
// block runs as one fiber per CUDA thread. A fiber switches to another only where it must wait: at a barrier, or in a
// collective of its warp.
//
// It reports these errors, with the block and the thread:
//   a barrier or warp function that not all of its threads reach, or that they reach at different places in the source;
//   a grid barrier that a block does not reach, or that blocks reach at different places;
//   different masks in one shuffle, a lane outside its own mask, a shuffle from a lane outside the mask;
//   shared memory accesses that are out of an array's bounds or misaligned, or that read before anything was written or while
//   a cp.async to it is under way;
//   two threads that access the same shared memory without a barrier in between, if one of them writes.
// Races are detected with vector clocks, one entry per warp: a barrier tells the warps it releases what each of them has done
// before. Work of the other lanes of a warp counts as visible only after __syncwarp, as in the CUDA manual.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <string>
#include <vector>

#include "banks.h"

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace looplm::emulator {

constexpr int warp_size = 32, max_threads = 1024, max_warps = max_threads / warp_size;
constexpr size_t max_shared_bytes = 227 * 1024;  // per block on sm_90
using Where = std::source_location;

// Who last accessed two bytes of shared memory. A stamp is the number of a thread and the clock of its warp; 0: nobody.
struct Granule {
  uint32_t writer, reader;
};
constexpr uint32_t thread_bits = 10, under_way = 0xFFFFFFFF;  // under_way: the writer while a cp.async is under way

struct Warp {
  uint32_t clock[max_warps];  // what this warp has seen of each warp; its own current work has its own entry + 1
};

struct AsyncCopy {  // without a destination: marks the end of a committed group
  unsigned char* to;
  const unsigned char* from;
  uint32_t bytes, valid;
};

struct Block {
  uint3 index;
  dim3 block_size, grid_size;
  unsigned char* shared;  // [max_shared_bytes]
  Granule* granules;      // [max_shared_bytes / 2]
  size_t shared_bytes;    // allocated so far
  size_t dynamic_bytes;
};

struct Thread {
  uint3 index;
  uint32_t number;  // index in the block
  Block* block;
  Warp* warp;
  std::vector<AsyncCopy> copies;

  uint32_t lane() const { return number % warp_size; }
  uint32_t stamp() const { return (warp->clock[number / warp_size] + 1) << thread_bits | number; }
  // Whether the access with that stamp is known to have happened before.
  bool after(uint32_t stamp) const {
    const uint32_t other = stamp & (max_threads - 1);
    return other == number || stamp >> thread_bits <= warp->clock[other / warp_size];
  }
};

// The running thread. One operating-system thread runs a block from start to end.
extern __thread Thread* self __attribute__((tls_model("initial-exec")));

// Ends the launch with an error. The fibers of the block are abandoned.
[[noreturn]] void fault(const char* format, ...) __attribute__((format(printf, 1, 2)));
[[noreturn]] void bad_shared_access(const unsigned char* at, size_t bytes, size_t alignment, const unsigned char* begin,
                                    const unsigned char* end, bool write);
[[noreturn]] void bad_order(const unsigned char* at, bool write);

// ---- launches ----

struct Launch {
  dim3 grid, block;
  size_t dynamic_bytes;
  bool cooperative;
  void (*entry)(const void* arguments);
  const void* arguments;
  const void* kernel;
};
bool run(const Launch& launch, std::string& error);

// ---- shared memory ----

inline bool check_read(const unsigned char* at, size_t bytes) {
  Granule* granule = self->block->granules + (at - self->block->shared) / 2;
  const uint32_t stamp = self->stamp();
  for (size_t i = 0; i < (bytes + 1) / 2; ++i) {
    if (granule[i].writer == 0 || granule[i].writer == under_way) return false;
    if (bytes > 1 && !self->after(granule[i].writer)) return false;
    granule[i].reader = stamp;
  }
  return true;
}
inline bool check_write(const unsigned char* at, size_t bytes, uint32_t writer) {
  Granule* granule = self->block->granules + (at - self->block->shared) / 2;
  for (size_t i = 0; i < (bytes + 1) / 2; ++i) {
    if (granule[i].writer == under_way) return false;
    if (bytes > 1 && !(self->after(granule[i].writer) && self->after(granule[i].reader))) return false;
    granule[i].writer = writer;
  }
  return true;
}

// A bounds-checked view of shared memory.
struct Span {
  unsigned char *at, *begin, *end;
  void read(size_t bytes, size_t alignment) const {
    require(bytes, alignment, false);
    if (!check_read(at, bytes)) bad_order(at, false);
    if (counting_banks) note_access(*self, at, bytes);
  }
  void write(size_t bytes, size_t alignment) const {
    require(bytes, alignment, true);
    if (!check_write(at, bytes, self->stamp())) bad_order(at, true);
    if (counting_banks) note_access(*self, at, bytes);
  }
  void require(size_t bytes, size_t alignment, bool write) const {
    if (at < begin || at + bytes > end || (uintptr_t(at - self->block->shared) & (alignment - 1)) != 0)  // a power of two
      bad_shared_access(at, bytes, alignment, begin, end, write);
  }
};
// Atomics do not race with each other, but they race with plain accesses of other threads. So each atomic leaves its stamp.
template <class T, class Change>
T shared_atomic(const Span& span, Change change) {
  span.require(sizeof(T), alignof(T), true);
  Granule* granule = self->block->granules + (span.at - self->block->shared) / 2;
  T old;
  std::memcpy(&old, span.at, sizeof(T));
  for (size_t i = 0; i < sizeof(T) / 2; ++i) {
    if (granule[i].writer == 0 || granule[i].writer == under_way) bad_order(span.at, false);
    granule[i].writer = self->stamp();
  }
  const T value = change(old);
  std::memcpy(span.at, &value, sizeof(T));
  return old;
}
Span static_shared(const void* key, size_t bytes);
Span dynamic_shared(size_t byte_offset, size_t bytes);

void copy_async(const Span& to, const void* from, uint32_t bytes, int valid);
void copy_async_commit();
void copy_async_wait(int groups);

// ---- barriers and collectives ----

void barrier(int id, int threads, bool wait, Where where);  // threads 0: the whole block
void grid_barrier(Where where);

enum class Kind : uint8_t { syncwarp, shuffle, vote, load_matrix, mma };

// The arguments of all lanes of a mask for one warp function. The last lane to arrive computes for all of them. The others
// are suspended, so what `in` and `out` point to on their stacks stays valid.
struct Collective {
  Collective() {}  // without filling the arrays
  uint32_t mask = 0, arrived = 0;
  Kind kind = Kind::syncwarp;
  Where where;
  const void* in[warp_size];
  void* out[warp_size];
};
void collective(Kind kind, uint32_t mask, const void* in, void* out, void (*compute)(Collective&), Where where);

}  // namespace looplm::emulator

#include "emulator.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <condition_variable>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <thread>

#include "runtime.h"  // defines: shared_limit

#if !defined(__x86_64__) || defined(LOOPLM_EMULATOR_UCONTEXT)
#include <ucontext.h>
#endif

namespace looplm::emulator {

__thread Thread* self = nullptr;

namespace {

// ---- Fibers: a saved stack pointer. In the System V ABI, a function preserves six registers and the stack pointer, so a
// switch costs no more than that. swapcontext would add two system calls.

#if defined(__x86_64__) && !defined(LOOPLM_EMULATOR_UCONTEXT)
struct Context {
  void* stack_pointer = nullptr;
};
extern "C" void looplm_emulator_switch(Context* from, const Context* to) __attribute__((visibility("hidden")));
asm(R"(
.text
.hidden looplm_emulator_switch
.globl looplm_emulator_switch
.type looplm_emulator_switch, @function
looplm_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq (%rsi), %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmp *%rcx
.size looplm_emulator_switch, . - looplm_emulator_switch
)");
void switch_to(Context& from, const Context& to) { looplm_emulator_switch(&from, &to); }
void prepare(Context& context, unsigned char* stack, size_t bytes, void (*entry)()) {
  void** top =
      reinterpret_cast<void**>(stack + bytes) - 2;  // entry expects the stack as after a call: 8 bytes off a multiple of 16
  top[1] = nullptr;
  top[0] = reinterpret_cast<void*>(entry);
  std::fill(top - 6, top, nullptr);
  top[0] = reinterpret_cast<void*>(entry);
  context.stack_pointer = top - 6;
}
#else
struct Context {
  ucontext_t context;
};
void switch_to(Context& from, const Context& to) { swapcontext(&from.context, &to.context); }
void prepare(Context& context, unsigned char* stack, size_t bytes, void (*entry)()) {
  getcontext(&context.context);
  context.context.uc_stack = {stack, 0, bytes};
  context.context.uc_link = nullptr;
  makecontext(&context.context, entry, 0);
}
#endif

// ---- Blocks and their threads

// Where a thread waits that cannot run.
enum class State : uint8_t { at_barrier, at_grid_barrier, in_collective, finished };

struct Fiber : Thread {
  Context context;
  unsigned char* stack = nullptr;
  State state;
  Where where;  // where it waits
  const char* waits_for = "";
};

struct FiberWarp : Warp {
  Fiber* lanes;
  uint32_t ready;  // bit mask of lanes
  std::vector<Collective> collectives;
};

struct Barrier {
  int arrived = 0, expected = 0;
  Where where;
  uint32_t seen[max_warps] = {};  // what the arrived threads have seen and done: one clock per warp
  std::vector<Fiber*> waiting;
};
constexpr int barriers = 16;

struct StaticArray {
  const void* key;
  size_t begin, bytes;
};

struct RunningBlock : Block {
  int threads = 0, warps = 0, unfinished = 0;
  uint32_t ready_warps = 0;
  int current_warp = 0;
  std::vector<Fiber> fibers = std::vector<Fiber>(max_threads);
  std::vector<FiberWarp> warp = std::vector<FiberWarp>(max_warps);
  Barrier barrier[barriers];
  std::vector<StaticArray> arrays;
  std::vector<unsigned char> memory = std::vector<unsigned char>(max_shared_bytes + 128);
  std::vector<Granule> granule_memory = std::vector<Granule>(max_shared_bytes / 2);
};

constexpr size_t stack_bytes = 128 * 1024, page = 4096;

// The state that an operating-system thread keeps between launches.
struct Worker {
  Context scheduler;
  std::vector<std::unique_ptr<RunningBlock>> blocks;  // all blocks of a cooperative launch, else one
  size_t resident = 0, current = 0;
  int at_grid_barrier = 0;
  Where grid_barrier_where;  // position of the first thread that arrived
  const Launch* launch = nullptr;
  std::string fault;
  bool faulted = false;

  ~Worker() {
    for (const auto& block : blocks)
      for (Fiber& fiber : block->fibers)
        if (fiber.stack) munmap(fiber.stack - page, stack_bytes + page);
  }
};
__thread Worker* worker __attribute__((tls_model("initial-exec"))) = nullptr;

Fiber& fiber() { return *static_cast<Fiber*>(self); }
RunningBlock& running() { return *static_cast<RunningBlock*>(self->block); }

void fail(const char* format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  if (!worker->faulted) worker->fault = text;
  worker->faulted = true;
}

// The next thread that can run: in the warp that ran last, else in its block, else in the other resident blocks.
Fiber* next_ready() {
  for (size_t n = 0; n < worker->resident; ++n) {
    RunningBlock& block = *worker->blocks[worker->current];
    if (block.ready_warps != 0) {
      if (!(block.ready_warps >> block.current_warp & 1)) {
        const uint32_t after = block.ready_warps & ~((2u << block.current_warp) - 1);
        block.current_warp = std::countr_zero(after ? after : block.ready_warps);
      }
      const FiberWarp& warp = block.warp[size_t(block.current_warp)];
      return warp.lanes + std::countr_zero(warp.ready);
    }
    if (++worker->current == worker->resident) worker->current = 0;
  }
  return nullptr;
}

void set_ready(Fiber& f) {
  RunningBlock& block = *static_cast<RunningBlock*>(f.block);
  block.warp[f.number / warp_size].ready |= 1u << f.lane();
  block.ready_warps |= 1u << f.number / warp_size;
}
void set_waiting(Fiber& f, State state) {
  RunningBlock& block = *static_cast<RunningBlock*>(f.block);
  f.state = state;
  FiberWarp& warp = block.warp[f.number / warp_size];
  warp.ready &= ~(1u << f.lane());
  if (warp.ready == 0) block.ready_warps &= ~(1u << f.number / warp_size);
}

// Called when no thread can run, but not all have finished: reports which thread waits where.
void report_deadlock() {
  if (worker->at_grid_barrier > 0)  // a block that has finished, or whose threads wait elsewhere, blocks all others
    for (size_t b = 0; b < worker->resident; ++b) {
      const RunningBlock& block = *worker->blocks[b];
      const auto is_there = [](const Fiber& f) { return f.state == State::at_grid_barrier; };
      const auto there = std::count_if(block.fibers.begin(), block.fibers.begin() + block.threads, is_there);
      if (there > 0) continue;
      const bool ended = block.unfinished == 0;
      const Fiber& first = *std::find_if(block.fibers.begin(), block.fibers.begin() + block.threads - 1,
                                         [](const Fiber& f) { return f.state != State::finished; });
      char where[256] = "";
      if (!ended)
        std::snprintf(where, sizeof where, " %s at %s:%u", first.waits_for, first.where.file_name(), first.where.line());
      return fail("grid_barrier at %s:%u is not reached by block (%u, %u, %u), which %s%s",
                  worker->grid_barrier_where.file_name(), worker->grid_barrier_where.line(), block.index.x, block.index.y,
                  block.index.z, ended ? "has ended" : "is in", where);
    }
  for (size_t b = 0; b < worker->resident; ++b) {
    const RunningBlock& block = *worker->blocks[b];
    for (int i = 0; i < block.threads; ++i) {
      const Fiber& first = block.fibers[size_t(i)];
      if (first.state == State::finished) continue;
      int waiting = 0, finished = 0;
      const Fiber* other = nullptr;
      for (int j = 0; j < block.threads; ++j) {
        const Fiber& f = block.fibers[size_t(j)];
        if (f.state == State::finished) ++finished;
        else if (f.where.line() == first.where.line() && f.waits_for == first.waits_for) ++waiting;
        else other = &f;
      }
      char rest[256] = "";
      if (other)
        std::snprintf(rest, sizeof rest, ", others (thread %u) in %s at %s:%u", other->number, other->waits_for,
                      other->where.file_name(), other->where.line());
      return fail(
          "%s at %s:%u is not reached by all of its threads: in block (%u, %u, %u), %d of %d threads wait there (the first is "
          "thread %u), %d have ended%s",
          first.waits_for, first.where.file_name(), first.where.line(), block.index.x, block.index.y, block.index.z, waiting,
          block.threads, first.number, finished, rest);
    }
  }
}

// Switches from the current fiber to another one; the current one may be resumed later.
void give_way() {
  Fiber& from = fiber();
  const FiberWarp& warp = *static_cast<FiberWarp*>(from.warp);
  Fiber* to = warp.ready ? warp.lanes + std::countr_zero(warp.ready) : next_ready();
  if (!to) {
    report_deadlock();
    switch_to(from.context, worker->scheduler);
  }
  if (to == &from) return;
  self = to;
  switch_to(from.context, to->context);
}

void fiber_main() {
  worker->launch->entry(worker->launch->arguments);
  Fiber& ended = fiber();
  RunningBlock& block = running();
  set_waiting(ended, State::finished);
  --block.unfinished;
  if (Fiber* to = next_ready()) {
    self = to;
    switch_to(ended.context, to->context);
  }
  for (size_t b = 0; b < worker->resident; ++b)
    if (worker->blocks[b]->unfinished > 0) {
      report_deadlock();
      break;
    }
  switch_to(ended.context, worker->scheduler);
}

void start_block(RunningBlock& block, const Launch& launch, size_t linear) {
  block.grid_size = launch.grid;
  block.block_size = launch.block;
  block.index = {unsigned(linear % launch.grid.x), unsigned(linear / launch.grid.x % launch.grid.y),
                 unsigned(linear / launch.grid.x / launch.grid.y)};
  block.threads = int(launch.block.x * launch.block.y * launch.block.z);
  block.warps = (block.threads + warp_size - 1) / warp_size;
  block.unfinished = block.threads;
  block.current_warp = 0;
  block.shared = block.memory.data() + (128 - reinterpret_cast<uintptr_t>(block.memory.data()) % 128) % 128;
  block.granules = block.granule_memory.data();
  std::fill_n(block.granules, block.shared_bytes / 2, Granule{0, 0});  // the part that the previous block used
  block.dynamic_bytes = launch.dynamic_bytes;
  block.shared_bytes = (launch.dynamic_bytes + 127) / 128 * 128;
  block.arrays.clear();
  for (Barrier& barrier : block.barrier) {
    barrier.arrived = 0;
    barrier.waiting.clear();
  }
  for (int w = 0; w < block.warps; ++w) {
    FiberWarp& warp = block.warp[size_t(w)];
    std::fill_n(warp.clock, max_warps, 0u);
    warp.collectives.clear();
    warp.lanes = &block.fibers[size_t(w * warp_size)];
    warp.ready = 0;
  }
  block.ready_warps = 0;
  for (int i = 0; i < block.threads; ++i) {
    Fiber& f = block.fibers[size_t(i)];
    f.number = uint32_t(i);
    f.index = {unsigned(i) % launch.block.x, unsigned(i) / launch.block.x % launch.block.y,
               unsigned(i) / launch.block.x / launch.block.y};
    f.block = &block;
    f.warp = &block.warp[size_t(i / warp_size)];
    f.copies.clear();
    if (!f.stack) {  // a guard page below the stack catches overflows
      void* mapped =
          mmap(nullptr, stack_bytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (mapped == MAP_FAILED) std::abort();
      mprotect(mapped, page, PROT_NONE);
      f.stack = static_cast<unsigned char*>(mapped) + page;
    }
    // offsets the stack tops, so that they do not all map to the same cache sets
    prepare(f.context, f.stack, stack_bytes - size_t(i) % 64 * 320 / 64 * 64, fiber_main);
    set_ready(f);
  }
}

// Runs the `count` blocks from `first` on, all resident at the same time.
bool run_blocks(Worker& w, const Launch& launch, size_t first, size_t count) {
  worker = &w;
  w.launch = &launch;
  w.resident = count;
  w.current = 0;
  w.at_grid_barrier = 0;
  w.faulted = false;
  while (w.blocks.size() < count) w.blocks.push_back(std::make_unique<RunningBlock>());
  for (size_t b = 0; b < count; ++b) start_block(*w.blocks[b], launch, first + b);
  Fiber* start = next_ready();
  self = start;
  switch_to(w.scheduler, start->context);
  self = nullptr;
  return !w.faulted;
}

// ---- Operating-system threads

class Pool {
 public:
  Pool() {
    const char* text = std::getenv("LOOPLM_EMULATOR_THREADS");
    const int threads = text ? std::atoi(text) : int(std::thread::hardware_concurrency());
    for (int i = 1; i < threads; ++i) threads_.emplace_back([this] { serve(); });
  }
  ~Pool() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  bool run(const Launch& launch, std::string& error) {
    const std::lock_guard one_launch(launches_);
    const size_t blocks = size_t(launch.grid.x) * launch.grid.y * launch.grid.z;
    Job job{&launch, blocks, {}, {}, {}, false};
    if (launch.cooperative || blocks == 1 || threads_.empty()) {
      work(job);
    } else {
      {
        const std::lock_guard lock(mutex_);
        job_ = &job;
        working_ = threads_.size();
        ++generation_;
      }
      wake_.notify_all();
      work(job);
      std::unique_lock lock(mutex_);
      done_.wait(lock, [this] { return working_ == 0; });
    }
    error = job.error;
    return !job.failed;
  }

 private:
  struct Job {
    const Launch* launch;
    size_t blocks;
    std::atomic<size_t> next;
    std::mutex mutex;
    std::string error;
    std::atomic<bool> failed;
  };

  static void work(Job& job) {
    static thread_local Worker own;
    while (!job.failed) {
      const size_t count = job.launch->cooperative ? job.blocks : 1, first = job.next.fetch_add(count);
      if (first >= job.blocks) return;
      if (run_blocks(own, *job.launch, first, count)) continue;
      const std::lock_guard lock(job.mutex);
      if (!job.failed) job.error = own.fault;
      job.failed = true;
    }
  }

  void serve() {
    uint64_t seen = 0;
    std::unique_lock lock(mutex_);
    while (true) {
      wake_.wait(lock, [&] { return stop_ || generation_ != seen; });
      if (stop_) return;
      seen = generation_;
      lock.unlock();
      work(*job_);
      lock.lock();
      if (--working_ == 0) done_.notify_one();
    }
  }

  std::vector<std::thread> threads_;
  std::mutex launches_, mutex_;
  std::condition_variable wake_, done_;
  Job* job_ = nullptr;
  size_t working_ = 0;
  uint64_t generation_ = 0;
  bool stop_ = false;
};

}  // namespace

bool run(const Launch& launch, std::string& error) {
  const size_t threads = size_t(launch.block.x) * launch.block.y * launch.block.z;
  if (threads == 0 || threads > max_threads || launch.dynamic_bytes > shared_limit()) {
    error = "a launch of " + std::to_string(threads) + " threads and " + std::to_string(launch.dynamic_bytes) +
            " bytes of dynamic shared memory: at most " + std::to_string(max_threads) + " and " + std::to_string(shared_limit());
    return false;
  }
  static Pool& pool = *new Pool;  // never destroyed: an exiting process may stop its devices after static objects are
                                  // destroyed
  return pool.run(launch, error);
}

void fault(const char* format, ...) {
  char text[768];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  fail("%s: block (%u, %u, %u), thread %u", text, self->block->index.x, self->block->index.y, self->block->index.z, self->number);
  switch_to(fiber().context, worker->scheduler);
  std::abort();
}

// ---- Shared memory

void bad_shared_access(const unsigned char* at, size_t bytes, size_t alignment, const unsigned char* begin,
                       const unsigned char* end, bool write) {
  const char* what = write ? "write" : "read";
  if (at < begin || at + bytes > end)
    fault("shared memory out of bounds: a %s of %zu bytes at byte %td of an array of %td", what, bytes, at - begin, end - begin);
  fault("misaligned shared memory: a %s of %zu bytes at byte %td of an array, not a multiple of %zu", what, bytes, at - begin,
        alignment);
}

void bad_order(const unsigned char* at, bool write) {
  const Granule granule = self->block->granules[(at - self->block->shared) / 2];
  const ptrdiff_t offset = at - self->block->shared;
  if (granule.writer == under_way)
    fault("shared memory %s while a cp.async to it is under way, byte %td", write ? "written" : "read", offset);
  if (granule.writer == 0 && !write) fault("shared memory read that nothing has written, byte %td", offset);
  const bool writer = granule.writer != 0 && !self->after(granule.writer);
  fault("a race: shared memory byte %td %s without a barrier after thread %u %s it", offset, write ? "written" : "read",
        (writer ? granule.writer : granule.reader) & (max_threads - 1), writer ? "wrote" : "read");
}

Span static_shared(const void* key, size_t bytes) {
  RunningBlock& block = running();
  for (const StaticArray& array : block.arrays)
    if (array.key == key)
      return {block.shared + array.begin, block.shared + array.begin, block.shared + array.begin + array.bytes};
  const size_t begin = block.shared_bytes;
  if (begin + bytes > max_shared_bytes) fault("a block with more than %zu bytes of shared memory", max_shared_bytes);
  block.shared_bytes = std::min(max_shared_bytes, (begin + bytes + 127) / 128 * 128);
  block.arrays.push_back({key, begin, bytes});
  return {block.shared + begin, block.shared + begin, block.shared + begin + bytes};
}

Span dynamic_shared(size_t byte_offset, size_t bytes) {
  if (byte_offset + bytes > self->block->dynamic_bytes)
    fault("dynamic shared memory: bytes %zu to %zu of %zu", byte_offset, byte_offset + bytes, self->block->dynamic_bytes);
  unsigned char* begin = self->block->shared + byte_offset;
  return {begin, begin, begin + bytes};
}

// The copy is made when the thread waits for it: as late as a GPU may make it.
void copy_async(const Span& to, const void* from, uint32_t bytes, int valid) {
  to.require(bytes, bytes, true);
  if (valid < 0 || uint32_t(valid) > bytes) fault("cp.async of %d valid bytes of %u", valid, bytes);
  if (valid > 0 && reinterpret_cast<uintptr_t>(from) % bytes != 0) fault("cp.async of %u bytes from %p", bytes, from);
  if (!check_write(to.at, bytes, under_way)) bad_order(to.at, true);
  if (counting_banks) note_access(*self, to.at, bytes);
  self->copies.push_back({to.at, static_cast<const unsigned char*>(from), bytes, uint32_t(valid)});
}

void copy_async_commit() { self->copies.push_back({nullptr, nullptr, 0, 0}); }

void copy_async_wait(int groups) {
  std::vector<AsyncCopy>& copies = self->copies;
  int committed = 0;
  for (const AsyncCopy& copy : copies) committed += copy.to == nullptr;
  size_t done = 0;
  for (; committed > groups; ++done) {
    const AsyncCopy& copy = copies[done];
    if (!copy.to) {
      --committed;
      continue;
    }
    std::memcpy(copy.to, copy.from, copy.valid);
    std::memset(copy.to + copy.valid, 0, copy.bytes - copy.valid);
    Granule* granule = self->block->granules + (copy.to - self->block->shared) / 2;
    for (uint32_t i = 0; i < copy.bytes / 2; ++i) granule[i].writer = self->stamp();
  }
  copies.erase(copies.begin(), copies.begin() + ptrdiff_t(done));
}

// ---- Barriers and collectives

void barrier(int id, int threads, bool wait, Where where) {
  RunningBlock& block = running();
  Fiber& f = fiber();
  if (id < 0 || id >= barriers || (id > 0 && (threads <= 0 || threads % warp_size != 0)))
    fault("barrier %d of %d threads, %s:%u", id, threads, where.file_name(), where.line());
  Barrier& b = block.barrier[id];
  const int expected = id == 0 ? block.threads : threads;
  if (b.arrived == 0) {
    b.expected = expected;
    b.where = where;
    std::fill_n(b.seen, block.warps, 0u);
  }
  if (b.expected != expected)
    fault("barrier %d of %d threads at %s:%u, where others wait for %d", id, expected, where.file_name(), where.line(),
          b.expected);
  if (id == 0 && (b.where.line() != where.line() || b.where.file_name() != where.file_name()))
    fault("__syncthreads at %s:%u, while other threads wait in another one at %s:%u", where.file_name(), where.line(),
          b.where.file_name(), b.where.line());
  const uint32_t own = f.number / warp_size;
  for (int w = 0; w < block.warps; ++w) b.seen[w] = std::max(b.seen[w], f.warp->clock[w] + (uint32_t(w) == own));
  ++b.arrived;
  if (wait) b.waiting.push_back(&f);
  else f.warp->clock[own] += f.lane() == warp_size - 1;  // the barrier does not cover what the warp does from now on
  if (b.arrived < b.expected) {
    if (!wait) return;
    f.where = where;
    f.waits_for = id == 0 ? "__syncthreads" : "a named barrier";
    set_waiting(f, State::at_barrier);
    return give_way();
  }
  for (int w = 0; counting_banks && w < block.warps; ++w)
    settle_accesses(block.fibers[size_t(w * warp_size)], worker->launch->kernel);
  for (Fiber* waiting : b.waiting) {
    for (int w = 0; w < block.warps; ++w) waiting->warp->clock[w] = std::max(waiting->warp->clock[w], b.seen[w]);
    set_ready(*waiting);
  }
  b.arrived = 0;
  b.waiting.clear();
}

void grid_barrier(Where where) {
  if (!worker->launch->cooperative)
    fault("grid_barrier in a launch that is not cooperative, %s:%u", where.file_name(), where.line());
  Fiber& f = fiber();
  const int expected = running().threads * int(worker->resident);
  if (worker->at_grid_barrier == 0) worker->grid_barrier_where = where;
  const Where first = worker->grid_barrier_where;
  if (first.line() != where.line() || first.file_name() != where.file_name())
    fault("grid_barrier at %s:%u, while other threads wait in another one at %s:%u", where.file_name(), where.line(),
          first.file_name(), first.line());
  if (++worker->at_grid_barrier < expected) {
    f.where = where;
    f.waits_for = "grid_barrier";
    set_waiting(f, State::at_grid_barrier);
    return give_way();
  }
  worker->at_grid_barrier = 0;
  for (size_t i = 0; i < worker->resident; ++i) {
    RunningBlock& block = *worker->blocks[i];
    uint32_t seen[max_warps];
    for (int w = 0; w < block.warps; ++w) seen[w] = block.warp[size_t(w)].clock[w] + 1;
    for (int w = 0; w < block.warps; ++w) std::copy_n(seen, block.warps, block.warp[size_t(w)].clock);
    for (int t = 0; t < block.threads; ++t) set_ready(block.fibers[size_t(t)]);
  }
}

const char* name(Kind kind) {
  switch (kind) {
    case Kind::syncwarp:
      return "__syncwarp";
    case Kind::shuffle:
      return "a shuffle";
    case Kind::vote:
      return "a vote";
    case Kind::load_matrix:
      return "load_matrix";
    case Kind::mma:
      return "mma";
  }
  return "";
}

void collective(Kind kind, uint32_t mask, const void* in, void* out, void (*compute)(Collective&), Where where) {
  Fiber& f = fiber();
  FiberWarp& warp = *static_cast<FiberWarp*>(f.warp);
  const uint32_t bit = 1u << f.lane();
  if (!(mask & bit))
    fault("%s with the mask %08x, which leaves out its own lane, %s:%u", name(kind), mask, where.file_name(), where.line());
  // If other lanes wait for this one, it must join them. Lanes that wait in another mask, without this lane, are not
  // affected.
  auto found = warp.collectives.begin();
  while (found != warp.collectives.end() && !(found->mask & bit)) ++found;
  if (found == warp.collectives.end()) {
    warp.collectives.emplace_back();
    found = warp.collectives.end() - 1;
    found->mask = mask;
    found->kind = kind;
    found->where = where;
  }
  Collective& c = *found;
  if (c.mask != mask)
    fault("%s with the mask %08x at %s:%u, while other lanes are in %s with the mask %08x at %s:%u", name(kind), mask,
          where.file_name(), where.line(), name(c.kind), c.mask, c.where.file_name(), c.where.line());
  if (c.kind != kind || c.where.line() != where.line() || c.where.file_name() != where.file_name())
    fault("%s at %s:%u, while other lanes are in %s at %s:%u", name(kind), where.file_name(), where.line(), name(c.kind),
          c.where.file_name(), c.where.line());
  c.arrived |= bit;
  c.in[f.lane()] = in;
  c.out[f.lane()] = out;
  if (c.arrived != mask) {
    f.where = where;
    f.waits_for = name(kind);
    set_waiting(f, State::in_collective);
    return give_way();
  }
  if (counting_banks && mask == 0xFFFFFFFFu) settle_accesses(f, worker->launch->kernel);
  if (compute) compute(c);
  if (kind == Kind::syncwarp) ++warp.clock[f.number / warp_size];
  warp.collectives.erase(found);
  warp.ready |= mask;
  running().ready_warps |= 1u << f.number / warp_size;
}

}  // namespace looplm::emulator

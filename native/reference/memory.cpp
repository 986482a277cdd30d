// Contexts and memory; device memory is ordinary host memory.
#include <cstdlib>
#include <cstring>
#include <new>

#include "context.h"

namespace looplm::reference {
namespace {

constexpr std::align_val_t alignment{64};

void* open(int32_t, int32_t) { return new (std::nothrow) Context; }
void close(void* ctx) { delete static_cast<Context*>(ctx); }
const char* last_error(void* ctx) { return ctx ? static_cast<Context*>(ctx)->error.c_str() : "no context"; }
const char* describe(void*) { return "float64 loops, 1 thread"; }
int properties(void*, LoopDeviceProperties* out) {
  *out = {1u << LOOP_F64, 1, 0, 0, int64_t(24) << 20, int64_t(64) << 20, 2048, 1, 1, 1};
  return 0;
}

void* allocate(void*, size_t bytes) { return ::operator new(bytes, alignment, std::nothrow); }
void release(void*, void* p) { ::operator delete(p, alignment); }

int copy(void*, void* dst, const void* src, size_t bytes) {
  if (bytes > 0) std::memmove(dst, src, bytes);
  return 0;
}

int zero(void*, void* dst, size_t bytes) {
  if (bytes > 0) std::memset(dst, 0, bytes);
  return 0;
}

int synchronize(void*) { return 0; }

}  // namespace

void add_memory(LoopBackend& table) {
  table.open = open;
  table.close = close;
  table.last_error = last_error;
  table.describe = describe;
  table.properties = properties;
  table.allocate = allocate;
  table.release = release;
  table.copy_in = copy;
  table.copy_out = copy;
  table.copy = copy;
  table.zero = zero;
  table.synchronize = synchronize;
}

}  // namespace looplm::reference

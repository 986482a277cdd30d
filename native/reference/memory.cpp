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
  *out = {.model_dtypes = 1u << LOOP_F64,
          .host_visible = 1,
          .memory_free = 0,
          .memory_total = 0,
          .logits_bytes = int64_t(24) << 20,  // this and the next two as on the CPU
          .micro_batch_bytes = int64_t(64) << 20,
          .micro_batch_tokens = 2048,
          .quantized_rows = 1,
          .int8_activations = 1,
          .asymmetric_weights = 1};
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

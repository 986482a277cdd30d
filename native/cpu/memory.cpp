#include "memory.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>

#include "context.h"
#if defined(__linux__)
#include <sys/mman.h>  // defines: madvise
#endif

namespace looplm::cpu {

// Large arrays should be in huge pages, if Linux grants them. Page table walks would otherwise cost part of the memory
// bandwidth, and most of it for attention over a cache. Small arrays do without, because untouched parts of a huge page count
// as used.
constexpr size_t LARGE = size_t(4) << 20;

static void prefer_large_pages([[maybe_unused]] void* p, [[maybe_unused]] size_t bytes) {
#if defined(__linux__)
  const uintptr_t page = 4096, begin = (reinterpret_cast<uintptr_t>(p) + page - 1) / page * page,
                  end = (reinterpret_cast<uintptr_t>(p) + bytes) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // a hint that the system may ignore
#endif
}

void* allocate_aligned(size_t bytes) {
  if (bytes > size_t(PTRDIFF_MAX)) return nullptr;
  void* p = std::aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
  if (p && bytes >= LARGE) prefer_large_pages(p, bytes);
  return p;
}

static thread_local char open_error[256] = "no context";

void* open_context(int32_t, int32_t threads) {
  try {
    return make_context(threads);
  } catch (const std::exception& e) {  // out of memory, or the system refused a thread
    std::snprintf(open_error, sizeof open_error, "%d threads: %s; use fewer threads", int(threads), e.what());
    return nullptr;
  }
}
void close_context(void* ctx) { delete static_cast<Context*>(ctx); }
const char* last_error(void* ctx) { return ctx ? static_cast<Context*>(ctx)->error : open_error; }
const char* describe(void* ctx) { return static_cast<Context*>(ctx)->description; }
int properties(void*, LoopDeviceProperties* out) {
  *out = {.model_dtypes = 1u << LOOP_F32 | 1u << LOOP_BF16,
          .host_visible = 1,
          .memory_free = 0,
          .memory_total = 0,
          .logits_bytes = int64_t(24) << 20,  // 128 rows of 49,152 tokens
          .micro_batch_bytes = int64_t(64) << 20,
          .micro_batch_tokens = 2048,
          .quantized_rows = QUANTIZED_ROWS,
          .int8_activations = 2,
          .asymmetric_weights = 1};
  return 0;
}
void* allocate(void*, size_t bytes) { return allocate_aligned(bytes); }
void release(void*, void* p) { std::free(p); }
int copy_in(void*, void* dst, const void* src, size_t bytes) { return std::memcpy(dst, src, bytes), 0; }
int copy_out(void*, void* dst, const void* src, size_t bytes) { return std::memcpy(dst, src, bytes), 0; }
int copy(void*, void* dst, const void* src, size_t bytes) { return std::memmove(dst, src, bytes), 0; }
int zero(void*, void* dst, size_t bytes) { return std::memset(dst, 0, bytes), 0; }
int synchronize(void*) { return 0; }

}  // namespace looplm::cpu

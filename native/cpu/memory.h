// The part of the kernel table that is the same for all instruction sets: contexts, memory, errors.
#pragma once
#include "../backend.h"

namespace looplm::cpu {

void* open_context(int32_t device, int32_t threads);
void close_context(void* ctx);
const char* last_error(void* ctx);
const char* describe(void* ctx);
int properties(void* ctx, LoopDeviceProperties* out);
void* allocate(void* ctx, size_t bytes);
void release(void* ctx, void* p);
int copy_in(void* ctx, void* dst, const void* host_src, size_t bytes);
int copy_out(void* ctx, void* host_dst, const void* src, size_t bytes);
int copy(void* ctx, void* dst, const void* src, size_t bytes);
int zero(void* ctx, void* dst, size_t bytes);
int synchronize(void* ctx);

}  // namespace looplm::cpu

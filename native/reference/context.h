// Shared by the files of the reference backend: the context, its errors, and the functions that fill the table.
#pragma once
#include <string>

#include "../backend.h"

namespace looplm::reference {

struct Context {
  std::string error;
};

// Sets last_error and returns the status for the kernel to return.
inline int fail(void* ctx, const std::string& message) {
  static_cast<Context*>(ctx)->error = message;
  return 1;
}

// Kernels of the model support only float64.
inline int require_float64(void* ctx, LoopDType dt, const char* operation) {
  if (dt == LOOP_F64) return 0;
  return fail(ctx, std::string(operation) + ": the reference backend computes in float64, not in " + loop_dtype_name(dt));
}

void add_memory(LoopBackend& table);
void add_gemm(LoopBackend& table);
void add_rows(LoopBackend& table);
void add_noise(LoopBackend& table);
void add_norm(LoopBackend& table);
void add_rope(LoopBackend& table);
void add_attention(LoopBackend& table);
void add_decode(LoopBackend& table);
void add_coded_cache(LoopBackend& table);
void add_swiglu(LoopBackend& table);
void add_exit(LoopBackend& table);
void add_head(LoopBackend& table);
void add_optimizer(LoopBackend& table);
void add_sample(LoopBackend& table);
void add_tensor(LoopBackend& table);

}  // namespace looplm::reference

// What the host side of every CUDA file shares: the context, its errors, scratch memory and the way into a call.
//
// A context is one device, one stream and one thread at a time. Everything is ordered by the stream; only copies to the host,
// `synchronize` and the sums that the host reads wait for it.
#pragma once
#include <string>
#include <vector>

#include "../native/backend.h"
#include "simt.h"

namespace looplm::cuda {

struct Lt;  // cuBLASLt, when the machine has it (cublaslt.h)

// What a kernel found wrong with its arguments: written to pinned memory by the device, reported by the next call that waits.
struct KernelFault {
  int32_t raised;
  int32_t value, limit;
};

// Two halves of pinned memory on the way between host and device. A half is reused once the copies from it have been made.
struct Staging {
  char* half[2] = {};
  cudaEvent_t copied[2] = {};
  size_t size = 0, used = 0;
  int active = 0;
};

// How decoded tokens are computed, by LOOPLM_CUDA_DECODE: one kernel for a token of one row and recordings for more rows;
// recordings alone; each kernel launched on its own. The results are the same bits.
enum class DecodeBy { token, graph, launches };

struct Context {
  int device = 0;
  cudaStream_t stream = nullptr;
  cudaMemPool_t pool = nullptr;
  std::string error, description;
  Staging staging;
  void* scratch = nullptr;
  size_t scratch_bytes = 0;
  KernelFault* kernel_fault = nullptr;  // pinned, visible to the device
  Lt* lt = nullptr;
  DecodeBy decode = DecodeBy::token;
  bool recording = false;      // the stream is being captured: nothing may wait, and no memory may be taken
  int recordings = 0;          // that may be replayed
  std::vector<void*> retired;  // scratch memory that recordings may still use
};

int fail(Context& c, const std::string& message);
// 0, or fail with what the runtime says about `operation`.
int check(Context& c, cudaError_t status, const char* operation);
// Waits for the stream; fails when a kernel complained.
int wait(Context& c, const char* operation);
// Memory that the next call may overwrite. NULL when there is none, after fail.
void* scratch(Context& c, size_t bytes);
// Host copy of device memory, after everything before it.
int read_back(Context& c, void* host, const void* device, size_t bytes);
// And the other way. The host's memory is free when it returns.
int send(Context& c, void* device, const void* host, size_t bytes);

inline Context& enter(void* ctx) {
  auto& c = *static_cast<Context*>(ctx);
  cudaSetDevice(c.device);  // a thread may have used another one since
  return c;
}

// f(c, float{} or bf16{}) for dt, and whether its launches were accepted.
template <class F>
int with_dtype(void* ctx, const char* operation, LoopDType dt, F&& f) {
  Context& c = enter(ctx);
  int status = 0;
  if (dt == LOOP_F32) status = f(c, float{});
  else if (dt == LOOP_BF16) status = f(c, bf16{});
  else return fail(c, std::string(operation) + ": device cuda computes in float32 and bfloat16, not in " + loop_dtype_name(dt));
  return status ? status : check(c, cudaGetLastError(), operation);
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

void add_memory(LoopBackend& table);
void add_gemm(LoopBackend& table);
void add_quantized(LoopBackend& table);
void add_rows(LoopBackend& table);
void add_norm(LoopBackend& table);
void add_rope(LoopBackend& table);
void add_attention(LoopBackend& table);
void add_decode_attention(LoopBackend& table);
void add_decode_token(LoopBackend& table);
void add_recording(LoopBackend& table);
void add_swiglu(LoopBackend& table);
void add_exit(LoopBackend& table);
void add_head(LoopBackend& table);
void add_optimizer(LoopBackend& table);
void add_noise_kernels(LoopBackend& table);
void add_sample(LoopBackend& table);
void add_tensor(LoopBackend& table);
void add_link(LoopBackend& table);

}  // namespace looplm::cuda

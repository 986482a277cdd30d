// Shared by the host code of all CUDA files: the context, its errors, scratch memory and the entry of a call.
//
// A context belongs to one device and one stream, and is used by one thread at a time. The stream orders everything. Only
// copies to the host, `synchronize`, and sums that the host reads wait for it.
#pragma once
#include <string>
#include <vector>

#include "../native/backend.h"
#include "../native/guarded.h"
#include "simt.h"

namespace looplm::cuda {

struct Lt;  // cuBLASLt, if it is installed (cublaslt.h)

// An error in a kernel's arguments. The device writes it to pinned memory; the next call that waits reports it.
struct KernelFault {
  int32_t raised;
  int32_t value, limit;
};

// Two halves of pinned memory for copies between host and device. A half is reused when its copies have finished.
struct Staging {
  char* half[2] = {};
  cudaEvent_t copied[2] = {};
  size_t size = 0, used = 0;
  int active = 0;
};

// How tokens are decoded, set by LOOPLM_CUDA_DECODE. token: one kernel per token for a single row, recordings for more rows.
// graph: recordings only. launches: every kernel is launched separately. All give the same bits.
enum class DecodeBy { token, graph, launches };

struct Context {
  int device = 0;
  cudaStream_t stream = nullptr;
  cudaMemPool_t pool = nullptr;
  std::string error, description;
  Staging staging;
  void* scratch = nullptr;
  size_t scratch_bytes = 0;
  KernelFault* kernel_fault = nullptr;  // pinned memory, visible to the device
  Lt* lt = nullptr;
  DecodeBy decode = DecodeBy::token;
  bool recording = false;      // the stream is being captured: no waiting and no allocation
  int recordings = 0;          // number of recordings that exist
  std::vector<void*> retired;  // old scratch memory that recordings may still use
};

int fail(Context& c, const std::string& message);
// Returns 0, or fails with the runtime's message about `operation`.
int check(Context& c, cudaError_t status, const char* operation);
int refuse_dtype(Context& c, const char* operation, LoopDType dt);
// Waits for the stream. Fails if a kernel reported a fault.
int wait(Context& c, const char* operation);
// Scratch memory, which the next call may overwrite. NULL after fail() if there is none.
void* scratch(Context& c, size_t bytes);
// Copies device memory to the host, after all earlier work.
int read_back(Context& c, void* host, const void* device, size_t bytes);
// Copies host memory to the device. The host memory may be reused when it returns.
int send(Context& c, void* device, const void* host, size_t bytes);

inline Context& enter(void* ctx) {
  auto& c = *static_cast<Context*>(ctx);
  cudaSetDevice(c.device);  // the thread may have used another device since
  return c;
}

// Calls f(c, float{} or bf16{}) for dt, and checks its launches.
template <class F>
int with_dtype(void* ctx, const char* operation, LoopDType dt, F&& f) {
  Context& c = enter(ctx);
  int status = 0;
  if (dt == LOOP_F32) status = f(c, float{});
  else if (dt == LOOP_BF16) status = f(c, bf16{});
  else return refuse_dtype(c, operation, dt);
  return status ? status : check(c, cudaGetLastError(), operation);
}

// Only host memory can run out.
inline int out_of_host_memory(void* ctx, const std::exception&) {
  static_cast<Context*>(ctx)->error = "no host memory";  // short enough for a string to hold without an allocation
  return LOOP_OUT_OF_MEMORY;
}
template <auto function>
constexpr auto guarded = Guarded<function, out_of_host_memory>::call;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

void add_memory(LoopBackend& table);
void add_gemm(LoopBackend& table);
void add_quantized(LoopBackend& table);
void add_rows(LoopBackend& table);
void add_norm(LoopBackend& table);
void add_rope(LoopBackend& table);
void add_attention(LoopBackend& table);
void add_decode_attention(LoopBackend& table);
void add_coded_cache(LoopBackend& table);
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

// The only exported symbol of the library: the kernel table for CUDA. Loading the library needs no driver; `open` reports
// what is missing.
#include "context.h"

namespace looplm::cuda {
namespace {

LoopBackend make_table() {
  LoopBackend table{};
  table.abi = LOOPLM_BACKEND_ABI;
  table.name = LOOPLM_CUDA_NAME;  // "cuda", or "cuda-emulated" if compiled by g++
  add_memory(table);
  add_gemm(table);
  add_quantized(table);
  add_rows(table);
  add_norm(table);
  add_rope(table);
  add_attention(table);
  add_decode_attention(table);
  add_coded_cache(table);
  add_decode_token(table);
  add_recording(table);
  add_swiglu(table);
  add_exit(table);
  add_head(table);
  add_optimizer(table);
  add_noise_kernels(table);
  add_sample(table);
  add_tensor(table);
  add_link(table);
  return table;
}

}  // namespace
}  // namespace looplm::cuda

extern "C" __attribute__((visibility("default"))) const LoopBackend* looplm_cuda_backend(void) {
  static const LoopBackend table = looplm::cuda::make_table();
  return &table;
}

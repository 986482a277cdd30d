// The kernel table of one instruction set.
#include <cstdio>

#include "../guarded.h"
#include "filtered.h"
#include "kernels.h"
#include "memory.h"

namespace looplm::cpu::LOOPLM_ISA {

// If scratch memory could not be allocated, the kernel can be called again.
static int out_of_scratch(void* ctx, const std::exception& e) {
  const auto* scratch = dynamic_cast<const OutOfScratch*>(&e);
  if (!scratch) throw;
  auto& error = static_cast<Context*>(ctx)->error;
  std::snprintf(error, sizeof error, "a kernel could not allocate %zu bytes of scratch memory", scratch->bytes);
  return LOOP_OUT_OF_MEMORY;
}
template <auto kernel>
constexpr auto guarded = Guarded<kernel, out_of_scratch>::call;

extern const LoopBackend table;
const LoopBackend table = {
    .abi = LOOPLM_BACKEND_ABI,
    .name = "cpu",
    .open = open_context,
    .close = close_context,
    .last_error = last_error,
    .describe = describe,
    .properties = properties,
    .allocate = allocate,
    .release = release,
    .copy_in = copy_in,
    .copy_out = copy_out,
    .copy = copy,
    .zero = zero,
    .synchronize = synchronize,
    .gemm = guarded<gemm>,
    .gemm_quantized = guarded<gemm_quantized>,
    .embed = guarded<embed>,
    .embed_backward = guarded<embed_backward>,
    .residual_norm = guarded<residual_norm>,
    .residual_norm_backward = guarded<residual_norm_backward>,
    .rope = guarded<rope>,
    .attention = guarded<attention>,
    .attention_backward = guarded<attention_backward>,
    .swiglu = guarded<swiglu>,
    .swiglu_backward = guarded<swiglu_backward>,
    .gate = guarded<gate>,
    .gate_backward = guarded<gate_backward>,
    .exit_pdf = guarded<exit_pdf>,
    .exit_pdf_backward = guarded<exit_pdf_backward>,
    .gather_rows = guarded<gather_rows>,
    .scatter_add_rows = guarded<scatter_add_rows>,
    .compare_rows = guarded<compare_rows>,
    .head_rows = guarded<head_rows>,
    .policy_gradient = guarded<policy_gradient>,
    .sum_squares = guarded<sum_squares>,
    .adamw = guarded<adamw>,
    .moving_average = guarded<moving_average>,
    .add_noise = guarded<add_noise>,
    .draw_normals = guarded<draw_normals>,
    .cache_write = guarded<cache_write>,
    .decode_attention = guarded<decode_attention>,
    .cache_encode = guarded<cache_encode>,
    .cache_decode = guarded<cache_decode>,
    .cache_encode_residuals = guarded<cache_encode_residuals>,
    .coded_attention = guarded<coded_attention>,
    .sample = guarded<sample>,
    .edit_logits = edit_logits,
    .decode_token = nullptr,
    .record = nullptr,
    .recorded = nullptr,
    .replay = nullptr,
    .forget = nullptr,
    .binary = guarded<binary>,
    .copy_strided = guarded<copy_strided>,
    .softmax = guarded<softmax>,
    .reduce = guarded<reduce>,
    .byte_products = guarded<byte_products>,
};

}  // namespace looplm::cpu::LOOPLM_ISA

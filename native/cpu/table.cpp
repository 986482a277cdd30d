// The kernel table of one instruction set.
#include "kernels.h"
#include "memory.h"

namespace looplm::cpu::LOOPLM_ISA {

#define LOOPLM_TEXT_OF(x) #x
#define LOOPLM_TEXT(x) LOOPLM_TEXT_OF(x)

static void* open(int32_t, int32_t threads) { return open_context(threads, LOOPLM_TEXT(LOOPLM_ISA)); }

extern const LoopBackend table;
const LoopBackend table = {
    .abi = LOOPLM_BACKEND_ABI,
    .name = "cpu",
    .open = open,
    .close = close_context,
    .last_error = last_error,
    .describe = describe,
    .supports = supports,
    .allocate = allocate,
    .release = release,
    .copy_in = copy_in,
    .copy_out = copy_out,
    .copy = copy,
    .zero = zero,
    .synchronize = synchronize,
    .gemm = gemm,
    .gemm_quantized = gemm_quantized,
    .embed = embed,
    .embed_backward = embed_backward,
    .residual_norm = residual_norm,
    .residual_norm_backward = residual_norm_backward,
    .rope = rope,
    .attention = attention,
    .attention_backward = attention_backward,
    .swiglu = swiglu,
    .swiglu_backward = swiglu_backward,
    .gate = gate,
    .gate_backward = gate_backward,
    .exit_pdf = exit_pdf,
    .exit_pdf_backward = exit_pdf_backward,
    .gather_rows = gather_rows,
    .scatter_add_rows = scatter_add_rows,
    .head_rows = head_rows,
    .policy_gradient = policy_gradient,
    .sum_squares = sum_squares,
    .adamw = adamw,
    .moving_average = moving_average,
    .add_noise = add_noise,
    .cache_write = cache_write,
    .decode_attention = decode_attention,
    .sample = sample,
    .decode_token = nullptr,
    .record = nullptr,
    .recorded = nullptr,
    .replay = nullptr,
    .forget = nullptr,
    .binary = binary,
    .copy_strided = copy_strided,
    .softmax = softmax,
    .reduce = reduce,
};

}  // namespace looplm::cpu::LOOPLM_ISA

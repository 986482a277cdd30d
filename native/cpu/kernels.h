// Shared by the kernel files of one instruction set: the context, and the declarations of the functions in the kernel table.
#pragma once
#include <type_traits>  // defines: remove_pointer_t

#include "../backend.h"
#include "context.h"
#include "simd.h"

namespace looplm::cpu::LOOPLM_ISA {

#define LOOPLM_KERNEL(name) std::remove_pointer_t<decltype(LoopBackend::name)> name
LOOPLM_KERNEL(gemm);            // gemm.cpp
LOOPLM_KERNEL(gemm_quantized);  // quantized.cpp
LOOPLM_KERNEL(byte_products);
LOOPLM_KERNEL(embed);  // rows.cpp
LOOPLM_KERNEL(embed_backward);
LOOPLM_KERNEL(gather_rows);
LOOPLM_KERNEL(compare_rows);
LOOPLM_KERNEL(scatter_add_rows);
LOOPLM_KERNEL(residual_norm);  // norm.cpp
LOOPLM_KERNEL(residual_norm_backward);
LOOPLM_KERNEL(rope);       // rope.cpp
LOOPLM_KERNEL(attention);  // attention.cpp
LOOPLM_KERNEL(attention_backward);
LOOPLM_KERNEL(swiglu);  // swiglu.cpp
LOOPLM_KERNEL(swiglu_backward);
LOOPLM_KERNEL(gate);  // exit.cpp
LOOPLM_KERNEL(gate_backward);
LOOPLM_KERNEL(exit_pdf);
LOOPLM_KERNEL(exit_pdf_backward);
LOOPLM_KERNEL(head_rows);  // head.cpp
LOOPLM_KERNEL(policy_gradient);
LOOPLM_KERNEL(sum_squares);  // optimizer.cpp
LOOPLM_KERNEL(adamw);
LOOPLM_KERNEL(moving_average);
LOOPLM_KERNEL(add_noise);     // noise.cpp
LOOPLM_KERNEL(draw_normals);  // normals.cpp
LOOPLM_KERNEL(cache_write);   // decode.cpp
LOOPLM_KERNEL(decode_attention);
LOOPLM_KERNEL(cache_encode);  // coded_cache.cpp
LOOPLM_KERNEL(cache_decode);
LOOPLM_KERNEL(cache_encode_residuals);
LOOPLM_KERNEL(coded_attention);
LOOPLM_KERNEL(sample);  // sample.cpp
LOOPLM_KERNEL(binary);  // tensor.cpp
LOOPLM_KERNEL(copy_strided);
LOOPLM_KERNEL(softmax);
LOOPLM_KERNEL(reduce);
#undef LOOPLM_KERNEL

}  // namespace looplm::cpu::LOOPLM_ISA

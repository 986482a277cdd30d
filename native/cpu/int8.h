// Products of 8-bit activations with weights of 8 or 4 bits. int8.cpp is compiled once for each instruction set that differs
// in these products. All builds read the same weight layout, so any kernel table can use any of them.
#pragma once
#include "../backend.h"

namespace looplm::cpu {

struct Context;

struct Int8Kernels {
  // C[m,n] = A Bᵀ. A: act [m, k] of dtype dt; b.activation_bits is 8. C: float32, or with bf16_out bfloat16.
  void (*product)(Context& ctx, LoopDType dt, int64_t m, int64_t n, int64_t k, const void* a, int64_t lda, const LoopQuantized& b,
                  void* c, int64_t ldc, bool bf16_out);
  // Measures the peak rate, see LoopBackend's byte_products; returns the number of operations.
  double (*roof)(Context& ctx, int64_t rounds);
};

// Interleaved rows of a weight (LoopQuantized's R): the number of lanes of the widest vector.
constexpr int64_t QUANTIZED_ROWS = 16;

}  // namespace looplm::cpu

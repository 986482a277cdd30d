// Products of activations in 8 bits with weights of 8 or 4 bits. One build of int8.cpp for each instruction set that differs in
// them; they read the same weights, so that any table can have any of them.
#pragma once
#include "../backend.h"

namespace looplm::cpu {

struct Context;

struct Int8Kernels {
  // C[m,n] = A Bᵀ, A act [m, k] of dtype dt, b.activation_bits 8. C is float32, or with bf16_out bfloat16.
  void (*product)(Context& ctx, LoopDType dt, int64_t m, int64_t n, int64_t k, const void* a, int64_t lda, const LoopQuantized& b,
                  void* c, int64_t ldc, bool bf16_out);
  // As LoopBackend's byte_products; returns the operations.
  double (*roof)(Context& ctx, int64_t rounds);
};

// Rows of a weight side by side (LoopQuantized's R): as many as the widest vector has lanes.
constexpr int64_t QUANTIZED_ROWS = 16;

}  // namespace looplm::cpu

// What the GEMM and the attention share: how wide a register tile is, and how many elements of k a bfloat16 product takes.
#pragma once
#include "kernels.h"

namespace looplm::cpu::LOOPLM_ISA {

// The micro-kernel keeps MR rows by NR columns of C in registers.
#if LOOPLM_WIDTH == 16
constexpr int MR = 12;
#else
constexpr int MR = 6;
#endif
constexpr int NR = 2 * W;

// What a packed B holds of one element: bfloat16 stays bfloat16 only where the processor multiplies it.
#if defined(__AVX512BF16__)
template <class E>
using Packed = E;
constexpr bool bf16_dot = true;
#else
template <class E>
using Packed = float;
constexpr bool bf16_dot = false;
#endif
// Elements of k in one packed step (bfloat16 dot products take two).
template <class E>
constexpr int KS = (sizeof(E) == 2 && bf16_dot) ? 2 : 1;

}  // namespace looplm::cpu::LOOPLM_ISA

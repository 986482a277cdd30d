// C = op(A) op(B) on the CPU: see gemm.cpp. Callable inside a kernel on one thread (attention does) or over the pool (the table
// does).
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

// Elements in the packed form of a [k, n] B.
template <class E>
inline int64_t packed_size(int64_t n, int64_t k) {
  return (n + NR - 1) / NR * NR * ((k + KS<E> - 1) / KS<E> * KS<E>);
}

// Packs columns [NR·panel, NR·panel + NR) of B over all of k. panel_out has NR·round_up(k) elements. transposed: B is stored [n,
// k].
template <class E>
void pack_panel(bool transposed, int64_t n, int64_t k, const E* b, int64_t ldb, int64_t panel, Packed<E>* panel_out);

// C[m, n] (+)= A[m, k]·B for a packed B, on the calling thread. A row-major. Out is float or E.
template <class E, class Out>
void gemm_packed(int64_t m, int64_t n, int64_t k, const E* a, int64_t lda, const Packed<E>* b, Out* c, int64_t ldc,
                 bool accumulate);

}  // namespace looplm::cpu::LOOPLM_ISA

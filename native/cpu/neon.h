// NEON multiplies with a lane of a register, so broadcasting a value costs no instruction. The products are inline assembly,
// because for the intrinsics g++ copies the lanes and keeps sums in memory. `volatile` keeps them in the order of the code,
// which uses exactly as many live values as there are registers.
#pragma once
#include "simd.h"

#if defined(__aarch64__)
namespace looplm::cpu::LOOPLM_ISA {

// acc + b · a[lane]. `lane` must be a constant after unrolling.
inline __attribute__((always_inline)) vf fma_lane(vf acc, vf b, vf a, int lane) {
  if (lane == 0) asm volatile("fmla %0.4s, %1.4s, %2.s[0]" : "+w"(acc) : "w"(b), "w"(a));
  else if (lane == 1) asm volatile("fmla %0.4s, %1.4s, %2.s[1]" : "+w"(acc) : "w"(b), "w"(a));
  else if (lane == 2) asm volatile("fmla %0.4s, %1.4s, %2.s[2]" : "+w"(acc) : "w"(b), "w"(a));
  else asm volatile("fmla %0.4s, %1.4s, %2.s[3]" : "+w"(acc) : "w"(b), "w"(a));
  return acc;
}

// acc += A B over k, M rows by V vectors. A(i, s) is at a[i·row + s], B(s, ·) at b[s·b_row]. A register holds four steps of
// A.
template <int M, int V>
inline __attribute__((always_inline)) void add_rows(int64_t k, const float* a, int64_t row, const float* b, int64_t b_row,
                                                    vf (&acc)[M][V]) {
  int64_t s = 0;
  for (; s + W <= k; s += W, b += W * b_row) {
    vf x[M];
#pragma GCC unroll 8
    for (int i = 0; i < M; i++) x[i] = load(a + i * row + s);
#pragma GCC unroll 4
    for (int step = 0; step < W; step++)
#pragma GCC unroll 4
      for (int j = 0; j < V; j++) {
        const vf y = load(b + step * b_row + j * W);
#pragma GCC unroll 8
        for (int i = 0; i < M; i++) acc[i][j] = fma_lane(acc[i][j], y, x[i], step);
      }
  }
  for (; s < k; s++, b += b_row) {
    vf x[M];
#pragma GCC unroll 8
    for (int i = 0; i < M; i++) x[i] = splat(a[i * row + s]);
#pragma GCC unroll 4
    for (int j = 0; j < V; j++) {
      const vf y = load(b + j * W);
#pragma GCC unroll 8
      for (int i = 0; i < M; i++) acc[i][j] = fma_lane(acc[i][j], y, x[i], 0);
    }
  }
}

// The same with A(i, s) at a[s·a_row + i] for i < SIDE: the rows of a step are neighbouring lanes.
template <int SIDE, int M, int V>
inline __attribute__((always_inline)) void add_columns(int64_t k, const float* a, int64_t a_row, const float* b, int64_t b_row,
                                                       vf (&acc)[M][V]) {
  static_assert(SIDE >= M && (SIDE == 6 || SIDE == 8));
  for (int64_t s = 0; s < k; s++, a += a_row, b += b_row) {
    const vf x[2] = {load(a), SIDE == 8 ? load(a + 4) : (vf)vcombine_f32(vld1_f32(a + 4), vdup_n_f32(0))};
#pragma GCC unroll 4
    for (int j = 0; j < V; j++) {
      const vf y = load(b + j * W);
#pragma GCC unroll 8
      for (int i = 0; i < M; i++) acc[i][j] = fma_lane(acc[i][j], y, x[i / W], i % W);
    }
  }
}

}  // namespace looplm::cpu::LOOPLM_ISA
#endif

// Sums of products of bytes over a group of k, for M rows by 16 columns, in three ways. SMMLA multiplies two rows with two
// columns over eight elements of k. SDOT takes four neighbours of k, with the activations in a lane of a register. Without
// both, products are 16 bits. The sums are exact, so all three give the same bits. Instructions are inline assembly for the
// reason given in neon.h.
#pragma once
#include "int8.h"
#include "simd.h"

#if defined(__aarch64__)
namespace looplm::cpu::LOOPLM_ISA {

typedef vi vi_any __attribute__((aligned(2), may_alias));
typedef uint8_t vbytes __attribute__((vector_size(16)));
typedef uint64_t vhalves __attribute__((vector_size(16)));
inline vi load_bytes(const void* p) { return *(const vi_any*)p; }
inline vi lower(vi a, vi b) { return (vi)__builtin_shufflevector((vhalves)a, (vhalves)b, 0, 2); }
inline vi upper(vi a, vi b) { return (vi)__builtin_shufflevector((vhalves)a, (vhalves)b, 1, 3); }

constexpr int COLUMN_VECTORS = 4;  // vectors that hold QUANTIZED_ROWS columns
constexpr int BLOCK_EIGHTS = 4;    // runs of eight elements of k per block

// Eight elements of k of four columns, split into two halves in the order of the activations (store_eight). units: of these
// eight elements, at these columns.
template <int BITS>
inline __attribute__((always_inline)) void codes_of(const int32_t* units, vi (&fours)[2]) {
  const vi unit = load_bytes(units);
  if constexpr (BITS == 4) {
    fours[0] = unit & 0x0f0f0f0f;
    fours[1] = (vi)((vbytes)unit >> 4);
  } else {
    fours[0] = unit;
    fours[1] = load_bytes(units + QUANTIZED_ROWS);
  }
}

#if defined(__ARM_FEATURE_DOTPROD)
#if !defined(__ARM_FEATURE_MATMUL_INT8)
constexpr int ROUND_PRODUCTS = 16;
#endif
constexpr int NEON_STRIP = 6;  // rows at a time: 24 of 32 registers hold sums

inline __attribute__((always_inline)) vi dot_lane(vi acc, vi codes, vi x, int lane) {
  if (lane == 0) asm volatile("sdot %0.4s, %1.16b, %2.4b[0]" : "+w"(acc) : "w"(codes), "w"(x));
  else if (lane == 1) asm volatile("sdot %0.4s, %1.16b, %2.4b[1]" : "+w"(acc) : "w"(codes), "w"(x));
  else if (lane == 2) asm volatile("sdot %0.4s, %1.16b, %2.4b[2]" : "+w"(acc) : "w"(codes), "w"(x));
  else asm volatile("sdot %0.4s, %1.16b, %2.4b[3]" : "+w"(acc) : "w"(codes), "w"(x));
  return acc;
}

// x: [eights][M][8]
template <int BITS, int M>
inline __attribute__((always_inline)) void dot_group(const int32_t* units, const int8_t* x, int64_t eights, const int32_t* begins,
                                                     vi (&sums)[M][COLUMN_VECTORS]) {
  vi acc[M][COLUMN_VECTORS];
#pragma GCC unroll 8
  for (int i = 0; i < M; i++)
#pragma GCC unroll 4
    for (int v = 0; v < COLUMN_VECTORS; v++) acc[i][v] = BITS == 4 ? begins[i] - vi{} : vi{};
  for (int64_t e = 0; e < eights; e++, x += 8 * M, units += 2 * QUANTIZED_ROWS * BITS / 8) {
    if (e % BLOCK_EIGHTS == 0)
      for (int line = 0; line < BITS; line++) __builtin_prefetch(units + (line + 32) * QUANTIZED_ROWS);
    vi rows[(M + 1) / 2];
#pragma GCC unroll 3
    for (int p = 0; p < M / 2; p++) rows[p] = load_bytes(x + 16 * p);
    if constexpr (M == 1) rows[0] = (vi)vcombine_s8(vld1_s8(x), vdup_n_s8(0));
#pragma GCC unroll 4
    for (int v = 0; v < COLUMN_VECTORS; v++) {
      vi fours[2];
      codes_of<BITS>(units + v * W, fours);
#pragma GCC unroll 2
      for (int part = 0; part < 2; part++)
#pragma GCC unroll 8
        for (int i = 0; i < M; i++) acc[i][v] = dot_lane(acc[i][v], fours[part], rows[i / 2], i % 2 * 2 + part);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < M; i++)
#pragma GCC unroll 4
    for (int v = 0; v < COLUMN_VECTORS; v++) sums[i][v] = acc[i][v];
}
#else
constexpr int ROUND_PRODUCTS = 8;
constexpr int NEON_STRIP = 2;

// In 16 bits, two products of 8-bit codes can be added, or sixteen products of 4-bit codes.
template <int BITS, int M>
inline __attribute__((always_inline)) void dot_group(const int32_t* units, const int8_t* x, int64_t eights, const int32_t* begins,
                                                     vi (&sums)[M][COLUMN_VECTORS]) {
  static_assert(M <= NEON_STRIP);
  constexpr int together = BITS == 4 ? BLOCK_EIGHTS : 1;  // runs of eight elements summed in 16 bits
  int32x4_t acc[M][COLUMN_VECTORS][2] = {};               // for two columns each
  for (int64_t e = 0; e < eights; e += together, x += 8 * M * together, units += 2 * QUANTIZED_ROWS * BITS / 8 * together) {
#pragma GCC unroll 4
    for (int v = 0; v < COLUMN_VECTORS; v++) {
      int16x8_t products[M][2];
#pragma GCC unroll 8
      for (int four = 0; four < 2 * together; four++) {
        vi fours[2];
        codes_of<BITS>(units + four / 2 * 2 * QUANTIZED_ROWS * BITS / 8 + v * W, fours);
        const int8x16_t codes = (int8x16_t)fours[four % 2];
#pragma GCC unroll 2
        for (int i = 0; i < M; i++) {
          int32_t bytes;
          memcpy(&bytes, x + (four / 2 * M + i) * 8 + four % 2 * 4, 4);
          const int8x16_t a = (int8x16_t)(bytes - vi{});
          products[i][0] = four == 0 ? vmull_s8(vget_low_s8(codes), vget_low_s8(a))
                                     : vmlal_s8(products[i][0], vget_low_s8(codes), vget_low_s8(a));
          products[i][1] = four == 0 ? vmull_high_s8(codes, a) : vmlal_high_s8(products[i][1], codes, a);
        }
      }
#pragma GCC unroll 2
      for (int i = 0; i < M; i++)
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) acc[i][v][half] = vpadalq_s16(acc[i][v][half], products[i][half]);
    }
  }
  for (int i = 0; i < M; i++)
    for (int v = 0; v < COLUMN_VECTORS; v++)
      sums[i][v] = (vi)vpaddq_s32(acc[i][v][0], acc[i][v][1]) + (BITS == 4 ? begins[i] : 0);
}
#endif

#if defined(__ARM_FEATURE_MATMUL_INT8)
constexpr int ROUND_PRODUCTS = 32;
inline __attribute__((always_inline)) vi multiply_bytes(vi acc, vi rows, vi columns) {
  asm volatile("smmla %0.4s, %1.16b, %2.16b" : "+w"(acc) : "w"(rows), "w"(columns));
  return acc;
}
// Eight elements of k of two columns each.
template <int BITS>
inline __attribute__((always_inline)) void column_pairs(const int32_t* units, vi (&pairs)[2]) {
  vi fours[2];
  codes_of<BITS>(units, fours);
  pairs[0] = __builtin_shufflevector(fours[0], fours[1], 0, 4, 1, 5);
  pairs[1] = __builtin_shufflevector(fours[0], fours[1], 2, 6, 3, 7);
}

// Arranges the codes of a block of QUANTIZED_ROWS columns for SMMLA: [eights][8][16] bytes.
template <int BITS>
void expand(const int32_t* units, int64_t eights, int8_t* out) {
  for (int64_t e = 0; e < eights; e++, units += 2 * QUANTIZED_ROWS * BITS / 8, out += 8 * QUANTIZED_ROWS)
#pragma GCC unroll 4
    for (int v = 0; v < COLUMN_VECTORS; v++) {
      vi pairs[2];
      column_pairs<BITS>(units + v * W, pairs);
      *(vi_any*)(out + 32 * v) = pairs[0];
      *(vi_any*)(out + 32 * v + 16) = pairs[1];
    }
}

// Like dot_group, for an even number of rows. Expanded: `codes` have the layout that `expand` writes.
template <int BITS, int M, bool Expanded>
inline __attribute__((always_inline)) void pair_group(const void* codes, const int8_t* x, int64_t eights, const int32_t* begins,
                                                      vi (&sums)[M][COLUMN_VECTORS]) {
  constexpr int P = M / 2, Q = 2 * COLUMN_VECTORS;
  vi acc[P][Q];
#pragma GCC unroll 3
  for (int p = 0; p < P; p++) {
    vi begin = {};
    if constexpr (BITS == 4) begin = vi{begins[2 * p], begins[2 * p], begins[2 * p + 1], begins[2 * p + 1]};
#pragma GCC unroll 8
    for (int q = 0; q < Q; q++) acc[p][q] = begin;
  }
  const auto* bytes = static_cast<const int8_t*>(codes);
  for (int64_t e = 0; e < eights; e++, x += 8 * M, bytes += Expanded ? 16 * Q : 8 * QUANTIZED_ROWS * BITS / 8) {
    if (!Expanded && e % BLOCK_EIGHTS == 0)
      for (int line = 0; line < BITS; line++) __builtin_prefetch(bytes + (line + 32) * QUANTIZED_ROWS * 4);
    vi rows[P];
#pragma GCC unroll 3
    for (int p = 0; p < P; p++) rows[p] = load_bytes(x + 16 * p);
#pragma GCC unroll 4
    for (int v = 0; v < COLUMN_VECTORS; v++) {
      vi pairs[2];
      if constexpr (!Expanded) column_pairs<BITS>(reinterpret_cast<const int32_t*>(bytes) + v * W, pairs);
#pragma GCC unroll 2
      for (int half = 0; half < 2; half++) {
        if constexpr (Expanded) pairs[half] = load_bytes(bytes + 32 * v + 16 * half);
#pragma GCC unroll 3
        for (int p = 0; p < P; p++) acc[p][2 * v + half] = multiply_bytes(acc[p][2 * v + half], rows[p], pairs[half]);
      }
    }
  }
#pragma GCC unroll 3
  for (int p = 0; p < P; p++)
#pragma GCC unroll 4
    for (int v = 0; v < COLUMN_VECTORS; v++) {
      sums[2 * p][v] = lower(acc[p][2 * v], acc[p][2 * v + 1]);
      sums[2 * p + 1][v] = upper(acc[p][2 * v], acc[p][2 * v + 1]);
    }
}
#endif

// Products in registers only: N independent sums, with ROUND_PRODUCTS products each per round.
template <int N>
inline void product_rounds(int64_t rounds) {
  vi sum[N] = {}, codes = vi{} + 0x07070707, x = vi{} + 0x05050505;
  for (int64_t i = 0; i < rounds; i++)
#pragma GCC unroll 8
    for (int j = 0; j < N; j++) {
#if defined(__ARM_FEATURE_MATMUL_INT8)
      sum[j] = multiply_bytes(sum[j], x, codes);
#elif defined(__ARM_FEATURE_DOTPROD)
      sum[j] = dot_lane(sum[j], codes, x, 0);
#else
      asm volatile("smlal %0.8h, %1.8b, %2.8b" : "+w"(sum[j]) : "w"(codes), "w"(x));
#endif
    }
#pragma GCC unroll 8
  for (int j = 0; j < N; j++) asm volatile("" : "+w"(sum[j]));
}

}  // namespace looplm::cpu::LOOPLM_ISA
#endif

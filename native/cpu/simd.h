// Vectors of floats at the width of the current instruction set. Every kernel file is compiled once per instruction set
// (CMakeLists.txt), in namespace looplm::cpu::LOOPLM_ISA, and cpu.cpp selects one table at run time.
#pragma once
#include <stdint.h>
#include <string.h>

#include <utility>  // defines: index_sequence
#if defined(__AVX512BF16__) || defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>  // defines: the bfloat16 dot product, conversions and horizontal sums
#elif defined(__ARM_NEON)
#include <arm_neon.h>  // defines: conversions, products with a lane, sums of pairs
#endif

#ifndef LOOPLM_ISA
#define LOOPLM_ISA baseline
#endif
#if defined(__AVX512F__)
#define LOOPLM_WIDTH 16
#elif defined(__AVX2__)
#define LOOPLM_WIDTH 8
#else
#define LOOPLM_WIDTH 4
#endif

namespace looplm::cpu::LOOPLM_ISA {

constexpr int W = LOOPLM_WIDTH;  // floats in a vector
typedef float vf __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));
typedef uint32_t vu __attribute__((vector_size(W * 4)));
typedef uint16_t vh __attribute__((vector_size(W * 2)));
typedef vf vf_any __attribute__((aligned(2), may_alias));
typedef vh vh_any __attribute__((aligned(2), may_alias));

struct bf16 {
  uint16_t bits;
};

static inline float bf16_to_float(uint16_t bits) {
  uint32_t u = uint32_t(bits) << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}
static inline uint16_t float_to_bf16(float f) {  // to nearest, ties to even; NaN stays NaN
  uint32_t u;
  memcpy(&u, &f, 4);
  if ((u & 0x7fffffffu) > 0x7f800000u) return uint16_t((u >> 16) | 0x40);
  return uint16_t((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static inline vf splat(float x) { return x - vf{}; }
static inline vf load(const float* p) { return *(const vf_any*)p; }
static inline void store(float* p, vf x) { *(vf_any*)p = x; }
// Each of the W 32-bit lanes holds a pair of bfloat16: the upper or lower one of each pair, as floats.
static inline vf upper_halves(vf pairs) { return (vf)((vu)pairs & 0xffff0000u); }
static inline vf lower_halves(vf pairs) { return (vf)((vu)pairs << 16); }
#if defined(__AVX512F__)
// One permutation moves each word to the upper half of its lane: one instruction fewer than widening and shifting.
typedef uint16_t vwords __attribute__((vector_size(64)));
template <size_t... I>
static inline vf widened(vh bits, std::index_sequence<I...>) {
  constexpr vwords source = {uint16_t(I / 2)...};
  return (vf)_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, (__m512i)source, _mm512_castsi256_si512((__m256i)bits));
}
#endif
static inline vf widened(vh bits) {
#if defined(__AVX512F__)
  return widened(bits, std::make_index_sequence<32>());
#elif defined(__AVX2__)
  return (vf)((vu)_mm256_cvtepu16_epi32((__m128i)bits) << 16);
#elif defined(__ARM_NEON)
  return (vf)vshll_n_u16((uint16x4_t)bits, 16);
#else
  return (vf)(__builtin_convertvector(bits, vu) << 16);
#endif
}
static inline vf load(const bf16* p) { return widened(*(const vh_any*)p); }
// Rounds like float_to_bf16, including subnormal numbers, which the conversion instruction in `store` flushes to 0.
static inline void store_exact(bf16* p, vf x) {
  vu u = (vu)x;
  vu rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  vu nan = (vu)((u & 0x7fffffffu) > 0x7f800000u);
  *(vh_any*)p = __builtin_convertvector((nan & ((u >> 16) | 0x40u)) | (~nan & rounded), vh);
}
static inline void store(bf16* p, vf x) {
#if defined(__AVX512BF16__)
  __m256bh h = _mm512_cvtneps_pbh((__m512)x);
  memcpy(p, &h, 32);
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
  const bfloat16x4_t h = vcvt_bf16_f32((float32x4_t)x);  // keeps subnormal numbers, because no kernel sets FPCR.FZ
  memcpy((void*)p, &h, 8);
#else
  store_exact(p, x);
#endif
}
// Loads the first `count` lanes (count < W); the others are 0.
template <class E>
static inline vf load_part(const E* p, int count) {
  E part[W] = {};
  memcpy((void*)part, p, size_t(count) * sizeof(E));
  return load(part);
}
template <class E>
static inline void store_part(E* p, vf x, int count) {
  E part[W];
  store(part, x);
  memcpy((void*)p, part, size_t(count) * sizeof(E));
}
#if defined(__AVX512F__)
static inline vf load_part(const float* p, int count) { return (vf)_mm512_maskz_loadu_ps(__mmask16((1u << count) - 1), p); }
static inline vf load_part(const bf16* p, int count) {
  return widened((vh)_mm256_maskz_loadu_epi16(__mmask16((1u << count) - 1), p));
}
static inline void store_part(float* p, vf x, int count) { _mm512_mask_storeu_ps(p, __mmask16((1u << count) - 1), (__m512)x); }
static inline void store_part(bf16* p, vf x, int count) {
  bf16 part[W];
  store(part, x);
  _mm256_mask_storeu_epi16(p, __mmask16((1u << count) - 1), _mm256_loadu_si256((const __m256i_u*)part));
}
#endif
static inline float to_float(float x) { return x; }
static inline float to_float(bf16 x) { return bf16_to_float(x.bits); }
static inline void set(float& out, float x) { out = x; }
static inline void set(bf16& out, float x) { out.bits = float_to_bf16(x); }

using Lanes = std::make_index_sequence<W>;
template <size_t... I>
static constexpr vi lane_numbers(std::index_sequence<I...>) {
  return vi{int(I)...};
}
// Rotates the lanes by `step`: lane i of the result is lane i + step of x.
template <int step, size_t... I>
static inline vf rotate(vf x, std::index_sequence<I...>) {
  return __builtin_shufflevector(x, x, int((I + step) % W)...);
}

// If one of the operands is NaN, the result is b.
#if defined(__AVX512F__)
static inline vf vmax(vf a, vf b) { return (vf)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b); }
static inline vf vmin(vf a, vf b) { return (vf)_mm512_maskz_min_ps(0xffff, (__m512)a, (__m512)b); }
#elif defined(__AVX2__)
static inline vf vmax(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
static inline vf vmin(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
#else
static inline vf vmax(vf a, vf b) { return a > b ? a : b; }
static inline vf vmin(vf a, vf b) { return a < b ? a : b; }
#endif
// Sums the lanes in a fixed tree, so the order is always the same.
static inline float sum(vf x) {
  if constexpr (W >= 16) x += rotate<8>(x, Lanes());
  if constexpr (W >= 8) x += rotate<4>(x, Lanes());
  x += rotate<2>(x, Lanes());
  return x[0] + x[1];
}
static inline float maximum(vf x) {
  if constexpr (W >= 16) x = vmax(x, rotate<8>(x, Lanes()));
  if constexpr (W >= 8) x = vmax(x, rotate<4>(x, Lanes()));
  x = vmax(x, rotate<2>(x, Lanes()));
  return x[0] > x[1] ? x[0] : x[1];
}

// e^x to about one unit in the last place. Works on N vectors at once, so that their chains of dependent operations overlap.
// x log2 e = n + f with |f| <= 1/2; 2^f by a minimax polynomial that is exact at 0. x below -87 (also -inf) gives 0; x above
// 88 gives e^88, so the result is always finite. NaN stays NaN.
template <int N>
static inline __attribute__((always_inline)) void vexp(vf (&x)[N]) {
  constexpr float coefficients[] = {
      1.53533618e-4f, 1.33988745e-3f, 9.61843736e-3f, 5.55033247e-2f, 2.40226479e-1f, 6.93147203e-1f, 1.0f};
  constexpr float log2e = 1.44269504088896341f, log2e_rest = 1.92596303e-8f;
  const vf low = splat(-87.0f), high = splat(88.0f);
  vf n[N], p[N];
#if defined(__AVX512F__)
  __mmask16 above[N];
  for (int i = 0; i < N; i++) above[i] = _mm512_cmp_ps_mask((__m512)x[i], (__m512)low, _CMP_NLT_UQ);
#else
  vi under[N];
  for (int i = 0; i < N; i++) under[i] = x[i] < low;
  for (int i = 0; i < N; i++) x[i] = vmax(low, x[i]);
#endif
  for (int i = 0; i < N; i++) x[i] = vmin(high, x[i]);
  for (int i = 0; i < N; i++) n[i] = (x[i] * log2e + 12582912.0f) - 12582912.0f;  // round to nearest integer
  for (int i = 0; i < N; i++) x[i] = (x[i] * log2e - n[i]) + x[i] * log2e_rest;
  for (int i = 0; i < N; i++) p[i] = splat(coefficients[0]);
  for (int c = 1; c < 7; c++)
    for (int i = 0; i < N; i++) p[i] = p[i] * x[i] + coefficients[c];
  for (int i = 0; i < N; i++) {
#if defined(__AVX512F__)
    x[i] = (vf)_mm512_maskz_scalef_ps(above[i], (__m512)p[i], (__m512)n[i]);
#else
    p[i] *= (vf)((__builtin_convertvector(n[i], vi) + 127) << 23);
    x[i] = (vf)((vi)p[i] & ~under[i]);
#endif
  }
}
static inline vf vexp(vf x) {
  vf one[1] = {x};
  vexp(one);
  return one[0];
}

// 2^x for x <= 0 (or slightly above), accurate to 2e-7; 0 below the float range. 2^0 is exactly 1.
static inline vf vexp2_negative(vf x) {
#if defined(__AVX512F__)
  vf n = (vf)_mm512_maskz_roundscale_ps(0xffff, (__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const vi under = x < splat(-126.0f);
  x = vmax(splat(-126.0f), x);             // this argument order keeps NaN
  vf n = (x + 12582912.0f) - 12582912.0f;  // to the nearest integer
#endif
  vf r = x - n;
  vf p = splat(1.3264727e-3f) * r + 9.6715127e-3f;
  p = p * r + 5.5507337e-2f;
  p = p * r + 2.4022242e-1f;
  p = p * r + 6.9314698e-1f;
  p = p * r + 1.0f;
#if defined(__AVX512F__)
  return (vf)_mm512_maskz_scalef_ps(0xffff, (__m512)p, (__m512)n);
#else
  vi power = (__builtin_convertvector(n, vi) + 127) << 23;
  return (vf)((vi)(p * (vf)power) & ~under);
#endif
}

// log x of normal positive numbers: x = 2^e · m with m in [sqrt(1/2), sqrt 2), degree-9 polynomial in m - 1.
static inline vf vlog(vf x) {
  const vi e = ((vi)x - 0x3f3504f3) >> 23;
  const vf f = (vf)((vi)x - (e << 23)) - 1.0f, n = __builtin_convertvector(e, vf), z = f * f;
  vf p = splat(7.0376836292e-2f);
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  p = p * f * z + n * -2.12194440e-4f - 0.5f * z;
  return (f + p) + n * 0.693359375f;
}

static inline vf vreciprocal(vf x) {
#if defined(__AVX512F__)
  const vf r = (vf)_mm512_maskz_rcp14_ps(0xffff, (__m512)x);  // 14 correct bits; a Newton step doubles them
  return r * (2.0f - x * r);
#else
  return 1.0f / x;
#endif
}
// σ(x) = 1 / (1 + e^-x)
template <int N>
static inline __attribute__((always_inline)) void vsigmoid(vf (&x)[N]) {
  for (int i = 0; i < N; i++) x[i] = -x[i];
  vexp(x);
  for (int i = 0; i < N; i++) x[i] = vreciprocal(1.0f + x[i]);
}
static inline vf vsigmoid(vf x) { return vreciprocal(1.0f + vexp(-x)); }

// Transposes a W x W square by exchanging off-diagonal squares of decreasing size.
template <int H, int... L>
static inline void exchange(vf& a, vf& b, std::integer_sequence<int, L...>) {
  const vf low = __builtin_shufflevector(a, b, ((L & H) ? W + L - H : L)...);
  b = __builtin_shufflevector(a, b, ((L & H) ? W + L : L + H)...);
  a = low;
}
#if defined(__AVX512F__)
// Transposes the 4 x 4 squares within the quarters of four vectors. unpack instructions need no register for an index
// pattern.
static inline __attribute__((always_inline)) void transpose_quarters(vf* t) {
  const auto low = [](vf a, vf b) { return _mm512_castps_pd(_mm512_unpacklo_ps((__m512)a, (__m512)b)); };
  const auto high = [](vf a, vf b) { return _mm512_castps_pd(_mm512_unpackhi_ps((__m512)a, (__m512)b)); };
  const __m512d low_01 = low(t[0], t[1]), high_01 = high(t[0], t[1]), low_23 = low(t[2], t[3]), high_23 = high(t[2], t[3]);
  t[0] = (vf)_mm512_unpacklo_pd(low_01, low_23);
  t[1] = (vf)_mm512_unpackhi_pd(low_01, low_23);
  t[2] = (vf)_mm512_unpacklo_pd(high_01, high_23);
  t[3] = (vf)_mm512_unpackhi_pd(high_01, high_23);
}
#endif
template <int H = W / 2>
static inline __attribute__((always_inline)) void transpose(vf (&t)[W]) {
#if defined(__AVX512F__)
  if constexpr (H == 2) {
#pragma GCC unroll 4
    for (int i = 0; i < W; i += 4) transpose_quarters(t + i);
    return;
  }
#endif
#pragma GCC unroll 16
  for (int i = 0; i < W; i++)
    if (!(i & H)) exchange<H>(t[i], t[i + H], std::make_integer_sequence<int, W>{});
  if constexpr (H > 1) transpose<H / 2>(t);
}

}  // namespace looplm::cpu::LOOPLM_ISA

// Shared by the matrix products: the size of the register tile, the number of elements of k per step, and one step.
#pragma once
#include "kernels.h"

namespace looplm::cpu::LOOPLM_ISA {

// The micro-kernel keeps MR rows by NR columns of C in registers.
#if LOOPLM_WIDTH == 16
constexpr int MR = 12;
#else
constexpr int MR = 6;
#endif
#if defined(__aarch64__)
constexpr int NR = 4 * W;  // 24 of 32 registers are sums
#else
constexpr int NR = 2 * W;
#endif

constexpr int64_t PACKED_BYTES = 8 << 20;  // how much of B is packed at once

inline int64_t blocks(int64_t n, int64_t size) { return (n + size - 1) / size; }

// How a product reads an element. bfloat16 stays bfloat16 only if the processor can multiply it. Otherwise both operands are
// widened to float32 once, when they are packed, because they are read many times afterwards.
#if defined(__AVX512BF16__)
template <class E>
using Packed = E;
constexpr bool bf16_dot = true;
#else
template <class E>
using Packed = float;
constexpr bool bf16_dot = false;
#endif
// Elements of k per packed step (2 for bfloat16 dot products).
template <class E>
constexpr int KS = (sizeof(E) == 2 && bf16_dot) ? 2 : 1;

// One step of k: acc += a·b with a broadcast and b a vector.
template <class E>
struct Step;
template <>
struct Step<float> {
  using A = float;
  static vf broadcast(const float* a) { return splat(*a); }
  static vf load_b(const float* b) { return load(b); }
  static vf fma(vf a, vf b, vf acc) { return a * b + acc; }
};
#if defined(__AVX512BF16__)
template <>
struct Step<bf16> {
  static __m512i broadcast(const bf16* a) {
    int32_t pair;
    memcpy(&pair, a, 4);
    return _mm512_set1_epi32(pair);
  }
  // the last element of an odd k, paired with zero
  static __m512i broadcast_last(const bf16* a) { return _mm512_set1_epi32(a->bits); }
  static __m512i load_b(const bf16* b) { return _mm512_loadu_si512(b); }
  static vf fma(__m512i a, __m512i b, vf acc) { return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b); }
};
#else
template <>
struct Step<bf16> : Step<float> {};
#endif

template <class E>
constexpr bool widened_left = sizeof(Packed<E>) != sizeof(E);
template <class E>
inline Packed<E> as_packed(E x) {
  if constexpr (widened_left<E>) return to_float(x);
  else return x;
}
// Copies `count` elements in the form that products read. `out` need not have space for more.
template <class E>
inline void copy_packed(const E* from, int64_t count, Packed<E>* out) {
  if constexpr (!widened_left<E>) {
    memcpy((void*)out, from, size_t(count) * sizeof(E));
  } else {
    int64_t i = 0;
    for (; i + W <= count; i += W) store(out + i, load(from + i));
    for (; i < count; i++) out[i] = to_float(from[i]);
  }
}

// Splits a range of parts into tasks. Each round has one task per thread, and each round's tasks are half as long as the
// last. So memory is read in long runs, but all threads finish at about the same time.
struct Shares {
  int64_t parts, threads;
  int64_t size(int round) const { return ((parts >> (round + 1)) + threads - 1) / threads; }
  int64_t begin(int64_t task) const {
    int64_t at = 0;
    for (int round = 0; task > 0 && at < parts; round++) {
      const int64_t tasks = task < threads ? task : threads, own = size(round) > 1 ? size(round) : 1;
      at += (own == 1 ? task : tasks) * own;
      task = own == 1 ? 0 : task - tasks;
    }
    return at < parts ? at : parts;
  }
  int64_t count() const {
    int64_t tasks = 0;
    while (begin(tasks) < parts) tasks++;
    return tasks;
  }
};

// Number of rows whose sums fit in registers together with vectors of B.
constexpr int STREAMED = W == 16 ? 16 : 6;

}  // namespace looplm::cpu::LOOPLM_ISA

// Attention of one new token over keys and values in act. decode.cpp uses it for the whole context, coded_cache.cpp for the
// recent tokens of a quantized KV cache.
#pragma once
#include "softmax.h"

namespace looplm::cpu::LOOPLM_ISA {

// Adds the two halves of each group of lanes. a and b are vectors V of L lanes, each in N groups; a group holds the partial
// sums of one number. The result has 2N groups with half as many lanes: first those of a, then those of b.
template <int N, class V, size_t... I>
inline V merge(V a, V b, std::index_sequence<I...>) {
  constexpr int L = sizeof...(I), lanes = L / (2 * N);  // lanes per group of the result
  constexpr auto source = [](int lane) { return lane / lanes / N * L + lane / lanes % N * 2 * lanes + lane % lanes; };
  return __builtin_shufflevector(a, b, source(int(I))...) + __builtin_shufflevector(a, b, (source(int(I)) + lanes)...);
}
// Lane i of the result is the sum of the lanes of v[i], i < N. If N < L, there are N groups of L / N lanes.
template <int N, class V>
inline V sums_of(const V* v) {
  using All = std::make_index_sequence<sizeof(V) / sizeof(float)>;
  if constexpr (N == 1) return v[0];
  else return merge<N / 2>(sums_of<N / 2>(v), sums_of<N / 2>(v + N / 2), All());
}

#if defined(__AVX512BF16__)
inline __m512bh pairs(const bf16* p) { return (__m512bh)_mm512_loadu_si512(p); }
#endif

constexpr int64_t VALUES = 64;  // number of keys whose values are added at a time; a multiple of W

// Attention of one row over some key heads, for all query heads that share them. All heads process a block of keys before the
// next block, so that a slot is read in memory order. Keys come in context order, in fixed blocks that do not depend on their
// slots. So a row's bits depend only on its context. C: head_dim / W if that is an integer known at compile time, otherwise
// 0.
template <class E, int C>
struct DecodedRow {
  int64_t head_dim, context;
  int32_t kv_heads, group;  // group: query heads per key head
  const int64_t* offsets;   // [context] offset of each slot in its plane
  const E *keys, *values;   // start at the columns of the first key head
  const E* q;               // [kv_heads, group, head_dim]
  float scale;
  float* scores;   // [kv_heads, group] rows of `context` floats
  int64_t stride;  // from one row of scores to the next
  float* sums;     // [kv_heads, group, head_dim]

  // Lane k of the result is query · key[k].
  static inline vf dots(const E* query, const E* const* key, int64_t head_dim) {
    vf part[W];
    for (int k = 0; k < W; k += 4) {
      vf s0 = {}, s1 = {}, s2 = {}, s3 = {};
      const E *k0 = key[k], *k1 = key[k + 1], *k2 = key[k + 2], *k3 = key[k + 3];
#if defined(__AVX512BF16__)
      if constexpr (sizeof(E) == 2 && C > 0 && C % 2 == 0) {
#pragma GCC unroll 4
        for (int j = 0; j < C * W; j += 2 * W) {
          const __m512bh x = pairs(query + j);
          s0 = (vf)_mm512_dpbf16_ps((__m512)s0, x, pairs(k0 + j));
          s1 = (vf)_mm512_dpbf16_ps((__m512)s1, x, pairs(k1 + j));
          s2 = (vf)_mm512_dpbf16_ps((__m512)s2, x, pairs(k2 + j));
          s3 = (vf)_mm512_dpbf16_ps((__m512)s3, x, pairs(k3 + j));
        }
        part[k] = s0, part[k + 1] = s1, part[k + 2] = s2, part[k + 3] = s3;
        continue;
      }
#endif
      const auto add = [&](int64_t j, auto whole) __attribute__((always_inline)) {
        const vf x = load(query + j, whole);
        s0 += x * load(k0 + j, whole);
        s1 += x * load(k1 + j, whole);
        s2 += x * load(k2 + j, whole);
        s3 += x * load(k3 + j, whole);
      };
      if constexpr (C > 0) {
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) add(c * W, Whole{});
      } else {
        int64_t j = 0;
        for (; j + W <= head_dim; j += W) add(j, Whole{});
        if (j < head_dim) add(j, Part{int(head_dim - j)});
      }
      part[k] = s0, part[k + 1] = s1, part[k + 2] = s2, part[k + 3] = s3;
    }
    return sums_of<W>(part);
  }

  void score() const {
    for (int64_t j = 0; j < context; j += W) {
      const int64_t count = context - j < W ? context - j : W;
      const E* key[W];
      for (int64_t k = 0; k < W; k++) key[k] = keys + offsets[j + (k < count ? k : 0)];
      for (int32_t h = 0; h < kv_heads; h++) {
        for (int32_t g = h * group; g < (h + 1) * group; g++) {
          const vf s = dots(q + g * head_dim, key, head_dim) * scale;
          float* out = scores + g * stride + j;
          if (count == W) store(out, s);
          else store_part(out, s, int(count));
        }
        for (int64_t k = 0; k < W; k++) key[k] += head_dim;
      }
    }
  }

  // sum += Σ weight[k] values[k] for `count` keys. With short heads, several keys run in parallel, each with its own chain of
  // additions.
  static inline void add_values(const float* weight, const E* const* value, int64_t count, int64_t head_dim, float* sum) {
    if constexpr (C > 0) {
      constexpr int chains = C >= 8 ? 1 : 8 / C;
      vf acc[chains][C] = {};
      int64_t k = 0;
      for (; k + chains <= count; k += chains)
#pragma GCC unroll 8
        for (int r = 0; r < chains; r++)
#pragma GCC unroll 8
          for (int c = 0; c < C; c++) acc[r][c] += splat(weight[k + r]) * load(value[k + r] + c * W);
      for (; k < count; k++)
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) acc[0][c] += splat(weight[k]) * load(value[k] + c * W);
#pragma GCC unroll 8
      for (int c = 0; c < C; c++) {
        vf total = load(sum + c * W);
#pragma GCC unroll 8
        for (int r = 0; r < chains; r++) total += acc[r][c];
        store(sum + c * W, total);
      }
    } else {
      for_vectors(
          head_dim, LOOPLM_VECTORS(j, part, chain) {
            vf total = load(sum + j, part);
            for (int64_t k = 0; k < count; k++) total += splat(weight[k]) * load(value[k] + j, part);
            store(sum + j, total, part);
          });
    }
  }

  // sums += Σ score · value. The scores must already be weights (see weigh).
  void add() const {
    for (int64_t j = 0; j < context; j += VALUES) {
      const int64_t count = context - j < VALUES ? context - j : VALUES;
      const E* value[VALUES];
      for (int64_t k = 0; k < count; k++) value[k] = values + offsets[j + k];
      for (int32_t h = 0; h < kv_heads; h++) {
        for (int32_t g = h * group; g < (h + 1) * group; g++)
          add_values(scores + g * stride + j, value, count, head_dim, sums + g * head_dim);
        for (int64_t k = 0; k < count; k++) value[k] += head_dim;
      }
    }
  }
};

// Calls f with DecodedRow's C for a head of head_dim channels.
template <class F>
void with_vectors(int64_t head_dim, F f) {
  switch (head_dim % W ? 0 : head_dim / W) {
    case 1:
      return f(std::integral_constant<int, 1>());
    case 2:
      return f(std::integral_constant<int, 2>());
    case 4:
      return f(std::integral_constant<int, 4>());
    case 8:
      return f(std::integral_constant<int, 8>());
    default:
      return f(std::integral_constant<int, 0>());
  }
}

// Turns each row of `context` scores into the weights e^(score - largest). totals[row] is the sum of its weights.
static inline void weigh(int32_t heads, int64_t context, float* scores, float* totals) {
  for (int32_t g = 0; g < heads; g++) {
    float* row = scores + g * context;
    totals[g] = exp_sums<true, false>(row, context, row_maximum(row, context), 1.0f, row).sum;
  }
}
// out [heads, head_dim] = sums / totals
template <class E>
void divide(int32_t heads, int64_t head_dim, const float* sums, const float* totals, E* out) {
  for (int32_t g = 0; g < heads; g++) {
    const float inverse = 1.0f / totals[g];
    const float* sum = sums + g * head_dim;
    E* row = out + g * head_dim;
    for_vectors(
        head_dim, LOOPLM_VECTORS(j, part, chain) { store(row + j, load(sum + j, part) * inverse, part); });
  }
}

// Writes the offset of each slot of a context, in a plane with `width` units per slot.
static inline void slot_offsets(const LoopCacheContext& c, int64_t width, int64_t* offsets) {
  for (const LoopCacheRun& run : c.runs)
    for (int64_t j = 0; j < run.length; j++) *offsets++ = (run.begin + j) * width;
}
static inline int64_t length_of(const LoopCacheContext& c) {
  int64_t length = 0;
  for (const LoopCacheRun& run : c.runs) length += run.length;
  return length;
}

// Splits the work into units of one row and one key head, and calls f(row, first key head, number of key heads, scratch). A
// task takes several key heads of a row if every thread still gets `tasks` tasks. With short contexts it takes several rows.
// scratch has `per_row` + `per_head` · key heads bytes. keys: total number of keys in the contexts of all rows.
// tasks: how many a thread gets. More tasks share the work evenly; fewer read more neighbouring heads of a record at once.
template <class F>
void for_key_heads(Context& ctx, const LoopDecodeAttention& a, int64_t keys, int tasks, size_t per_row, size_t per_head, F f) {
  const int64_t group = a.heads / a.kv_heads, units = a.rows * a.kv_heads,
                least = rows_per_task(units, 2 * (keys / a.rows + 1) * group * a.head_dim),
                share = units / (tasks * ctx.pool.threads()), together = share < a.kv_heads ? share : a.kv_heads,
                block = together > least ? together : least;
  ctx.pool.run((units + block - 1) / block, [&](int64_t task, int thread) {
    char* scratch = static_cast<char*>(ctx.pool.scratch(thread, per_row + size_t(block) * per_head));
    const int64_t end = (task + 1) * block < units ? (task + 1) * block : units;
    for (int64_t u = task * block, next; u < end; u = next) {
      const int64_t row = u / a.kv_heads;
      next = (row + 1) * a.kv_heads < end ? (row + 1) * a.kv_heads : end;
      f(row, int32_t(u % a.kv_heads), int32_t(next - u), scratch);
    }
  });
}

}  // namespace looplm::cpu::LOOPLM_ISA

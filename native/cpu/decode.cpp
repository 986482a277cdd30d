// One new token per row: its key and value into the cache, and attention over the cache (math.md §7).
#include <math.h>

#include "softmax.h"

namespace looplm::cpu::LOOPLM_ISA {

namespace {

// Vectors of W groups of lanes: with N groups in each of a and b, group g holding the partial sums of one number, the result has
// 2N groups of half the lanes, those of a first.
template <int N, size_t... I>
inline vf merge(vf a, vf b, std::index_sequence<I...>) {
  constexpr int lanes = W / (2 * N);  // of a group of the result
  constexpr auto source = [](int lane) { return lane / lanes / N * W + lane / lanes % N * 2 * lanes + lane % lanes; };
  return __builtin_shufflevector(a, b, source(int(I))...) + __builtin_shufflevector(a, b, (source(int(I)) + lanes)...);
}
// Lane i of the result is the sum of the lanes of v[i], i < N (N groups of W / N lanes when N < W).
template <int N>
inline vf sums_of(const vf* v) {
  if constexpr (N == 1) return v[0];
  else return merge<N / 2>(sums_of<N / 2>(v), sums_of<N / 2>(v + N / 2), Lanes());
}

#if defined(__AVX512BF16__)
inline __m512bh pairs(const bf16* p) { return (__m512bh)_mm512_loadu_si512(p); }
#endif

constexpr int64_t VALUES = 64;  // keys whose values are added in one go; a multiple of W

// The attention of one row over some key heads, for all query heads that share them. All heads take a block of keys before the
// next block, so that a slot is read in the order of memory. Keys come in the order of the context in fixed blocks, wherever they
// lie, so that a row's bits depend on its context alone. C: head_dim / W when that is a whole number known here, else 0.
template <class E, int C>
struct DecodedRow {
  int64_t head_dim, context;
  int32_t kv_heads, group;  // group: query heads of a key head
  const int64_t* offsets;   // [context] where in a plane a slot begins
  const E *keys, *values;   // at the first key head's columns
  const E* q;               // [kv_heads, group, head_dim]
  float scale;
  float* scores;  // [kv_heads, group, context]
  float* sums;    // [kv_heads, group, head_dim]
  float* totals;  // [kv_heads, group]: Σ e^score

  // Lane k: query · key[k]
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
          float* out = scores + g * context + j;
          if (count == W) store(out, s);
          else store_part(out, s, int(count));
        }
        for (int64_t k = 0; k < W; k++) key[k] += head_dim;
      }
    }
  }

  // sum += Σ weight[k] values[k] for `count` keys. Short heads take several keys at a time, a chain of additions each.
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

  // out [kv_heads, group, head_dim]
  void run(E* out) const {
    const int32_t heads = kv_heads * group;
    score();
    for (int32_t g = 0; g < heads; g++) {
      float* row = scores + g * context;
      totals[g] = exp_sums<true, false>(row, context, row_maximum(row, context), 1.0f, row).sum;
    }
    memset(sums, 0, size_t(heads * head_dim) * sizeof(float));
    for (int64_t j = 0; j < context; j += VALUES) {
      const int64_t count = context - j < VALUES ? context - j : VALUES;
      const E* value[VALUES];
      for (int64_t k = 0; k < count; k++) value[k] = values + offsets[j + k];
      for (int32_t h = 0; h < kv_heads; h++) {
        for (int32_t g = h * group; g < (h + 1) * group; g++)
          add_values(scores + g * context + j, value, count, head_dim, sums + g * head_dim);
        for (int64_t k = 0; k < count; k++) value[k] += head_dim;
      }
    }
    for (int32_t g = 0; g < heads; g++) {
      const float inverse = 1.0f / totals[g];
      const float* sum = sums + g * head_dim;
      E* row = out + g * head_dim;
      for_vectors(
          head_dim, LOOPLM_VECTORS(j, part, chain) { store(row + j, load(sum + j, part) * inverse, part); });
    }
  }
};

// Key heads [first, first + count) of a row. scratch: for each of their query heads head_dim + 1 + context numbers.
template <class E>
void attend(const LoopDecodeAttention& a, int64_t row, int32_t first, int32_t count, int64_t context, const int64_t* offsets,
            float* scratch) {
  const int64_t head_dim = a.head_dim, group = a.heads / a.kv_heads, begin = first * group, heads = count * group;
  const E* q = static_cast<const E*>(a.qkv) + (row * (a.heads + 2 * a.kv_heads) + begin) * head_dim;
  float *sums = scratch, *totals = sums + heads * head_dim, *scores = totals + heads;
  E* out = static_cast<E*>(a.out) + (row * a.heads + begin) * head_dim;
  const auto run = [&](auto c) {
    DecodedRow<E, decltype(c)::value>{head_dim,
                                      context,
                                      count,
                                      int32_t(group),
                                      offsets,
                                      static_cast<const E*>(a.keys) + first * head_dim,
                                      static_cast<const E*>(a.values) + first * head_dim,
                                      q,
                                      float(a.scale),
                                      scores,
                                      sums,
                                      totals}
        .run(out);
  };
  switch (head_dim % W ? 0 : head_dim / W) {
    case 1:
      return run(std::integral_constant<int, 1>());
    case 2:
      return run(std::integral_constant<int, 2>());
    case 4:
      return run(std::integral_constant<int, 4>());
    case 8:
      return run(std::integral_constant<int, 8>());
    default:
      return run(std::integral_constant<int, 0>());
  }
}

// Where the slots of a row's context begin in a plane of `width` elements per slot.
void slot_offsets(const LoopCacheContext& c, int64_t width, int64_t* offsets) {
  for (const LoopCacheRun& run : c.runs)
    for (int64_t j = 0; j < run.length; j++) *offsets++ = (run.begin + j) * width;
}
int64_t length_of(const LoopCacheContext& c) {
  int64_t length = 0;
  for (const LoopCacheRun& run : c.runs) length += run.length;
  return length;
}

template <class E>
void decode_rows(Context& ctx, const LoopDecodeAttention& a) {
  const int64_t group = a.heads / a.kv_heads;
  int64_t keys = 0, longest = 0;
  for (int64_t i = 0; i < a.rows; i++) {
    const int64_t context = length_of(a.contexts[i]);
    keys += context;
    if (context > longest) longest = context;
  }
  // Units of one row and one key head. A task takes those of a row together where that leaves every thread a few tasks, several
  // rows' when contexts are short.
  const int64_t units = a.rows * a.kv_heads, least = rows_per_task(units, 2 * (keys / a.rows + 1) * group * a.head_dim),
                share = units / (4 * ctx.pool.threads()), together = share < a.kv_heads ? share : a.kv_heads,
                block = together > least ? together : least, numbers = block * group * (a.head_dim + 1 + longest);
  ctx.pool.run((units + block - 1) / block, [&](int64_t task, int thread) {
    auto* offsets = static_cast<int64_t*>(ctx.pool.scratch(thread, size_t(longest * 8 + numbers * 4)));
    auto* rest = reinterpret_cast<float*>(offsets + longest);
    const int64_t end = (task + 1) * block < units ? (task + 1) * block : units;
    for (int64_t u = task * block, next; u < end; u = next) {
      const int64_t row = u / a.kv_heads;
      next = (row + 1) * a.kv_heads < end ? (row + 1) * a.kv_heads : end;
      const LoopCacheContext& c = a.contexts[row];
      slot_offsets(c, int64_t(a.kv_heads) * a.head_dim, offsets);
      attend<E>(a, row, int32_t(u % a.kv_heads), int32_t(next - u), length_of(c), offsets, rest);
    }
  });
}

}  // namespace

int cache_write(void* context, LoopDType dt, int64_t rows, int32_t heads, int32_t kv_heads, int32_t head_dim,
                const int32_t* slots, const void* qkv, void* keys, void* values) {
  const int64_t size = int64_t(loop_dtype_size(dt)), width = int64_t(kv_heads) * head_dim * size,
                before = int64_t(heads) * head_dim * size;
  const auto* from = static_cast<const char*>(qkv);
  auto *k = static_cast<char*>(keys), *v = static_cast<char*>(values);
  for_rows(*static_cast<Context*>(context), rows, 2 * int64_t(kv_heads) * head_dim, [=](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++) {
      const char* row = from + i * (before + 2 * width) + before;
      memcpy(k + slots[i] * width, row, size_t(width));
      memcpy(v + slots[i] * width, row + width, size_t(width));
    }
  });
  return 0;
}

int decode_attention(void* context, LoopDType dt, const LoopDecodeAttention* a) {
  if (a->rows > 0) (dt == LOOP_BF16 ? decode_rows<bf16> : decode_rows<float>)(*static_cast<Context*>(context), *a);
  return 0;
}

}  // namespace looplm::cpu::LOOPLM_ISA

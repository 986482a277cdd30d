// Products with 8-bit activations. Each row of A is rounded to 8 bits once, one group of k at a time (LoopQuantized). The sum
// within a group is exact in 32-bit integers, for any order and instruction. Only the sums of the groups are added in
// float32, one after the other. So a row's bits depend neither on the other rows nor on how the work is split. For asymmetric
// weights, the middle is multiplied with the sum of the group's activations.
//
// The processor multiplies unsigned by signed bytes, four neighbours of k at a time. Weights are made unsigned as code +
// OFFSET. To correct for that, a group's sum starts at -OFFSET times the sum of its activations. A vector holds one unit (32
// bits of codes) of several rows of the weight. The activations of a row are broadcast.
#include "int8.h"

#include "gemm.h"
#include "int8_neon.h"
#include "kernels.h"
#if defined(__SSE2__)
#include <immintrin.h>  // defines: products of bytes
#endif

namespace looplm::cpu::LOOPLM_ISA {

namespace {

constexpr int64_t R = QUANTIZED_ROWS;
constexpr int V = R / W;   // vectors per block of columns
constexpr int BLOCK = 32;  // elements of k; groups are multiples of it
#if defined(__aarch64__)
constexpr int STRIP = NEON_STRIP;
#else
constexpr int STRIP = W / 2;  // rows of A at a time: as many as the registers allow
#endif
constexpr int64_t CACHED = 256 << 10;  // bytes of A to go through before more of the weight is read
constexpr int64_t AHEAD = 6 << 10;     // prefetch distance in bytes of the weight; 2 to 12 KiB were tried

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
constexpr bool unsigned_weights = true;
#else
constexpr bool unsigned_weights = false;
#endif
template <int BITS>
constexpr int OFFSET = BITS == 4          ? 8
                       : unsigned_weights ? 128
                                          : 0;

// AVX2 without VNNI needs 16-bit and 32-bit additions after every product of bytes. If several strips of rows use a block of
// the weight, `expand` prepares its codes for them once.
#if defined(__AVX2__) && !defined(__AVX512F__) && !defined(__AVXVNNI__)
#define LOOPLM_EXPANDS
#endif

#if !defined(__aarch64__)
typedef vi vi_any __attribute__((aligned(2), may_alias));
template <int BITS>
constexpr int PARTS = BITS == 4 ? 2 : 1;  // per unit, with four elements of k each

// The four codes of part `part` of each lane's unit, in the form that `dot` takes.
template <int BITS>
inline __attribute__((always_inline)) vi part_of(vi units, int part) {
  if constexpr (BITS == 4) return (vi)((vu)units >> (4 * part)) & 0x0f0f0f0f;
  else if constexpr (unsigned_weights) return units ^ int(0x80808080);
  else return units;
}

// Four activations of a row, broadcast to all lanes.
inline __attribute__((always_inline)) vi broadcast(const int8_t* x) {
  int32_t four;
  memcpy(&four, x, 4);
  return four - vi{};
}

// Hides a value from the optimizer without moving it. Otherwise g++ moves all additions of a block after all of its products,
// which then wait in memory.
#if defined(__AVX512F__)
#define LOOPLM_OPAQUE(x) asm volatile("" : "+v"(x))
#else
#define LOOPLM_OPAQUE(x) asm volatile("" : "+x"(x))
#endif

// sum + Σ of four codes times four activations, per lane.
#if defined(__AVX512VNNI__)
template <int BITS>
inline vi dot(vi sum, vi codes, vi x) {
  return (vi)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)codes, (__m512i)x);
}
#elif defined(__AVXVNNI__)
template <int BITS>
inline vi dot(vi sum, vi codes, vi x) {
  return (vi)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)codes, (__m256i)x);
}
#elif defined(__AVX2__)
// For 8 bits, the signs of the codes move to the activations. Two products of at most 127 · 128 fit in the 16 bits of
// maddubs.
template <int BITS>
inline __attribute__((always_inline)) vi dot(vi sum, vi codes, vi x) {
  const __m256i pairs = BITS == 4
                            ? _mm256_maddubs_epi16((__m256i)codes, (__m256i)x)
                            : _mm256_maddubs_epi16(_mm256_abs_epi8((__m256i)codes), _mm256_sign_epi8((__m256i)x, (__m256i)codes));
  return sum + (vi)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
#else
// The even and odd bytes as 16-bit integers.
typedef int16_t vshort __attribute__((vector_size(W * 4)));
inline vi even_bytes(vi x) { return (vi)(((vshort)x << 8) >> 8); }
inline vi odd_bytes(vi x) { return (vi)((vshort)x >> 8); }
template <int BITS>
inline vi dot(vi sum, vi codes, vi x) {
  const auto products = [](vi a, vi b) { return (vi)_mm_madd_epi16((__m128i)a, (__m128i)b); };
  return sum + products(even_bytes(codes), even_bytes(x)) + products(odd_bytes(codes), odd_bytes(x));
}
#endif

// acc[i][v] += M rows times R columns over a block of k. x: [BLOCK / 8][M][8], where store_eight defines the order of eight
// elements. EXPANDED: units have the layout that `expand` writes.
template <int BITS, int M, bool EXPANDED>
inline __attribute__((always_inline)) void add_block(const int32_t* units, const int8_t* x, vi (&acc)[M][V]) {
  constexpr int all = BLOCK * BITS / 32;
#if defined(LOOPLM_EXPANDS)
  if constexpr (BITS == 4) {  // the sums of eight pairs of products of at most 15 · 127 fit in 16 bits
    __m256i pairs[M][V];
#pragma GCC unroll 8
    for (int p = 0; p < 2 * all; p++) {
      __m256i codes[V];
      for (int v = 0; v < V; v++) {
        if constexpr (EXPANDED) codes[v] = (__m256i)(*(const vi_any*)(units + p * R + v * W));
        else codes[v] = (__m256i)part_of<4>(*(const vi_any*)(units + p / 2 * R + v * W), p % 2);
      }
#pragma GCC unroll 4
      for (int i = 0; i < M; i++) {
        const __m256i four = (__m256i)broadcast(x + (p / 2 * M + i) * 8 + p % 2 * 4);
        for (int v = 0; v < V; v++) {
          const __m256i products = _mm256_maddubs_epi16(codes[v], four);
          pairs[i][v] = p == 0 ? products : _mm256_add_epi16(pairs[i][v], products);
          LOOPLM_OPAQUE(pairs[i][v]);
        }
      }
    }
    for (int i = 0; i < M; i++)
      for (int v = 0; v < V; v++) acc[i][v] += (vi)_mm256_madd_epi16(pairs[i][v], _mm256_set1_epi16(1));
    return;
  } else if constexpr (EXPANDED) {  // for negative codes the activation is inverted bitwise, which gives -x - 1
#pragma GCC unroll 8
    for (int u = 0; u < all; u++) {
      __m256i sizes[V], negative[V];
      for (int v = 0; v < V; v++) {
        sizes[v] = (__m256i)(*(const vi_any*)(units + 2 * u * R + v * W));
        negative[v] = (__m256i)(*(const vi_any*)(units + (2 * u + 1) * R + v * W));
      }
#pragma GCC unroll 4
      for (int i = 0; i < M; i++) {
        const __m256i four = (__m256i)broadcast(x + (u / 2 * M + i) * 8 + u % 2 * 4);
        for (int v = 0; v < V; v++) {
          const __m256i products = _mm256_maddubs_epi16(sizes[v], _mm256_xor_si256(four, negative[v]));
          acc[i][v] += (vi)_mm256_madd_epi16(products, _mm256_set1_epi16(1));
          LOOPLM_OPAQUE(acc[i][v]);
        }
      }
    }
    return;
  }
#endif
#pragma GCC unroll 8
  for (int u = 0; u < all; u++)
#pragma GCC unroll 2
    for (int part = 0; part < PARTS<BITS>; part++) {
      vi codes[V];
      for (int v = 0; v < V; v++) codes[v] = part_of<BITS>(*(const vi_any*)(units + u * R + v * W), part);
      const int four = u * PARTS<BITS> + part;
#pragma GCC unroll 8
      for (int i = 0; i < M; i++) {
        const vi a = broadcast(x + (four / 2 * M + i) * 8 + four % 2 * 4);
        for (int v = 0; v < V; v++) {
          acc[i][v] = dot<BITS>(acc[i][v], codes[v], a);
          if constexpr (!unsigned_weights) LOOPLM_OPAQUE(acc[i][v]);
        }
      }
    }
}

#if defined(LOOPLM_EXPANDS)
// The units of a block of R columns in the layout for add_block<EXPANDED>. 4 bits: [k / 4][R], one byte per code. 8 bits: [k
// / 4][2][R], absolute values of the codes, then a mask of the negative ones; followed by [R] corrections for each group: the
// sum of the absolute values of negative codes, because -x - 1 was used in place of -x.
template <int BITS>
constexpr int64_t EXPANDED_UNITS = BITS == 4 ? 1 : 2;  // for four elements of k and one column
template <int BITS>
int64_t expanded_size(int64_t k, int group) {
  return k / 4 * R * EXPANDED_UNITS<BITS> + (BITS == 8 ? k / group * R : 0);
}
template <int BITS>
void expand(const int32_t* units, int64_t k, int group, int32_t* out) {
  [[maybe_unused]] int32_t* missing = out + k / 4 * R * EXPANDED_UNITS<BITS>;
  for (int64_t begin = 0; begin < k; begin += group) {
    [[maybe_unused]] vi below[V] = {};
    for (int u = 0; u < group * BITS / 32; u++, units += R)
      for (int v = 0; v < V; v++) {
        const vi codes = *(const vi_any*)(units + v * W);
        if constexpr (BITS == 4) {
          for (int part = 0; part < 2; part++) *(vi_any*)(out + part * R + v * W) = part_of<4>(codes, part);
        } else {
          const __m256i negative = _mm256_cmpgt_epi8(_mm256_setzero_si256(), (__m256i)codes),
                        sizes = _mm256_abs_epi8((__m256i)codes);
          *(vi_any*)(out + v * W) = (vi)sizes;
          *(vi_any*)(out + R + v * W) = (vi)negative;
          const __m256i pairs = _mm256_maddubs_epi16(_mm256_and_si256(sizes, negative), _mm256_set1_epi8(1));
          below[v] += (vi)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
        }
        if (v + 1 == V) out += 2 * R;
      }
    if constexpr (BITS == 8)
      for (int v = 0; v < V; v++, missing += W) *(vi_any*)missing = below[v];
  }
}
#endif
#endif

// The rows of A in 8 bits, in strips: the rows of a strip are interleaved for every eight elements of k.
struct Rows {
  int8_t* codes;    // per strip [k / 8][rows][8]
  float* scales;    // per strip [k / group][rows]
  int32_t* begins;  // same layout: -OFFSET Σ codes
  float* sums;      // same layout: scale · Σ codes
};

struct Task {
  const LoopQuantized& b;
  int64_t m, n, k;
  Rows a;
  void* c;
  int64_t ldc;
  bool bf16_out;
  int64_t groups() const { return k / b.group; }

  void put(int64_t row, int64_t column, vf value) const {
    const int64_t left = n - column, at = row * ldc + column;
    if (left <= 0) return;
    if (bf16_out) write(static_cast<bf16*>(c) + at, value, left);
    else write(static_cast<float*>(c) + at, value, left);
  }
  template <class Out>
  static void write(Out* out, vf value, int64_t left) {
    if (left >= W) store(out, value);
    else store_part(out, value, int(left));
  }
};

// M rows of C from row `first` on, columns [block · R, block · R + R).
#if defined(__aarch64__)
// expanded: the block's codes as written by `expand`, or null.
template <int BITS, bool ASYMMETRIC, int M>
void tile(const Task& t, int64_t first, int64_t block, [[maybe_unused]] const int8_t* expanded) {
  static_assert(COLUMN_VECTORS == V);
  const int64_t groups = t.groups(), eights = t.b.group / 8;
  const int32_t* units = static_cast<const int32_t*>(t.b.codes) + block * t.k * BITS / 32 * R;
  const float *scales = t.b.scales + block * groups * R, *x_scales = t.a.scales + first * groups;
  const float* x_sums = t.a.sums + first * groups;
  const int32_t* begins = t.a.begins + first * groups;
  const int8_t* x = t.a.codes + first * t.k;
  vf total[M][V] = {};
  for (int64_t g = 0; g < groups; g++) {
    vi sums[M][V];
#if defined(__ARM_FEATURE_MATMUL_INT8)
    if constexpr (M % 2 == 0) {
      if (expanded) pair_group<BITS, M, true>(expanded + g * t.b.group * R, x, eights, begins, sums);
      else pair_group<BITS, M, false>(units, x, eights, begins, sums);
    } else {
      dot_group<BITS, M>(units, x, eights, begins, sums);  // SMMLA would compute a second row for nothing
    }
#else
    dot_group<BITS, M>(units, x, eights, begins, sums);
#endif
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) {
      const vf loaded = load(scales + g * R + v * W), scale = ASYMMETRIC ? upper_halves(loaded) : loaded;
#pragma GCC unroll 8
      for (int i = 0; i < M; i++) {
        total[i][v] += __builtin_convertvector(sums[i][v], vf) * (scale * x_scales[i]);
        if constexpr (ASYMMETRIC) total[i][v] += lower_halves(loaded) * x_sums[i];
      }
    }
    units += t.b.group / BLOCK * BITS * R, x += t.b.group * M;
    begins += M, x_scales += M, x_sums += M;
  }
  for (int i = 0; i < M; i++)
    for (int v = 0; v < V; v++) t.put(first + i, block * R + v * W, total[i][v]);
}
#else
// expanded: the block's codes as written by `expand`; not read without EXPANDED.
template <int BITS, bool ASYMMETRIC, int M, bool EXPANDED>
void tile_of(const Task& t, int64_t first, int64_t block, [[maybe_unused]] const int32_t* expanded) {
  constexpr int chains = M * V >= 4 ? 1 : 4 / (M * V);  // independent sums, because additions to the same sum must wait for
                                                        // each other
  const int64_t groups = t.groups(), group_blocks = t.b.group / BLOCK;
  const int32_t* units = EXPANDED ? expanded : static_cast<const int32_t*>(t.b.codes) + block * t.k * BITS / 32 * R;
#if defined(LOOPLM_EXPANDS)
  constexpr int64_t block_units = EXPANDED ? BLOCK / 4 * EXPANDED_UNITS<BITS> : BITS;
  [[maybe_unused]] const int32_t* missing = expanded + t.k / 4 * EXPANDED_UNITS<BITS> * R;
#else
  constexpr int64_t block_units = BITS;
#endif
  const float *scales = t.b.scales + block * groups * R, *x_scales = t.a.scales + first * groups;
  const int32_t* begins = t.a.begins + first * groups;
  [[maybe_unused]] const float* x_sums = t.a.sums + first * groups;
  const int8_t* x = t.a.codes + first * t.k;
  vf total[M][V] = {};
  for (int64_t g = 0; g < groups; g++) {
    vi acc[chains][M][V] = {};
    for (int i = 0; i < M; i++)
      for (int v = 0; v < V; v++) {
        acc[0][i][v] = begins[g * M + i] - vi{};
#if defined(LOOPLM_EXPANDS)
        if constexpr (EXPANDED && BITS == 8) acc[0][i][v] += *(const vi_any*)(missing + g * R + v * W);
#endif
      }
    for (int64_t b = 0; b < group_blocks; b += chains)
#pragma GCC unroll 4
      for (int chain = 0; chain < chains; chain++) {
        if (chain > 0 && b + chain >= group_blocks) break;
        if constexpr (!EXPANDED)
          for (int line = 0; line < BITS; line++) __builtin_prefetch(units + line * R + AHEAD / 4);
        add_block<BITS, M, EXPANDED>(units, x, acc[chain]);
        units += block_units * R;
        x += BLOCK * M;
      }
    for (int v = 0; v < V; v++) {
      const vf loaded = load(scales + g * R + v * W), scale = ASYMMETRIC ? upper_halves(loaded) : loaded;
      for (int i = 0; i < M; i++) {
        vi sum = acc[0][i][v];
        for (int chain = 1; chain < chains; chain++) sum += acc[chain][i][v];
        total[i][v] += __builtin_convertvector(sum, vf) * (scale * x_scales[g * M + i]);
        if constexpr (ASYMMETRIC) total[i][v] += lower_halves(loaded) * x_sums[g * M + i];
      }
    }
  }
  for (int i = 0; i < M; i++)
    for (int v = 0; v < V; v++) t.put(first + i, block * R + v * W, total[i][v]);
}
template <int BITS, bool ASYMMETRIC, int M>
void tile(const Task& t, int64_t first, int64_t block, [[maybe_unused]] const int8_t* expanded) {
#if defined(LOOPLM_EXPANDS)
  if (M == STRIP && expanded)
    return tile_of<BITS, ASYMMETRIC, M, M == STRIP>(t, first, block, reinterpret_cast<const int32_t*>(expanded));
#endif
  tile_of<BITS, ASYMMETRIC, M, false>(t, first, block, nullptr);
}
#endif

constexpr int FOUR = STRIP > 4 ? 4 : STRIP;  // avoids instantiating kernels for more rows than a strip has
inline int64_t strip_rows(int64_t left) { return left >= STRIP ? STRIP : left >= 4 ? 4 : left >= 2 ? 2 : 1; }

template <int BITS, bool ASYMMETRIC>
void strips(const Task& t, int64_t first, int64_t end, int64_t block, const int8_t* expanded) {
  for (int64_t rows; first < end; first += rows) {
    rows = strip_rows(end - first);
    if (rows == STRIP) tile<BITS, ASYMMETRIC, STRIP>(t, first, block, expanded);
    else if (STRIP > 4 && rows == 4) tile<BITS, ASYMMETRIC, FOUR>(t, first, block, expanded);
    else if (STRIP > 2 && rows == 2) tile<BITS, ASYMMETRIC, 2>(t, first, block, expanded);
    else tile<BITS, ASYMMETRIC, 1>(t, first, block, expanded);
  }
}
// The block's codes in expanded form if enough strips use them, else null.
template <int BITS>
const int8_t* expanded_block([[maybe_unused]] Context& ctx, [[maybe_unused]] const Task& t, [[maybe_unused]] int64_t rows,
                             [[maybe_unused]] int64_t block, [[maybe_unused]] int thread) {
  [[maybe_unused]] const int32_t* units = static_cast<const int32_t*>(t.b.codes) + block * t.k * BITS / 32 * R;
#if defined(__ARM_FEATURE_MATMUL_INT8)
  if (rows >= 3 * STRIP) {
    auto* out = static_cast<int8_t*>(ctx.pool.scratch(thread, size_t(t.k * R)));
    expand<BITS>(units, t.k / 8, out);
    return out;
  }
#elif defined(LOOPLM_EXPANDS)
  if (rows >= (BITS == 4 ? 8 : 16) * STRIP) {
    auto* out = static_cast<int32_t*>(ctx.pool.scratch(thread, size_t(expanded_size<BITS>(t.k, t.b.group)) * 4));
    expand<BITS>(units, t.k, t.b.group, out);
    return reinterpret_cast<const int8_t*>(out);
  }
#endif
  return nullptr;
}

template <int BITS, bool ASYMMETRIC>
void run(Context& ctx, const Task& t) {
  const int64_t blocks = (t.n + R - 1) / R, runs = (t.m * t.k + CACHED - 1) / CACHED,
                length = ((t.m + runs - 1) / runs + STRIP - 1) / STRIP * STRIP;
  const auto go = [&](int64_t first, int64_t block, int64_t end, int thread) {
    const int64_t last = least(t.m, first + length);
    for (; block < end; block++)
      strips<BITS, ASYMMETRIC>(t, first, last, block, expanded_block<BITS>(ctx, t, last - first, block, thread));
  };
  if (length >= t.m) {
    const Shares shares{blocks, ctx.pool.threads()};
    ctx.pool.run(shares.count(), [&](int64_t task, int thread) { go(0, shares.begin(task), shares.begin(task + 1), thread); });
    return;
  }
  constexpr int64_t wide = 8;
  const int64_t panels = (blocks + wide - 1) / wide;
  ctx.pool.run((t.m + length - 1) / length * panels, [&](int64_t task, int thread) {
    const int64_t block = task % panels * wide;
    go(task / panels * length, block, least(blocks, block + wide), thread);
  });
}

inline vi to_nearest(vf x) {
#if defined(__AVX512F__)
  return (vi)_mm512_cvtps_epi32((__m512)x);
#elif defined(__AVX2__)
  return (vi)_mm256_cvtps_epi32((__m256)x);
#elif defined(__SSE2__)
  return (vi)_mm_cvtps_epi32((__m128)x);
#else
  return (vi)vcvtnq_s32_f32((float32x4_t)x);
#endif
}
typedef int8_t vb __attribute__((vector_size(W)));
typedef int8_t eight __attribute__((vector_size(8)));

// For 4 bits, even elements come first: a unit's low nibbles hold the even elements.
template <int BITS>
inline void store_eight(int8_t* to, const int8_t* from) {
  eight x;
  memcpy(&x, from, 8);
  if constexpr (BITS == 4) x = __builtin_shufflevector(x, x, 0, 2, 4, 6, 1, 3, 5, 7);
  memcpy(to, &x, 8);
}

// Rounds one group of one row. stride: bytes between its runs of eight codes.
template <class E, int BITS>
void round_group(const E* x, int group, int8_t* codes, int64_t stride, float* scale, int32_t* begin, float* x_sum) {
  vf largest = {}, broken = {};
  for (int l = 0; l < group; l += W) {
    const vf value = load(x + l), size = (vf)((vu)value & 0x7fffffffu);
    largest = vmax(size, largest);
    broken += value * 0.0f;  // NaN if any value is not finite
  }
  const float most = maximum(largest), inverse = most > 1e-30f ? 127 / most : 0;
  vi codes_sum = {};
  alignas(64) int8_t natural[BLOCK];
  for (int first = 0; first < group; first += BLOCK) {
    for (int l = 0; l < BLOCK; l += W) {
      const vi code = to_nearest(load(x + first + l) * inverse);
      codes_sum += code;
      const vb bytes = __builtin_convertvector(code, vb);
      memcpy(natural + l, &bytes, W);
    }
    for (int l = 0; l < BLOCK; l += 8, codes += stride) store_eight<BITS>(codes, natural + l);
  }
  int32_t all = 0;
  for (int i = 0; i < W; i++) all += codes_sum[i];
  const float nan = sum(broken);
  if (nan != nan) all = 0;  // the codes of infinite values are arbitrary
  *scale = most / 127 + nan;
  *begin = -OFFSET<BITS> * all;
  *x_sum = *scale * float(all);
}

template <class E, int BITS>
void round_rows(Context& ctx, const Task& t, const E* a, int64_t lda) {
  const int64_t groups = t.groups();
  const int group = t.b.group;
  ctx.pool.run((t.m + STRIP - 1) / STRIP, [&](int64_t task, int) {
    const int64_t end = least(t.m, (task + 1) * STRIP);
    for (int64_t first = task * STRIP, rows; first < end; first += rows) {
      rows = strip_rows(end - first);
      for (int64_t i = 0; i < rows; i++)
        for (int64_t g = 0; g < groups; g++) {
          const int64_t at = first * groups + g * rows + i;
          round_group<E, BITS>(a + (first + i) * lda + g * group, group, t.a.codes + first * t.k + (g * group / 8 * rows + i) * 8,
                               rows * 8, t.a.scales + at, t.a.begins + at, t.a.sums + at);
        }
    }
  });
}

template <int BITS>
void product(Context& ctx, LoopDType dt, const Task& t, const void* a, int64_t lda) {
  if (dt == LOOP_BF16) round_rows<bf16, BITS>(ctx, t, static_cast<const bf16*>(a), lda);
  else round_rows<float, BITS>(ctx, t, static_cast<const float*>(a), lda);
  if (BITS == 4 && t.b.asymmetric) run<BITS, BITS == 4>(ctx, t);
  else run<BITS, false>(ctx, t);
}

void int8_product(Context& ctx, LoopDType dt, int64_t m, int64_t n, int64_t k, const void* a, int64_t lda, const LoopQuantized& b,
                  void* c, int64_t ldc, bool bf16_out) {
  const int64_t groups = m * (k / b.group);
  auto* scales = static_cast<float*>(ctx.pool.scratch(ctx.pool.threads(), size_t(groups * 12 + m * k)));
  float* sums = scales + groups;
  auto* begins = reinterpret_cast<int32_t*>(sums + groups);
  const Task t{b, m, n, k, {reinterpret_cast<int8_t*>(begins + groups), scales, begins, sums}, c, ldc, bf16_out};
  if (b.bits == 4) product<4>(ctx, dt, t, a, lda);
  else product<8>(ctx, dt, t, a, lda);
}

double int8_roof(Context& ctx, int64_t rounds) {
  constexpr int sums = 8;  // independent sums per thread
#if defined(__aarch64__)
  ctx.pool.run(ctx.pool.threads(), [&](int64_t, int) { product_rounds<sums>(rounds); });
  return 2.0 * ROUND_PRODUCTS * sums * double(rounds) * ctx.pool.threads();
#else
  ctx.pool.run(ctx.pool.threads(), [&](int64_t, int) {
    vi sum[sums] = {}, x = vi{} + 0x05050505;
    const vi codes = vi{} + 0x07070707;
    for (int64_t i = 0; i < rounds; i++)
#pragma GCC unroll 8
      for (int j = 0; j < sums; j++) {
        LOOPLM_OPAQUE(x);
        sum[j] = dot<4>(sum[j], codes, x);
      }
#pragma GCC unroll 8
    for (int j = 0; j < sums; j++) LOOPLM_OPAQUE(sum[j]);
  });
  return 2.0 * 4 * W * sums * double(rounds) * ctx.pool.threads();
#endif
}

}  // namespace

extern const Int8Kernels int8_kernels;
const Int8Kernels int8_kernels{int8_product, int8_roof};

}  // namespace looplm::cpu::LOOPLM_ISA

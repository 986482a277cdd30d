// Matrix products. B is packed into panels of NR columns ([k][NR], bfloat16 in pairs of k), A is read in place or, when
// transposed, packed into strips of MR rows; a register tile of MR x NR accumulates over a block of k. Every element of C is
// summed over k in the same order whatever m is, so a row's result does not depend on the batch it is in.
#include "gemm.h"

namespace looplm::cpu::LOOPLM_ISA {

// Elements in the packed form of a [k, n] B.
template <class E>
inline int64_t packed_size(int64_t n, int64_t k) {
  return (n + NR - 1) / NR * NR * ((k + KS<E> - 1) / KS<E> * KS<E>);
}

// Packs columns [NR·panel, NR·panel + NR) of B over all of k. panel_out has NR·round_up(k) elements. transposed: B is stored [n,
// k].
template <class E>
static void pack_panel(bool transposed, int64_t n, int64_t k, const E* b, int64_t ldb, int64_t panel, Packed<E>* panel_out);

namespace {

constexpr int64_t KC_BYTES = 1024;  // a block of k: 256 floats, 512 bfloat16; a strip of A stays in L1, a block of B in L2
constexpr int64_t NC = 8 * NR;      // columns of a task
constexpr int64_t NC_TRANSPOSED = 16 * NR;  // wider where each task packs its own A
constexpr int64_t MC = 8 * MR;              // rows of a task

template <class E>
constexpr int64_t KC = KC_BYTES / int64_t(sizeof(Packed<E>));

inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t blocks(int64_t n, int64_t size) { return (n + size - 1) / size; }

// One step of k: A is broadcast, B is a vector, acc += a·b.
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
  static __m512i broadcast_last(const bf16* a) { return _mm512_set1_epi32(a->bits); }  // the odd element of k, paired with zero
  static __m512i load_b(const bf16* b) { return _mm512_loadu_si512(b); }
  static vf fma(__m512i a, __m512i b, vf acc) { return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b); }
};
#else
template <>
struct Step<bf16> {
  static vf broadcast(const bf16* a) { return splat(to_float(*a)); }
  static vf load_b(const float* b) { return load(b); }
  static vf fma(vf a, vf b, vf acc) { return a * b + acc; }
};
#endif

// One register tile over k steps. A element (i, step) lies at a[i·row + step·KS] (PackedA: at a[(step·MR + i)·KS]).
template <class E, int M, bool PackedA>
inline __attribute__((always_inline)) void tile(int64_t k, const E* a, int64_t row, const Packed<E>* b, vf acc[M][2]) {
  constexpr int ks = KS<E>, groups = (M + 2) / 3;
  const int64_t steps = k / ks;
  const E* p[groups];  // a base per three rows: x86 addresses reach base, base + row and base + 2·row
  for (int g = 0; g < groups; g++) p[g] = a + (PackedA ? 0 : 3 * g * row);
  for (int64_t s = 0; s < steps; s++) {
    auto b0 = Step<E>::load_b(b), b1 = Step<E>::load_b(b + W * ks);
#pragma GCC unroll 12
    for (int i = 0; i < M; i++) {
      auto x = Step<E>::broadcast(PackedA ? a + i * ks : p[i / 3] + (i % 3) * row);
      acc[i][0] = Step<E>::fma(x, b0, acc[i][0]);
      acc[i][1] = Step<E>::fma(x, b1, acc[i][1]);
    }
    b += NR * ks;
    if (PackedA) a += MR * ks;
    else
      for (int g = 0; g < groups; g++) p[g] += ks;
  }
#if defined(__AVX512BF16__)
  if constexpr (ks == 2)
    if (k % 2) {
      auto b0 = Step<E>::load_b(b), b1 = Step<E>::load_b(b + W * ks);
#pragma GCC unroll 12
      for (int i = 0; i < M; i++) {
        auto x = Step<E>::broadcast_last(PackedA ? a + i * ks : p[i / 3] + (i % 3) * row);
        acc[i][0] = Step<E>::fma(x, b0, acc[i][0]);
        acc[i][1] = Step<E>::fma(x, b1, acc[i][1]);
      }
    }
#endif
}

template <class E, class Out, int M, bool PackedA>
void micro(int64_t n, int64_t k, const E* a, int64_t lda, const Packed<E>* b, Out* c, int64_t ldc, bool accumulate) {
  vf acc[M][2];
  for (int i = 0; i < M; i++) acc[i][0] = acc[i][1] = vf{};
  tile<E, M, PackedA>(k, a, lda, b, acc);
  for (int i = 0; i < M; i++) {
    Out* row = c + i * ldc;
    for (int half = 0; half < 2; half++) {
      int64_t columns = n - half * W;
      if (columns <= 0) break;
      Out* out = row + half * W;
      vf value = acc[i][half];
      if (columns >= W) store(out, accumulate ? load(out) + value : value);
      else store_part(out, accumulate ? load_part(out, int(columns)) + value : value, int(columns));
    }
  }
}

template <class E, class Out, bool PackedA>
void strip(int64_t m, int64_t n, int64_t k, const E* a, int64_t lda, const Packed<E>* b, Out* c, int64_t ldc, bool accumulate) {
  using Micro = void (*)(int64_t, int64_t, const E*, int64_t, const Packed<E>*, Out*, int64_t, bool);
  static constexpr Micro table[] = {
    micro<E, Out, 1, PackedA>,
    micro<E, Out, 2, PackedA>,
    micro<E, Out, 3, PackedA>,
    micro<E, Out, 4, PackedA>,
    micro<E, Out, 5, PackedA>,
    micro<E, Out, 6, PackedA>,
#if LOOPLM_WIDTH == 16
    micro<E, Out, 7, PackedA>,
    micro<E, Out, 8, PackedA>,
    micro<E, Out, 9, PackedA>,
    micro<E, Out, 10, PackedA>,
    micro<E, Out, 11, PackedA>,
    micro<E, Out, 12, PackedA>,
#endif
  };
  table[m - 1](n, k, a, lda, b, c, ldc, accumulate);
}

// Rows [0, m) by columns [0, n) of C over one block [k0, k0 + kb) of k. packed_k: the padded length of k in B.
// A is row-major from column k0, or strips of MR rows packed for this block alone.
template <class E, class Out, bool PackedA>
void k_block(int64_t m, int64_t n, int64_t k0, int64_t kb, int64_t packed_k, const E* a, int64_t lda, const Packed<E>* b, Out* c,
             int64_t ldc, bool accumulate) {
  const int64_t strips = blocks(m, MR), strip_size = MR * ((kb + KS<E> - 1) / KS<E> * KS<E>);
  for (int64_t s = 0; s < strips; s++) {
    int64_t rows = min64(MR, m - s * MR);
    const E* as = PackedA ? a + s * strip_size : a + s * MR * lda;
    for (int64_t j = 0; j < n; j += NR)
      strip<E, Out, PackedA>(rows, min64(NR, n - j), kb, as, lda, b + j * packed_k + k0 * NR, c + s * MR * ldc + j, ldc,
                             accumulate || k0 > 0);
  }
}

template <class E>
int64_t padded(int64_t k) {
  return (k + KS<E> - 1) / KS<E> * KS<E>;
}

// Strips of MR columns of a transposed A ([k, m] in memory), so that a step of k finds its MR values side by side. Goes along the
// rows of A, which lie far apart: one run through memory for all strips.
template <class E>
void pack_strips(int64_t m, int64_t k, const E* a, int64_t lda, E* out) {
  constexpr int ks = KS<E>;
  const int64_t strip_size = MR * padded<E>(k);
  for (int64_t s = 0; s < k; s += ks) {
    const E *first = a + s * lda, *second = ks == 1 || s + 1 < k ? first + (ks - 1) * lda : nullptr;
    E* step = out + s * MR;
    for (int64_t i = 0; i < m; i += MR, step += strip_size) {
      if (m - i >= MR && second) {
        if constexpr (ks == 1) {
          memcpy((void*)step, first + i, MR * sizeof(E));
        } else {
          uint32_t pairs[MR];
          for (int j = 0; j < MR; j++) pairs[j] = uint32_t(first[i + j].bits) | uint32_t(second[i + j].bits) << 16;
          memcpy((void*)step, pairs, sizeof pairs);
        }
        continue;
      }
      for (int64_t j = 0; j < MR; j++) {
        step[j * ks] = i + j < m ? first[i + j] : E{};
        if (ks == 2) step[j * ks + ks - 1] = (i + j < m && second) ? second[i + j] : E{};
      }
    }
  }
}

template <class E>
struct Product {
  Context& ctx;
  bool transpose_a, transpose_b;
  int64_t m, n, k;
  const E* a;
  int64_t lda;
  const E* b;
  int64_t ldb;
  void* c;
  int64_t ldc;
  bool real_out, accumulate;

  const Packed<E>* pack_b() const {
    auto* packed =
        static_cast<Packed<E>*>(ctx.pool.scratch(ctx.pool.threads(), size_t(packed_size<E>(n, k)) * sizeof(Packed<E>)));
    ctx.pool.run(blocks(n, NR), [&](int64_t panel, int) {
      pack_panel<E>(transpose_b, n, k, b, ldb, panel, packed + panel * NR * padded<E>(k));
    });
    return packed;
  }

  void task(int64_t row, int64_t column, const Packed<E>* packed, int thread) const {
    const int64_t rows = min64(MC, m - row), columns = min64(task_columns(), n - column);
    const Packed<E>* panels = packed + column * padded<E>(k);
    if (real_out || sizeof(E) == 4) {
      sum_blocks(row, rows, columns, panels, static_cast<float*>(c) + row * ldc + column, ldc, accumulate, thread, 0);
      return;
    }
    E* out = static_cast<E*>(c) + row * ldc + column;
    if (!transpose_a && k <= KC<E>) {
      k_block<E, E, false>(rows, columns, 0, k, padded<E>(k), a + row * lda, lda, panels, out, ldc, false);
      return;
    }
    // A bfloat16 result of more than one block of k: the sums stay in float32 until the end.
    const size_t bytes = size_t(MC * task_columns()) * sizeof(float);
    float* sums = static_cast<float*>(ctx.pool.scratch(thread, bytes + strip_bytes()));
    sum_blocks(row, rows, columns, panels, sums, task_columns(), false, thread, bytes);
    for (int64_t i = 0; i < rows; i++)
      for (int64_t j = 0; j < columns; j += W) {
        const float* from = sums + i * task_columns() + j;
        if (columns - j >= W) store(out + i * ldc + j, load(from));
        else store_part(out + i * ldc + j, load_part(from, int(columns - j)), int(columns - j));
      }
  }
  // The task's sums over all blocks of k. The strips of a transposed A lie in the thread's scratch behind `used` bytes, a block
  // at a time.
  void sum_blocks(int64_t row, int64_t rows, int64_t columns, const Packed<E>* panels, float* out, int64_t stride, bool add,
                  int thread, size_t used) const {
    const int64_t pk = padded<E>(k);
    for (int64_t k0 = 0; k0 < k; k0 += KC<E>) {
      const int64_t kb = min64(KC<E>, k - k0);
      if (!transpose_a) {
        k_block<E, float, false>(rows, columns, k0, kb, pk, a + row * lda + k0, lda, panels, out, stride, add);
        continue;
      }
      E* strips = reinterpret_cast<E*>(static_cast<char*>(ctx.pool.scratch(thread, used + strip_bytes())) + used);
      pack_strips<E>(rows, kb, a + k0 * lda + row, lda, strips);
      k_block<E, float, true>(rows, columns, k0, kb, pk, strips, 0, panels, out, stride, add);
    }
  }
  size_t strip_bytes() const { return transpose_a ? size_t(MC * KC<E>) * sizeof(E) : 0; }
  // With few rows every thread gets several tasks of fewer columns; what a task holds never changes an element's bits.
  int64_t task_columns() const {
    if (transpose_a) return NC_TRANSPOSED;
    if (m > MC) return NC;
    const int64_t share = (n + 4 * ctx.pool.threads() - 1) / (4 * ctx.pool.threads());
    return min64(NC, (share + NR - 1) / NR * NR);
  }

  void run(const Packed<E>* packed) const {
    if (!packed) packed = pack_b();
    int64_t row_blocks = blocks(m, MC), column_blocks = blocks(n, task_columns());
    ctx.pool.run(row_blocks * column_blocks, [&](int64_t i, int thread) {
      int64_t row = i % row_blocks * MC, column = i / row_blocks * task_columns();
      task(row, column, packed, thread);
    });
  }
};

}  // namespace

template <class E>
static void pack_panel(bool transposed, int64_t n, int64_t k, const E* b, int64_t ldb, int64_t panel, Packed<E>* out) {
  constexpr int ks = KS<E>;
  using P = Packed<E>;
  const int64_t n0 = panel * NR, columns = min64(NR, n - n0), pk = padded<E>(k);
  if (columns < NR) memset((void*)out, 0, size_t(NR * pk) * sizeof(P));
  auto convert = [](E x) {
    if constexpr (sizeof(P) == sizeof(E)) return x;
    else return to_float(x);
  };
  if (transposed) {
    constexpr int64_t K_TILE = 16;  // a square of the source at a time: both sides stay in L1
    for (int64_t k0 = 0; k0 < k; k0 += K_TILE) {
      int64_t kb = min64(K_TILE, k - k0);
      for (int64_t j = 0; j < columns; j++) {
        const E* src = b + (n0 + j) * ldb + k0;
        P* dst = out + k0 * NR + j * ks;
        int64_t s = 0;
        for (; s + ks <= kb; s += ks, dst += NR * ks)
          for (int u = 0; u < ks; u++) dst[u] = convert(src[s + u]);
        if (ks == 2 && s < kb) dst[0] = convert(src[s]), dst[ks - 1] = P{};
      }
    }
  } else {
    for (int64_t s = 0; s < k; s += ks)
      for (int64_t j = 0; j < columns; j++)
        for (int u = 0; u < ks; u++) out[s * NR + j * ks + u] = s + u < k ? convert(b[(s + u) * ldb + n0 + j]) : P{};
  }
}

template <class E>
static int gemm_typed(Context& ctx, int ta, int tb, int64_t m, int64_t n, int64_t k, const void* a, int64_t lda, const void* b,
                      int64_t ldb, void* c, int64_t ldc, int flags, const void* packed) {
  Product<E>{ctx,
             ta != 0,
             tb != 0,
             m,
             n,
             k,
             static_cast<const E*>(a),
             lda,
             static_cast<const E*>(b),
             ldb,
             c,
             ldc,
             (flags & (LOOP_GEMM_REAL_OUT | LOOP_GEMM_ACCUMULATE)) != 0,
             (flags & LOOP_GEMM_ACCUMULATE) != 0}
      .run(static_cast<const Packed<E>*>(packed));
  return 0;
}

int gemm(void* context, LoopDType dt, int ta, int tb, int64_t m, int64_t n, int64_t k, const void* a, int64_t lda, const void* b,
         int64_t ldb, void* c, int64_t ldc, int flags, const void* packed) {
  if (m <= 0 || n <= 0) return 0;
  auto& ctx = *static_cast<Context*>(context);
  return dt == LOOP_BF16 ? gemm_typed<bf16>(ctx, ta, tb, m, n, k, a, lda, b, ldb, c, ldc, flags, packed)
                         : gemm_typed<float>(ctx, ta, tb, m, n, k, a, lda, b, ldb, c, ldc, flags, packed);
}

template <class E>
static void* pack_typed(Context& ctx, bool transposed, int64_t n, int64_t k, const E* b, int64_t ldb) {
  auto* packed = static_cast<Packed<E>*>(allocate_aligned(size_t(packed_size<E>(n, k)) * sizeof(Packed<E>)));
  if (packed)
    ctx.pool.run(blocks(n, NR),
                 [&](int64_t panel, int) { pack_panel<E>(transposed, n, k, b, ldb, panel, packed + panel * NR * padded<E>(k)); });
  return packed;
}

void* pack_b(void* context, LoopDType dt, int transposed, int64_t n, int64_t k, const void* b, int64_t ldb) {
  auto& ctx = *static_cast<Context*>(context);
  return dt == LOOP_BF16 ? pack_typed<bf16>(ctx, transposed != 0, n, k, static_cast<const bf16*>(b), ldb)
                         : pack_typed<float>(ctx, transposed != 0, n, k, static_cast<const float*>(b), ldb);
}

}  // namespace looplm::cpu::LOOPLM_ISA

// Matrix products. B is packed into panels of NR columns ([k][NR]; bfloat16 in pairs of k). A is read in place or, if
// transposed, packed into strips of MR rows. A register tile of MR x NR sums accumulates over a block of k. Every element of
// C is summed over k in the same order for every m, so a row's result does not depend on the batch.
//
// With few rows, as in decoding, the time goes into reading B. Then a task packs one block of one panel at a time into L1 and
// uses it at once, so B is read from memory once, in its own order. A transposed B (a weight, [n, k]) is transposed in
// squares of W x W in registers, which costs less than the memory access. With many rows, B is packed once for all of them,
// some columns at a time. If the processor cannot multiply bfloat16, it is widened to float32 on the way: B in its panels, A
// in a block of each task.
#include "gemm.h"

#include "bfmmla.h"
#include "neon.h"

namespace looplm::cpu::LOOPLM_ISA {

namespace {

constexpr int64_t NC = 8 * NR;              // columns per task
constexpr int64_t NC_TRANSPOSED = 16 * NR;  // more columns, because each task packs its own A
constexpr int64_t MC = 8 * MR;              // rows per task

// Length of a block of k: a strip of A stays in L1, a block of B in L2.
template <class E>
constexpr int64_t KC = sizeof(Packed<E>) == 2 ? 768 : 256;

constexpr int VECTORS = NR / W;

// One register tile over k steps. Element (i, step) of A is at a[i·row + step·KS], or with PackedA at a[(step·MR + i)·KS].
#if defined(__aarch64__)
template <class E, int M, bool PackedA>
inline __attribute__((always_inline)) void tile(int64_t k, const float* a, int64_t row, const float* b, vf (&acc)[M][VECTORS]) {
  if constexpr (PackedA) add_columns<MR>(k, a, MR, b, NR, acc);
  else add_rows(k, a, row, b, NR, acc);
}
#else
template <class E, int M, bool PackedA>
inline __attribute__((always_inline)) void tile(int64_t k, const Packed<E>* a, int64_t row, const Packed<E>* b, vf acc[M][2]) {
  constexpr int ks = KS<E>, groups = (M + 2) / 3;
  const int64_t steps = k / ks;
  const Packed<E>* p[groups];  // one base pointer per three rows: an x86 address can be base, base + row or base + 2·row
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
#endif

template <class E, class Out, int M, bool PackedA>
void micro(int64_t n, int64_t k, const Packed<E>* a, int64_t lda, const Packed<E>* b, Out* c, int64_t ldc, bool accumulate) {
  vf acc[M][VECTORS] = {};
  tile<E, M, PackedA>(k, a, lda, b, acc);
  for (int i = 0; i < M; i++) {
    Out* row = c + i * ldc;
    for (int v = 0; v < VECTORS; v++) {
      int64_t columns = n - v * W;
      if (columns <= 0) break;
      Out* out = row + v * W;
      vf value = acc[i][v];
      if (columns >= W) store(out, accumulate ? load(out) + value : value);
      else store_part(out, accumulate ? load_part(out, int(columns)) + value : value, int(columns));
    }
  }
}

template <class E, class Out, bool PackedA>
void strip(int64_t m, int64_t n, int64_t k, const Packed<E>* a, int64_t lda, const Packed<E>* b, Out* c, int64_t ldc,
           bool accumulate) {
  using Micro = void (*)(int64_t, int64_t, const Packed<E>*, int64_t, const Packed<E>*, Out*, int64_t, bool);
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

// Rows [0, m) by columns [0, n) of C over one block [k0, k0 + kb) of k. packed_k: padded length of k in the panels of B. a:
// row-major, starting at column k0, or strips of MR rows packed for this block.
template <class E, class Out, bool PackedA>
void k_block(int64_t m, int64_t n, int64_t k0, int64_t kb, int64_t packed_k, const Packed<E>* a, int64_t lda, const Packed<E>* b,
             Out* c, int64_t ldc, bool accumulate) {
  const int64_t strips = blocks(m, MR), strip_size = MR * ((kb + KS<E> - 1) / KS<E> * KS<E>);
  for (int64_t s = 0; s < strips; s++) {
    int64_t rows = least(MR, m - s * MR);
    const Packed<E>* as = PackedA ? a + s * strip_size : a + s * MR * lda;
    for (int64_t j = 0; j < n; j += NR)
      strip<E, Out, PackedA>(rows, least(NR, n - j), kb, as, lda, b + j * packed_k + k0 * NR, c + s * MR * ldc + j, ldc,
                             accumulate || k0 > 0);
  }
}

template <class E>
int64_t padded(int64_t k) {
  return (k + KS<E> - 1) / KS<E> * KS<E>;
}

// Packs a transposed A ([k, m] in memory) into strips of MR columns, so that the MR values of a step of k are contiguous.
// Loops over the rows of A outermost, because they are far apart: memory is read once for all strips.
template <class E>
void pack_strips(int64_t m, int64_t k, const E* a, int64_t lda, Packed<E>* out) {
  constexpr int ks = KS<E>;
  const int64_t strip_size = MR * padded<E>(k);
  for (int64_t s = 0; s < k; s += ks) {
    const E *first = a + s * lda, *second = ks == 1 || s + 1 < k ? first + (ks - 1) * lda : nullptr;
    Packed<E>* step = out + s * MR;
    for (int64_t i = 0; i < m; i += MR, step += strip_size) {
      if (m - i >= MR && second) {
        if constexpr (ks == 1) {
          copy_packed<E>(first + i, MR, step);
        } else {
          uint32_t pairs[MR];
          for (int j = 0; j < MR; j++) pairs[j] = uint32_t(first[i + j].bits) | uint32_t(second[i + j].bits) << 16;
          memcpy((void*)step, pairs, sizeof pairs);
        }
        continue;
      }
      for (int64_t j = 0; j < MR; j++) {
        step[j * ks] = i + j < m ? as_packed(first[i + j]) : Packed<E>{};
        if (ks == 2) step[j * ks + ks - 1] = (i + j < m && second) ? as_packed(second[i + j]) : Packed<E>{};
      }
    }
  }
}

// Loads W x W units (a float, or a pair of bfloat16) of a transposed B and transposes them: each vector then holds W columns
// of one unit of k.
template <class E>
inline __attribute__((always_inline)) void load_square(const E* from, int64_t ldb, vf (&square)[W]) {
#pragma GCC unroll 16
  for (int i = 0; i < W; i++) square[i] = *(const vf_any*)(from + i * ldb);
  transpose(square);
}
template <class E>
constexpr int64_t SQUARE = 4 / sizeof(E) * W;  // elements of k in a square

template <class E>
inline void pack_square(const E* from, int64_t ldb, Packed<E>* out) {
  vf square[W];
  load_square(from, ldb, square);
  if constexpr (sizeof(E) == sizeof(Packed<E>)) {
    for (int i = 0; i < W; i++) *(vf_any*)(out + i * NR * KS<E>) = square[i];
  } else {
    for (int i = 0; i < W; i++) {  // a pair of bfloat16 becomes two rows of floats
      store(out + 2 * i * NR, (vf)((vu)square[i] << 16));
      store(out + (2 * i + 1) * NR, (vf)((vu)square[i] & 0xffff0000u));
    }
  }
}

// Packs columns [column, column + NR) of B over [k0, k0 + kb) as [kb][NR], with kb padded to whole steps. Missing elements
// become 0. transposed: B is stored as [n, k].
template <class E>
void pack(bool transposed, int64_t n, [[maybe_unused]] int64_t k, const E* b, int64_t ldb, int64_t column, int64_t k0, int64_t kb,
          Packed<E>* out) {
  constexpr int ks = KS<E>;
  const int64_t columns = least(NR, n - column);
  if (columns < NR) memset((void*)out, 0, size_t(NR * padded<E>(kb)) * sizeof(Packed<E>));
  if (!transposed) {
    for (int64_t s = 0; s < kb; s += ks)
      for (int64_t j = 0; j < columns; j++)
        for (int u = 0; u < ks; u++)
          out[s * NR + j * ks + u] = s + u < kb ? as_packed(b[(k0 + s + u) * ldb + column + j]) : Packed<E>{};
    return;
  }
  const int64_t squares = columns == NR ? kb / SQUARE<E> * SQUARE<E> : 0;
  const E* from = b + column * ldb + k0;
  for (int64_t s = 0; s < squares; s += SQUARE<E>)
    for (int v = 0; v < VECTORS; v++) pack_square<E>(from + v * W * ldb + s, ldb, out + s * NR + v * W * ks);
  for (int64_t j = 0; j < columns; j++)
    for (int64_t s = squares; s < kb; s += ks)
      for (int u = 0; u < ks; u++) out[s * NR + j * ks + u] = s + u < kb ? as_packed(from[j * ldb + s + u]) : Packed<E>{};
}

// Loads UNITS units of W rows of a transposed B and transposes them: each vector holds W columns of one unit of k. Half a
// square leaves enough registers for the sums of 16 rows. The first exchange of the transposition is part of the loads.
#if LOOPLM_WIDTH == 16
constexpr int UNITS = 8;
template <class E>
inline __attribute__((always_inline)) void load_units(const E* from, int64_t ldb, vf (&units)[UNITS]) {
  vf t[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) {  // rows i and i + 8
    const __m256 low = _mm256_loadu_ps(reinterpret_cast<const float*>(from + i * ldb)),
                 high = _mm256_loadu_ps(reinterpret_cast<const float*>(from + (i + 8) * ldb));
    t[i] = (vf)_mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++)
    if (!(i & 4)) exchange<4>(t[i], t[i + 4], std::make_integer_sequence<int, W>{});
  transpose_quarters(t);
  transpose_quarters(t + 4);
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) units[i] = t[i];
}
#else
constexpr int UNITS = W;
template <class E>
inline __attribute__((always_inline)) void load_units(const E* from, int64_t ldb, vf (&units)[UNITS]) {
  load_square(from, ldb, units);
}
#endif

// M rows by W columns of C, for k a multiple of SQUARE. B is transposed in registers and never packed. Sums run in the same
// order as in `micro`, block by block of k. A is packed by pack_units. next: the part of B that is needed after these
// columns; it is prefetched line by line (exactly right if the rows of B are contiguous).
#if defined(__aarch64__)
// Here NR columns. With few rows, several vectors of columns at once, because additions to one sum must wait for each other.
template <class E, class Out, int M>
void stream(int64_t k, const float* a, const E* b, int64_t ldb, const E* next, Out* c, int64_t ldc, bool accumulate) {
  constexpr int S = M <= 2 ? VECTORS : VECTORS / 2, HALVES = 4 / sizeof(E);
  for (int v = 0; v < VECTORS; v += S) {
    const E *from = b + v * W * ldb, *ahead = next + v * W * ldb;
    vf total[M][S] = {};
    for (int64_t k0 = 0; k0 < k; k0 += KC<E>) {
      vf acc[M][S] = {};
      const int64_t end = least(k, k0 + KC<E>);
      for (int64_t s = k0; s < end; s += SQUARE<E>) {
        vf squares[S][W];
#pragma GCC unroll 4
        for (int j = 0; j < S; j++) {
          __builtin_prefetch(ahead + (s + j * k) * W, 0, 2);
          load_square(from + j * W * ldb + s, ldb, squares[j]);
        }
#pragma GCC unroll 2
        for (int half = 0; half < HALVES; half++) {
          vf x[M];  // for four steps
#pragma GCC unroll 8
          for (int i = 0; i < M; i++) x[i] = load(a + (s + half * W) * M + i * W);
#pragma GCC unroll 4
          for (int step = 0; step < W; step++)
#pragma GCC unroll 4
            for (int j = 0; j < S; j++) {
              const vf unit = squares[j][(half * W + step) / HALVES], y = HALVES == 1     ? unit
                                                                          : step % 2 == 0 ? (vf)((vu)unit << 16)
                                                                                          : (vf)((vu)unit & 0xffff0000u);
#pragma GCC unroll 8
              for (int i = 0; i < M; i++) acc[i][j] = fma_lane(acc[i][j], y, x[(step * M + i) / W], (step * M + i) % W);
            }
        }
      }
      for (int i = 0; i < M; i++)
        for (int j = 0; j < S; j++) {
          const Out* old = c + i * ldc + (v + j) * W;
          total[i][j] = k0 > 0 ? total[i][j] + acc[i][j] : accumulate ? load(old) + acc[i][j] : acc[i][j];
        }
    }
    for (int i = 0; i < M; i++)
      for (int j = 0; j < S; j++) store(c + i * ldc + (v + j) * W, total[i][j]);
  }
}
#else
template <class E, class Out, int M>
void stream(int64_t k, const Packed<E>* a, const E* b, int64_t ldb, const E* next, Out* c, int64_t ldc, bool accumulate) {
  constexpr int64_t STEP = UNITS * 4 / int64_t(sizeof(E)), LINES = W * UNITS * 4 / 64;
  vf total[M] = {};
  for (int64_t k0 = 0; k0 < k; k0 += KC<E>) {
    vf acc[M] = {};
    const int64_t end = least(k, k0 + KC<E>);
    for (int64_t s = k0; s < end; s += STEP) {
      vf units[UNITS];
#pragma GCC unroll 8
      for (int64_t i = 0; i < LINES; i++) __builtin_prefetch(next + s * W + i * (64 / int64_t(sizeof(E))), 0, 2);
      load_units(b + s, ldb, units);
      const Packed<E>* x = a + s * M;
#pragma GCC unroll 8
      for (int j = 0; j < UNITS; j++) {
        if constexpr (sizeof(E) == sizeof(Packed<E>)) {
          const auto unit = Step<E>::load_b(reinterpret_cast<const Packed<E>*>(&units[j]));
#pragma GCC unroll 16
          for (int i = 0; i < M; i++) acc[i] = Step<E>::fma(unit, Step<E>::broadcast(x + (j * M + i) * KS<E>), acc[i]);
        } else {
          const vf first = (vf)((vu)units[j] << 16), second = (vf)((vu)units[j] & 0xffff0000u);
          for (int i = 0; i < M; i++) acc[i] = Step<E>::fma(Step<E>::broadcast(x + 2 * j * M + i), first, acc[i]);
          for (int i = 0; i < M; i++) acc[i] = Step<E>::fma(Step<E>::broadcast(x + (2 * j + 1) * M + i), second, acc[i]);
        }
      }
    }
    for (int i = 0; i < M; i++) total[i] = k0 > 0 ? total[i] + acc[i] : accumulate ? load(c + i * ldc) + acc[i] : acc[i];
  }
  for (int i = 0; i < M; i++) store(c + i * ldc, total[i]);
}
#endif

template <class E, class Out>
void stream_strip(int64_t m, int64_t k, const Packed<E>* a, const E* b, int64_t ldb, const E* next, Out* c, int64_t ldc,
                  bool accumulate) {
  using Stream = void (*)(int64_t, const Packed<E>*, const E*, int64_t, const E*, Out*, int64_t, bool);
  static constexpr Stream table[] = {
    stream<E, Out, 1>,
    stream<E, Out, 2>,
    stream<E, Out, 3>,
    stream<E, Out, 4>,
    stream<E, Out, 5>,
    stream<E, Out, 6>,
#if LOOPLM_WIDTH == 16
    stream<E, Out, 7>,
    stream<E, Out, 8>,
    stream<E, Out, 9>,
    stream<E, Out, 10>,
    stream<E, Out, 11>,
    stream<E, Out, 12>,
    stream<E, Out, 13>,
    stream<E, Out, 14>,
    stream<E, Out, 15>,
    stream<E, Out, 16>,
#endif
  };
  table[m - 1](k, a, b, ldb, next, c, ldc, accumulate);
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

  // panels: B's panels from column `column` on.
  void task(int64_t row, int64_t column, const Packed<E>* panels, int thread) const {
    const int64_t rows = least(MC, m - row), columns = least(task_columns(), n - column);
    if (real_out || sizeof(E) == 4) {
      sum_blocks(row, rows, columns, panels, static_cast<float*>(c) + row * ldc + column, ldc, accumulate, thread, 0);
      return;
    }
    E* out = static_cast<E*>(c) + row * ldc + column;
    if (!transpose_a && k <= KC<E>) {
      const Left left = left_rows(row, rows, 0, k, thread, 0);
      k_block<E, E, false>(rows, columns, 0, k, padded<E>(k), left.a, left.stride, panels, out, ldc, false);
      return;
    }
    // A bfloat16 result over several blocks of k is summed in float32 and rounded at the end.
    const size_t bytes = size_t(MC * task_columns()) * sizeof(float);
    float* sums = static_cast<float*>(ctx.pool.scratch(thread, bytes + left_bytes()));
    sum_blocks(row, rows, columns, panels, sums, task_columns(), false, thread, bytes);
    for (int64_t i = 0; i < rows; i++)
      for (int64_t j = 0; j < columns; j += W) {
        const float* from = sums + i * task_columns() + j;
        if (columns - j >= W) store(out + i * ldc + j, load(from));
        else store_part(out + i * ldc + j, load_part(from, int(columns - j)), int(columns - j));
      }
  }
  // Rows of A (not transposed) over a block of k, as the kernel reads them: in place, or widened to float32.
  struct Left {
    const Packed<E>* a;
    int64_t stride;
  };
  Left left_rows(int64_t row, int64_t rows, int64_t k0, int64_t kb, int thread, size_t used) const {
    const E* from = a + row * lda + k0;
    if constexpr (!widened_left<E>) {
      return {from, lda};
    } else {
      Packed<E>* to = left_memory(thread, used);
      for (int64_t i = 0; i < rows; i++) copy_packed<E>(from + i * lda, kb, to + i * KC<E>);
      return {to, KC<E>};
    }
  }
  Packed<E>* left_memory(int thread, size_t used) const {
    return reinterpret_cast<Packed<E>*>(static_cast<char*>(ctx.pool.scratch(thread, used + left_bytes())) + used);
  }
  // Sums a task's part of C over all blocks of k. Packed parts of A, one block at a time, are stored in the thread's scratch
  // after `used` bytes.
  void sum_blocks(int64_t row, int64_t rows, int64_t columns, const Packed<E>* panels, float* out, int64_t stride, bool add,
                  int thread, size_t used) const {
    const int64_t pk = padded<E>(k);
    for (int64_t k0 = 0; k0 < k; k0 += KC<E>) {
      const int64_t kb = least(KC<E>, k - k0);
      if (!transpose_a) {
        const Left left = left_rows(row, rows, k0, kb, thread, used);
        k_block<E, float, false>(rows, columns, k0, kb, pk, left.a, left.stride, panels, out, stride, add);
        continue;
      }
      Packed<E>* strips = left_memory(thread, used);
      pack_strips<E>(rows, kb, a + k0 * lda + row, lda, strips);
      k_block<E, float, true>(rows, columns, k0, kb, pk, strips, 0, panels, out, stride, add);
    }
  }
  size_t left_bytes() const { return transpose_a || widened_left<E> ? size_t(MC * KC<E>) * sizeof(Packed<E>) : 0; }
  int64_t task_columns() const { return transpose_a ? NC_TRANSPOSED : NC; }

  // Many rows: all threads pack B together, as many columns at a time as fit the buffer, then all use it.
  void run_packed() const {
    const int64_t pk = padded<E>(k),
                  whole = blocks(PACKED_BYTES, task_columns() * pk * int64_t(sizeof(Packed<E>))) * task_columns();
    for (int64_t first = 0; first < n; first += whole) {
      const int64_t count = least(whole, n - first), panels = blocks(count, NR);
      auto* packed = static_cast<Packed<E>*>(ctx.pool.scratch(ctx.pool.threads(), size_t(panels * NR * pk) * sizeof(Packed<E>)));
      ctx.pool.run(panels, [&](int64_t panel, int) {
        pack<E>(transpose_b, n, k, b, ldb, first + panel * NR, 0, k, packed + panel * NR * pk);
      });
      const int64_t row_blocks = blocks(m, MC), column_blocks = blocks(count, task_columns());
      ctx.pool.run(row_blocks * column_blocks, [&](int64_t i, int thread) {
        const int64_t row = i % row_blocks * MC, column = i / row_blocks * task_columns();
        task(row, first + column, packed + column * pk, thread);
      });
    }
  }

  // Packs the rows of A so that their values for one step of k are contiguous: [k / KS][m][KS], for k a multiple of the
  // square.
  void pack_units(const Left& left, Packed<E>* units) const {
    if constexpr (STREAMED <= W) {
      for (int64_t s = 0; s < k; s += W * KS<E>) {  // one square per iteration
        vf square[W];
        for (int64_t i = 0; i < W; i++) square[i] = *(const vf_any*)(left.a + (i < m ? i : 0) * left.stride + s);
        transpose(square);
        auto* to = reinterpret_cast<float*>(units + s * m);
        for (int64_t j = 0; j < W; j++) {
          if (m == W) store(to + j * m, square[j]);
          else store_part(to + j * m, square[j], int(m));
        }
      }
    } else {
      for (int64_t i = 0; i < m; i++)
        for (int64_t s = 0; s < k; s += KS<E>)
          memcpy((void*)(units + s * m + i * KS<E>), left.a + i * left.stride + s, KS<E> * sizeof(Packed<E>));
    }
  }
  // Few rows: each task handles some panels, one block of k after the other.
  void run_streamed() const {
    auto* room = static_cast<Packed<E>*>(ctx.pool.scratch(ctx.pool.threads(), size_t(2 * m * k) * sizeof(Packed<E>)));
    Left left{};
    if constexpr (widened_left<E>) {
      for (int64_t i = 0; i < m; i++) copy_packed<E>(a + i * lda, k, room + i * k);
      left = {room, k};
    } else {
      left = {a, lda};
    }
    const Packed<E>* units = nullptr;  // A for `stream`, if it applies
    if (transpose_b && m <= STREAMED && k % SQUARE<E> == 0) {
      units = m == 1 ? left.a : room + m * k;
      if (m > 1) pack_units(left, room + m * k);
    }
    const Shares shares{blocks(n, NR), ctx.pool.threads()};
    ctx.pool.run(shares.count(), [&](int64_t i, int thread) {
      for (int64_t panel = shares.begin(i), end = shares.begin(i + 1); panel < end; panel++)
        stream_panel(panel, left, units, thread);
    });
  }
  void stream_panel(int64_t panel, const Left& left, const Packed<E>* units, int thread) const {
    const int64_t column = panel * NR, columns = least(NR, n - column);
    if (units && columns == NR) {
      if (real_out || sizeof(E) == 4) stream_halves(units, column, static_cast<float*>(c) + column);
      else stream_halves(units, column, static_cast<E*>(c) + column);
      return;
    }
    const size_t packed_bytes = size_t(NR * KC<E>) * sizeof(Packed<E>), sum_bytes = size_t(MC * NR) * sizeof(float);
    char* scratch = static_cast<char*>(ctx.pool.scratch(thread, packed_bytes + sum_bytes));
    auto* packed = reinterpret_cast<Packed<E>*>(scratch);
    if (real_out || sizeof(E) == 4) {
      auto* out = static_cast<float*>(c) + column;
      for (int64_t k0 = 0; k0 < k; k0 += KC<E>) block_of_panel(left, column, columns, k0, packed, out, ldc, accumulate || k0 > 0);
      return;
    }
    E* out = static_cast<E*>(c) + column;
    if (k <= KC<E>) return block_of_panel(left, column, columns, 0, packed, out, ldc, false);
    auto* sums = reinterpret_cast<float*>(scratch + packed_bytes);
    for (int64_t k0 = 0; k0 < k; k0 += KC<E>) block_of_panel(left, column, columns, k0, packed, sums, NR, k0 > 0);
    for (int64_t i = 0; i < m; i++)
      for (int64_t j = 0; j < columns; j += W) {
        if (columns - j >= W) store(out + i * ldc + j, load(sums + i * NR + j));
        else store_part(out + i * ldc + j, load_part(sums + i * NR + j, int(columns - j)), int(columns - j));
      }
  }
  template <class Out>
  void stream_halves(const Packed<E>* units, int64_t column, Out* out) const {
#if defined(__aarch64__)
    const E* panel = b + column * ldb;
    stream_strip<E, Out>(m, k, units, panel, ldb, column + 2 * NR <= n ? panel + NR * ldb : panel, out, ldc, accumulate);
#else
    const E *first = b + column * ldb, *second = first + W * ldb;
    const E* next = column + 2 * NR <= n ? second + W * ldb : first;
    stream_strip<E, Out>(m, k, units, first, ldb, second, out, ldc, accumulate);
    stream_strip<E, Out>(m, k, units, second, ldb, next, out + W, ldc, accumulate);
#endif
  }
  template <class Out>
  void block_of_panel(const Left& left, int64_t column, int64_t columns, int64_t k0, Packed<E>* packed, Out* out, int64_t stride,
                      bool add) const {
    const int64_t kb = least(KC<E>, k - k0);
    pack<E>(transpose_b, n, k, b, ldb, column, k0, kb, packed);
    for (int64_t i = 0; i < m; i += MR)
      strip<E, Out, false>(least(MR, m - i), columns, kb, left.a + i * left.stride + k0, left.stride, packed, out + i * stride,
                           stride, add);
  }

  void run() const {
    if (m <= MC && !transpose_a) run_streamed();
    else run_packed();
  }
};

}  // namespace

template <class E>
static int gemm_typed(Context& ctx, int ta, int tb, int64_t m, int64_t n, int64_t k, const void* a, int64_t lda, const void* b,
                      int64_t ldb, void* c, int64_t ldc, int flags) {
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
      .run();
  return 0;
}

int gemm(void* context, LoopDType dt, int ta, int tb, int64_t m, int64_t n, int64_t k, const void* a, int64_t lda, const void* b,
         int64_t ldb, void* c, int64_t ldc, int flags) {
  if (m <= 0 || n <= 0) return 0;
  if (k <= 0) {
    const size_t size = dt == LOOP_BF16 && !(flags & (LOOP_GEMM_REAL_OUT | LOOP_GEMM_ACCUMULATE)) ? sizeof(bf16) : sizeof(float);
    for (int64_t i = 0; i < m && !(flags & LOOP_GEMM_ACCUMULATE); i++)
      memset(static_cast<char*>(c) + size_t(i * ldc) * size, 0, size_t(n) * size);
    return 0;
  }
  auto& ctx = *static_cast<Context*>(context);
#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
  if (dt == LOOP_BF16) {
    const bool add = flags & LOOP_GEMM_ACCUMULATE;
    bfmmla::product({ctx, ta != 0, tb != 0, m, n, k, static_cast<const bf16*>(a), lda, static_cast<const bf16*>(b), ldb, c, ldc,
                     add || (flags & LOOP_GEMM_REAL_OUT), add});
    return 0;
  }
#endif
  return dt == LOOP_BF16 ? gemm_typed<bf16>(ctx, ta, tb, m, n, k, a, lda, b, ldb, c, ldc, flags)
                         : gemm_typed<float>(ctx, ta, tb, m, n, k, a, lda, b, ldb, c, ldc, flags);
}

}  // namespace looplm::cpu::LOOPLM_ISA

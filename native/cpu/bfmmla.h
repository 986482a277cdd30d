// Products of bfloat16 matrices with Arm's BFMMLA instruction. It multiplies two rows of A with two columns of B over four
// elements of k, and adds the products to a 2 x 2 square of sums. Steps of four always start at the beginning of a block of k
// and are padded with zeros, whatever m is and however A and B are packed. So a row's result does not depend on the batch.
//
// BFMMLA rounds the sum of a pair and each addition to odd: the last bit is set if anything is lost. It also treats subnormal
// numbers as 0. So its errors are up to twice those of fused multiply-adds, but have no bias.
#pragma once
#include "gemm.h"

#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
namespace looplm::cpu::LOOPLM_ISA {

namespace bfmmla {

constexpr int FOUR = 4;          // elements of k per instruction
constexpr int64_t KC = 512;      // length of a block of k: a strip of A stays in L1, a block of B in L2
constexpr int64_t NC = 16 * NR;  // columns per task, for which it packs its rows of A only once
constexpr int64_t MC = 8 * MR;   // rows per task
typedef uint16_t vw __attribute__((vector_size(16)));
typedef vw vw_any __attribute__((aligned(2), may_alias));
typedef uint64_t vpair __attribute__((vector_size(16)));

inline int64_t padded(int64_t k) { return blocks(k, FOUR) * FOUR; }

inline vw load8(const bf16* p) { return *(const vw_any*)p; }
inline void store8(bf16* p, vw x) { *(vw_any*)p = x; }
// The lower (or upper) 64 bits of a and of b.
inline vw lower(vw a, vw b) { return (vw)__builtin_shufflevector((vpair)a, (vpair)b, 0, 2); }
inline vw upper(vw a, vw b) { return (vw)__builtin_shufflevector((vpair)a, (vpair)b, 1, 3); }

inline __attribute__((always_inline)) vf multiply(vf acc, vw rows, vw columns) {
  asm volatile("bfmmla %0.4s, %1.8h, %2.8h" : "+w"(acc) : "w"(rows), "w"(columns));
  return acc;
}

// Packs SIDE rows of a [rows, k] matrix as [k / 4][SIDE][4]. Missing rows and elements become 0.
template <int SIDE>
void pack_rows(int64_t rows, int64_t k, const bf16* from, int64_t ld, bf16* out) {
  const int64_t whole = k / 8 * 8;
  for (int64_t i = 0; i < SIDE; i += 2) {
    const bf16 *first = from + i * ld, *second = first + ld;
    bf16* to = out + i * FOUR;
    int64_t s = 0;
    for (; s < whole && i < rows; s += 8, to += 2 * SIDE * FOUR) {
      const vw x = load8(first + s), y = i + 1 < rows ? load8(second + s) : vw{};
      store8(to, lower(x, y));
      store8(to + SIDE * FOUR, upper(x, y));
    }
    for (; s < k; s += FOUR, to += SIDE * FOUR)
      for (int64_t r = 0; r < 2; r++)
        for (int64_t u = 0; u < FOUR; u++) to[r * FOUR + u] = i + r < rows && s + u < k ? first[r * ld + s + u] : bf16{};
  }
}
// The same for a matrix that is stored as [k, rows].
template <int SIDE>
void pack_columns(int64_t rows, int64_t k, const bf16* from, int64_t ld, bf16* out) {
  typedef uint16_t vw4 __attribute__((vector_size(8)));
  typedef vw4 vw4_any __attribute__((aligned(2), may_alias));
  for (int64_t s = 0; s < k; s += FOUR, out += SIDE * FOUR) {
    const bf16* x = from + s * ld;
    int64_t i = 0;
    if (s + FOUR <= k)
      for (; i + FOUR <= least(rows, SIDE); i += FOUR) {
        const auto row = [&](int u) { return *(const vw4_any*)(x + u * ld + i); };
        const vu low = (vu)__builtin_shufflevector(row(0), row(1), 0, 4, 1, 5, 2, 6, 3, 7),
                 high = (vu)__builtin_shufflevector(row(2), row(3), 0, 4, 1, 5, 2, 6, 3, 7);
        store8(out + i * FOUR, (vw)__builtin_shufflevector(low, high, 0, 4, 1, 5));
        store8(out + (i + 2) * FOUR, (vw)__builtin_shufflevector(low, high, 2, 6, 3, 7));
      }
    for (; i < SIDE; i++)
      for (int64_t u = 0; u < FOUR; u++) out[i * FOUR + u] = i < rows && s + u < k ? x[u * ld + i] : bf16{};
  }
}

// acc += P pairs of rows times NR columns over k, with both operands packed.
template <int P>
inline __attribute__((always_inline)) void tile(int64_t k, const bf16* a, const bf16* b, vf (&acc)[P][NR / 2]) {
  for (int64_t s = 0; s < k; s += FOUR, a += MR * FOUR, b += NR * FOUR) {
    vw x[P];
#pragma GCC unroll 3
    for (int p = 0; p < P; p++) x[p] = load8(a + 8 * p);
#pragma GCC unroll 8
    for (int q = 0; q < NR / 2; q++) {
      const vw y = load8(b + 8 * q);
#pragma GCC unroll 3
      for (int p = 0; p < P; p++) acc[p][q] = multiply(acc[p][q], x[p], y);
    }
  }
}
// The same with B unpacked, [NR, k] in memory; half of the columns at a time; k must be a multiple of 8. next: the part of B
// that is needed after these columns; it is prefetched line by line (exactly right if the rows of B are contiguous).
template <int P>
inline __attribute__((always_inline)) void tile_in_place(int64_t k, const bf16* a, const bf16* b, int64_t ldb, const bf16* next,
                                                         vf (&acc)[P][NR / 2]) {
#pragma GCC unroll 2
  for (int half = 0; half < 2; half++, b += NR / 2 * ldb, next += NR / 2 * ldb) {
    const bf16* left = a;
    for (int64_t s = 0; s < k; s += 2 * FOUR, left += 2 * MR * FOUR) {
      __builtin_prefetch(next + s * (NR / 2), 0, 2);
      __builtin_prefetch(next + s * (NR / 2) + 32, 0, 2);
      vw x[2][P];
#pragma GCC unroll 3
      for (int p = 0; p < P; p++) {
        x[0][p] = load8(left + 8 * p);
        x[1][p] = load8(left + MR * FOUR + 8 * p);
      }
#pragma GCC unroll 4
      for (int q = 0; q < NR / 4; q++) {
        const vw first = load8(b + 2 * q * ldb + s), second = load8(b + (2 * q + 1) * ldb + s);
        const vw y[2] = {lower(first, second), upper(first, second)};
#pragma GCC unroll 2
        for (int step = 0; step < 2; step++)
#pragma GCC unroll 3
          for (int p = 0; p < P; p++) acc[p][half * NR / 4 + q] = multiply(acc[p][half * NR / 4 + q], x[step][p], y[step]);
      }
    }
  }
}

// The columns of B for a strip: packed, or in place if `packed` is null.
struct Right {
  const bf16 *packed, *place = nullptr;
  int64_t ld = 0;
  const bf16* next = nullptr;
};

// 2P rows, of which only `rows` are stored, by n ≤ NR columns of C, over one block of k.
template <class Out, int P>
void micro(int64_t rows, int64_t n, int64_t k, const bf16* a, const Right& b, Out* c, int64_t ldc, bool accumulate) {
  vf acc[P][NR / 2] = {};
  if (b.packed) tile<P>(k, a, b.packed, acc);
  else tile_in_place<P>(k, a, b.place, b.ld, b.next, acc);
  vf sums[P][NR / 2];  // a copy, because it is indexed by a variable: clang would otherwise keep acc in memory during the
                       // loop above
#pragma GCC unroll 3
  for (int p = 0; p < P; p++)
#pragma GCC unroll 8
    for (int q = 0; q < NR / 2; q++) sums[p][q] = acc[p][q];
  for (int p = 0; p < P; p++)
    for (int r = 0; r < 2 && 2 * p + r < rows; r++)
      for (int v = 0; v < NR / W; v++) {
        const int64_t columns = n - v * W;
        if (columns <= 0) break;
        const vw x = (vw)sums[p][2 * v], y = (vw)sums[p][2 * v + 1];
        const vf value = (vf)(r == 0 ? lower(x, y) : upper(x, y));
        Out* out = c + (2 * p + r) * ldc + v * W;
        if (columns >= W) store(out, accumulate ? load(out) + value : value);
        else store_part(out, accumulate ? load_part(out, int(columns)) + value : value, int(columns));
      }
}
template <class Out>
void strip(int64_t rows, int64_t n, int64_t k, const bf16* a, const Right& b, Out* c, int64_t ldc, bool accumulate) {
  (rows <= 2 ? micro<Out, 1> : rows <= 4 ? micro<Out, 2> : micro<Out, 3>)(rows, n, k, a, b, c, ldc, accumulate);
}

struct Product {
  Context& ctx;
  bool transpose_a, transpose_b;
  int64_t m, n, k;
  const bf16* a;
  int64_t lda;
  const bf16* b;
  int64_t ldb;
  void* c;
  int64_t ldc;
  bool real_out, accumulate;

  // Packs rows [row, row + rows) of A over a block of k, as strips of MR rows.
  void pack_left(int64_t row, int64_t rows, int64_t k0, int64_t kb, bf16* out) const {
    for (int64_t i = 0; i < rows; i += MR, out += MR * padded(kb)) {
      if (transpose_a) pack_columns<MR>(rows - i, kb, a + k0 * lda + row + i, lda, out);
      else pack_rows<MR>(rows - i, kb, a + (row + i) * lda + k0, lda, out);
    }
  }
  void pack_panel(int64_t column, int64_t k0, int64_t kb, bf16* out) const {
    if (transpose_b) pack_rows<NR>(n - column, kb, b + column * ldb + k0, ldb, out);
    else pack_columns<NR>(n - column, kb, b + k0 * ldb + column, ldb, out);
  }

  // Calls f(out, stride, k0, length, whether to add to out) for each block of k of a rectangle of C. If C is bfloat16 and has
  // several blocks, the sums are collected in `sums` (float32) and rounded once.
  template <class F>
  void over_blocks(int64_t row, int64_t rows, int64_t column, int64_t columns, float* sums, F f) const {
    const int64_t at = row * ldc + column;
    if (!real_out && k <= KC) return f(static_cast<bf16*>(c) + at, ldc, int64_t(0), k, false);
    float* out = real_out ? static_cast<float*>(c) + at : sums;
    const int64_t stride = real_out ? ldc : columns;
    for (int64_t k0 = 0; k0 < k || k0 == 0; k0 += KC) f(out, stride, k0, least(KC, k - k0), k0 > 0 || accumulate);
    if (real_out) return;
    for (int64_t i = 0; i < rows; i++)
      for (int64_t j = 0; j < columns; j += W) {
        bf16* to = static_cast<bf16*>(c) + at + i * ldc + j;
        const float* from = sums + i * columns + j;
        if (columns - j >= W) store(to, load(from));
        else store_part(to, load_part(from, int(columns - j)), int(columns - j));
      }
  }

  // Many rows: all threads pack B together, as many columns at a time as fit the buffer, then all use it.
  void run_packed() const {
    const int64_t pk = padded(k), whole = blocks(PACKED_BYTES, NC * (pk + 1) * 2) * NC;
    for (int64_t first = 0; first < n; first += whole) {
      const int64_t panels = blocks(least(whole, n - first), NR), row_blocks = blocks(m, MC);
      auto* packed = static_cast<bf16*>(ctx.pool.scratch(ctx.pool.threads(), size_t(panels * NR * pk) * 2));
      ctx.pool.run(panels, [&](int64_t panel, int) { pack_panel(first + panel * NR, 0, k, packed + panel * NR * pk); });
      ctx.pool.run(row_blocks * blocks(panels * NR, NC), [&](int64_t task, int thread) {
        const int64_t row = task % row_blocks * MC, column = first + task / row_blocks * NC, rows = least(MC, m - row),
                      columns = least(NC, least(first + whole, n) - column);
        auto* sums = static_cast<float*>(ctx.pool.scratch(thread, size_t(MC) * (NC * 4 + KC * 2)));
        auto* left = reinterpret_cast<bf16*>(sums + MC * NC);
        over_blocks(row, rows, column, columns, sums, [&](auto* out, int64_t stride, int64_t k0, int64_t kb, bool add) {
          pack_left(row, rows, k0, kb, left);
          for (int64_t i = 0; i < rows; i += MR)
            for (int64_t j = 0; j < columns; j += NR)
              strip(least(MR, rows - i), least(NR, columns - j), padded(kb), left + i * padded(kb),
                    Right{packed + (column - first + j) * pk + k0 * NR}, out + i * stride + j, stride, add);
        });
      });
    }
  }

  // Few rows: the time goes into reading B. A task packs one block of one panel at a time into L1 and uses it at once. If A
  // is a single strip of rows, B is not packed but read in place.
  void run_streamed() const {
    const int64_t strips = blocks(m, MR), pk = padded(k);
    auto* left = static_cast<bf16*>(ctx.pool.scratch(ctx.pool.threads(), size_t(strips * MR * pk) * 2));
    for (int64_t k0 = 0; k0 < k; k0 += KC) pack_left(0, m, k0, least(KC, k - k0), left + k0 * strips * MR);
    const Shares shares{blocks(n, NR), ctx.pool.threads()};
    ctx.pool.run(shares.count(), [&](int64_t task, int thread) {
      for (int64_t panel = shares.begin(task), end = shares.begin(task + 1); panel < end; panel++) {
        const int64_t column = panel * NR, columns = least(NR, n - column);
        const bool in_place = transpose_b && strips == 1 && columns == NR && k % (2 * FOUR) == 0;
        auto* sums = static_cast<float*>(ctx.pool.scratch(thread, size_t(MC * NR * 4 + KC * NR * 2)));
        auto* packed = reinterpret_cast<bf16*>(sums + MC * NR);
        over_blocks(0, m, column, columns, sums, [&](auto* out, int64_t stride, int64_t k0, int64_t kb, bool add) {
          const bf16* place = b + column * ldb + k0;
          if (!in_place) pack_panel(column, k0, kb, packed);
          const Right right =
              in_place ? Right{nullptr, place, ldb, column + 2 * NR <= n ? place + NR * ldb : place} : Right{packed};
          for (int64_t i = 0; i < m; i += MR)
            strip(least(MR, m - i), columns, padded(kb), left + k0 * strips * MR + i * padded(kb), right, out + i * stride,
                  stride, add);
        });
      }
    });
  }
};

inline void product(const Product& p) {
  if (p.m <= MC && !p.transpose_a) p.run_streamed();
  else p.run_packed();
}

}  // namespace bfmmla

}  // namespace looplm::cpu::LOOPLM_ISA
#endif

// Products with a weight of 8 or 4 bits per element, whose time is that of reading it. Squares of W x W units (32 bits of codes
// of a row) are turned in registers, so that a vector holds W columns; the codes become small whole numbers, exact in bfloat16,
// and are multiplied with the activations as they are; a group's sum is multiplied with its scale and added up in float32. Every
// row goes the same way whatever m is.
#include <type_traits>  // defines: integral_constant

#include "gemm.h"

namespace looplm::cpu::LOOPLM_ISA {

namespace {

// The elements of k in a unit, in the order in which `expand` brings them up: 4-bit codes are looked up in all 16-bit halves of a
// lane at once, which pairs element i with element i + 4.
template <class E, int BITS>
constexpr int place(int step, [[maybe_unused]] int half) {
  if constexpr (KS<E> == 1) return step;
  else if constexpr (BITS == 4) return step + 4 * half;
  else return 2 * step + half;
}
template <int BITS>
constexpr int UNIT = 32 / BITS;  // elements of k

// Step `step` of a unit's vector of W columns as the right operand of Step<E>::fma.
template <class E, int BITS>
inline __attribute__((always_inline)) auto expand(vf units, int step) {
#if defined(__AVX512BF16__)
  if constexpr (KS<E> == 2) {
    if constexpr (BITS == 4) {
      // bfloat16 of -8 … 7, twice: a lookup reads five bits, of which the fifth belongs to the next code
      const __m512i table = _mm512_set_epi16(
          0x40e0, 0x40c0, 0x40a0, 0x4080, 0x4040, 0x4000, 0x3f80, 0, short(0xbf80), short(0xc000), short(0xc040), short(0xc080),
          short(0xc0a0), short(0xc0c0), short(0xc0e0), short(0xc100), 0x40e0, 0x40c0, 0x40a0, 0x4080, 0x4040, 0x4000, 0x3f80, 0,
          short(0xbf80), short(0xc000), short(0xc040), short(0xc080), short(0xc0a0), short(0xc0c0), short(0xc0e0), short(0xc100));
      return _mm512_permutexvar_epi16(_mm512_srli_epi16((__m512i)units, unsigned(4 * step)), table);
    } else {
      const vi low = ((vi)units << (24 - 16 * step)) >> 24, high = ((vi)units << (16 - 16 * step)) >> 24;
      const vu first = (vu) __builtin_convertvector(low, vf), second = (vu) __builtin_convertvector(high, vf);
      return (__m512i)((first >> 16) | (second & 0xffff0000u));  // whole numbers of 8 bits lose nothing
    }
  } else
#endif
  {
    if constexpr (BITS == 4) return __builtin_convertvector((vi)(((vu)units >> (4 * step)) & 15u) - 8, vf);
    else return __builtin_convertvector(((vi)units << (24 - 8 * step)) >> 24, vf);
  }
}

// What all tasks of a product share.
template <class E>
struct Task {
  const LoopQuantized& b;
  int64_t n, k;
  const E* a;  // packed: for each strip of rows, [k / KS][rows][KS]
  void* c;
  int64_t m, ldc;
  bool real_out;
};

// M rows by S vectors of columns of C; with S = 1 there may be fewer columns than lanes. rows: where the W rows of codes of each
// vector begin. next: where the codes go on after these columns; they are fetched meanwhile, in the order of memory.
template <class E, int BITS, class Out, int M, int S>
void columns(const Task<E>& t, const E* a, const char* const* rows, const float* scales, const char* next, Out* c,
             int64_t count) {
  constexpr int steps = UNIT<BITS> / KS<E>, lines = W * W * 4 / 64;
  const int64_t units = t.k / UNIT<BITS>, group = t.b.group / UNIT<BITS>;
  vf total[S][M] = {}, acc[S][M] = {};
  int64_t left = group;
  for (int64_t u = 0; u < units; u += W) {
    vf square[S][W];
    for (int v = 0; v < S; v++) {
#pragma GCC unroll 16
      for (int i = 0; i < W; i++) square[v][i] = *(const vf_any*)(rows[v * W + i] + 4 * u);
      transpose(square[v]);
    }
    const int64_t end = least(W, units - u);
    for (int64_t j = 0; j < end; j++) {
      // One line at a time: a burst would take all the places for misses, and the codes of this square would wait.
      if (j < lines)
        for (int v = 0; v < S; v++) __builtin_prefetch(next + ((u * S + v * W) * W * 4 + j * 64), 0, 2);
#pragma GCC unroll 8
      for (int step = 0; step < steps; step++)
#pragma GCC unroll 4
        for (int v = 0; v < S; v++) {
          const auto weights = expand<E, BITS>(square[v][j], step);
#pragma GCC unroll 16
          for (int i = 0; i < M; i++)
            acc[v][i] = Step<E>::fma(weights, Step<E>::broadcast(a + (step * M + i) * KS<E>), acc[v][i]);
        }
      a += UNIT<BITS> * M;
      if (--left > 0) continue;
      left = group;
#pragma GCC unroll 4
      for (int v = 0; v < S; v++) {
        const vf scale = count >= W ? load(scales + v * W) : load_part(scales, int(count));
        // Of the columns that follow: groups lie too far apart for the processor to foresee.
        __builtin_prefetch(scales + (S + v) * W);
        for (int i = 0; i < M; i++) {
          total[v][i] += scale * acc[v][i];
          acc[v][i] = vf{};
        }
      }
      scales += t.n;
    }
  }
  for (int v = 0; v < S; v++)
    for (int i = 0; i < M; i++) {
      Out* out = c + i * t.ldc + v * W;
      if (count >= W) store(out, total[v][i]);
      else store_part(out, total[v][i], int(count));
    }
}

// Rows are taken by as many as there is code for.
inline int64_t strip_rows(int64_t left) { return left >= STREAMED ? STREAMED : left >= 4 ? 4 : left >= 2 ? 2 : 1; }
// Few rows go through several vectors of columns at a time: additions to one sum wait for each other, those to several do not.
constexpr int side_by_side(int64_t m) { return W < 16 || m > 4 ? 1 : m == 1 ? 4 : 2; }
constexpr int64_t PANEL = 4 * W;  // columns that a thread takes at a time

template <class E, int BITS, class Out>
void strip(const Task<E>& t, int64_t first, int64_t m, int64_t column, int64_t count) {
  const int64_t row_bytes = t.k * BITS / 8;
  const char* codes = static_cast<const char*>(t.b.codes) + column * row_bytes;
  const char* rows[PANEL];
  for (int64_t i = 0; i < PANEL; i++) rows[i] = codes + least(i, count - 1) * row_bytes;
  const char* next = column + count < t.n ? codes + count * row_bytes : codes;
  const E* a = t.a + first * t.k;
  Out* c = static_cast<Out*>(t.c) + first * t.ldc + column;
  const float* scales = t.b.scales + column;
  using Columns = void (*)(const Task<E>&, const E*, const char* const*, const float*, const char*, Out*, int64_t);
  static constexpr Columns single[] = {columns<E, BITS, Out, 1, 1>, columns<E, BITS, Out, 2, 1>, columns<E, BITS, Out, 4, 1>,
                                       columns<E, BITS, Out, STREAMED, 1>};
  static constexpr Columns several[] = {columns<E, BITS, Out, 1, side_by_side(1)>, columns<E, BITS, Out, 2, side_by_side(2)>,
                                        columns<E, BITS, Out, 4, side_by_side(4)>, single[3]};
  const int64_t index = m == STREAMED ? 3 : m / 2, together = side_by_side(m) * W;
  for (int64_t begin = 0, taken; begin < count; begin += taken) {
    const bool whole = count - begin >= together;
    taken = whole ? together : least(W, count - begin);
    (whole ? several : single)[index](t, a, rows + begin, scales + begin, next + begin * row_bytes, c + begin, taken);
  }
}

template <class E, int BITS>
void run(Context& ctx, const Task<E>& t) {
  const Shares shares{(t.n + PANEL - 1) / PANEL, ctx.pool.threads()};
  ctx.pool.run(shares.count(), [&](int64_t task, int) {
    const int64_t end = least(t.n, shares.begin(task + 1) * PANEL);
    for (int64_t column = shares.begin(task) * PANEL; column < end; column += PANEL)
      for (int64_t first = 0, m; first < t.m; first += m) {
        m = strip_rows(t.m - first);
        if (t.real_out || sizeof(E) == 4) strip<E, BITS, float>(t, first, m, column, least(PANEL, end - column));
        else strip<E, BITS, E>(t, first, m, column, least(PANEL, end - column));
      }
  });
}

// Strips of rows of A side by side for every step, in the order of `place`.
template <class E, int BITS>
const E* pack(Context& ctx, int64_t m, int64_t k, const E* a, int64_t lda) {
  auto* packed = static_cast<E*>(ctx.pool.scratch(ctx.pool.threads(), size_t(m * k) * sizeof(E)));
  ctx.pool.run((m + STREAMED - 1) / STREAMED, [&](int64_t task, int) {
    const int64_t end = least(m, (task + 1) * STREAMED);
    for (int64_t first = task * STREAMED, rows; first < end; first += rows) {
      rows = strip_rows(end - first);
      for (int64_t i = 0; i < rows; i++) {
        const E* from = a + (first + i) * lda;
        E* to = packed + first * k + i * KS<E>;
        for (int64_t unit = 0; unit < k; unit += UNIT<BITS>)
#pragma GCC unroll 8
          for (int step = 0; step < UNIT<BITS> / KS<E>; step++, to += rows * KS<E>)
            for (int half = 0; half < KS<E>; half++) to[half] = from[unit + place<E, BITS>(step, half)];
      }
    }
  });
  return packed;
}

template <class E>
int typed(Context& ctx, int64_t m, int64_t n, int64_t k, const void* a, int64_t lda, const LoopQuantized& b, void* c, int64_t ldc,
          bool real_out) {
  const auto product = [&](auto bits) {
    constexpr int BITS = decltype(bits)::value;
    run<E, BITS>(ctx, {b, n, k, pack<E, BITS>(ctx, m, k, static_cast<const E*>(a), lda), c, m, ldc, real_out});
  };
  if (b.bits == 4) product(std::integral_constant<int, 4>());
  else product(std::integral_constant<int, 8>());
  return 0;
}

}  // namespace

int gemm_quantized(void* context, LoopDType dt, int64_t m, int64_t n, int64_t k, const void* a, int64_t lda,
                   const LoopQuantized* b, void* c, int64_t ldc, int flags) {
  if (m <= 0 || n <= 0) return 0;
  auto& ctx = *static_cast<Context*>(context);
  const bool real_out = flags & LOOP_GEMM_REAL_OUT;
  return dt == LOOP_BF16 ? typed<bf16>(ctx, m, n, k, a, lda, *b, c, ldc, real_out)
                         : typed<float>(ctx, m, n, k, a, lda, *b, c, ldc, real_out);
}

}  // namespace looplm::cpu::LOOPLM_ISA

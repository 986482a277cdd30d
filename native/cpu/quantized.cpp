// Products of weights in 8 or 4 bits with unquantized activations. In the weight's layout, a vector of 32-bit units holds W
// rows. Codes become small integers, which are exact in bfloat16, and are multiplied with the activations. The sum of a group
// is multiplied with its scale and added in float32. For asymmetric weights, the middle is multiplied with the sum of the
// group's activations. A row is computed in the same way for every m.
#include <type_traits>  // defines: integral_constant

#include "gemm.h"
#include "int8.h"

namespace looplm::cpu::LOOPLM_ISA {

namespace {

constexpr int64_t R = QUANTIZED_ROWS;

// Which element of k of a unit `expand` returns in step `step`. The 4-bit table lookup works on all 16-bit halves of a lane
// at once, so it pairs element i with element i + 4.
template <class E, int BITS>
constexpr int place(int step, [[maybe_unused]] int half) {
  if constexpr (KS<E> == 1) return step;
  else if constexpr (BITS == 4) return step + 4 * half;
  else return 2 * step + half;
}
template <int BITS>
constexpr int UNIT = 32 / BITS;  // elements of k

// Step `step` of a vector of units (W columns), as the right operand of Step<E>::fma.
template <class E, int BITS>
inline __attribute__((always_inline)) auto expand(vf units, int step) {
#if defined(__AVX512BF16__)
  if constexpr (KS<E> == 2) {
    if constexpr (BITS == 4) {
      // the bfloat16 values of -8 … 7, twice, because a lookup reads five bits and the fifth belongs to the next code
      const __m512i table = _mm512_set_epi16(
          0x40e0, 0x40c0, 0x40a0, 0x4080, 0x4040, 0x4000, 0x3f80, 0, short(0xbf80), short(0xc000), short(0xc040), short(0xc080),
          short(0xc0a0), short(0xc0c0), short(0xc0e0), short(0xc100), 0x40e0, 0x40c0, 0x40a0, 0x4080, 0x4040, 0x4000, 0x3f80, 0,
          short(0xbf80), short(0xc000), short(0xc040), short(0xc080), short(0xc0a0), short(0xc0c0), short(0xc0e0), short(0xc100));
      return _mm512_permutexvar_epi16(_mm512_srli_epi16((__m512i)units, unsigned(4 * step)), table);
    } else {
      const vi low = ((vi)units << (24 - 16 * step)) >> 24, high = ((vi)units << (16 - 16 * step)) >> 24;
      const vu first = (vu) __builtin_convertvector(low, vf), second = (vu) __builtin_convertvector(high, vf);
      return (__m512i)((first >> 16) | (second & 0xffff0000u));  // 8-bit integers are exact in bfloat16
    }
  } else
#endif
  {
    if constexpr (BITS == 4) return __builtin_convertvector((vi)(((vu)units >> (4 * step)) & 15u) - 8, vf);
    else return __builtin_convertvector(((vi)units << (24 - 8 * step)) >> 24, vf);
  }
}

// The arguments that all tasks of a product share.
template <class E>
struct Task {
  const LoopQuantized& b;
  int64_t n, k;
  const Packed<E>* a;  // packed: per strip of rows, [k / KS][rows][KS]
  void* c;
  int64_t m, ldc;
  bool rounded;       // C is act; otherwise real
  const float* sums;  // [m, groups], of the activations; NULL for symmetric weights

  void put(int64_t row, int64_t column, vf value) const {
    const int64_t left = n - column, at = row * ldc + column;
    if (rounded) write(static_cast<E*>(c) + at, value, left);
    else write(static_cast<float*>(c) + at, value, left);
  }
  template <class Out>
  static void write(Out* out, vf value, int64_t left) {
    if (left >= W) store(out, value);
    else store_part(out, value, int(left));
  }
};

// M rows by S vectors of columns of C, from row `first` and column `column` on. a: those rows, packed.
template <class E, int BITS, int M, int S>
void columns(const Task<E>& t, const Packed<E>* a, int64_t first, int64_t column) {
  constexpr int steps = UNIT<BITS> / KS<E>;
  const int64_t units = t.k / UNIT<BITS>, group = t.b.group / UNIT<BITS>, groups = units / group;
  const float *codes[S], *scales[S];
  for (int v = 0; v < S; v++) {
    const int64_t begin = column + v * W, block = begin / R, lane = begin % R;
    codes[v] = static_cast<const float*>(t.b.codes) + block * units * R + lane;
    scales[v] = t.b.scales + block * groups * R + lane;
  }
  vf total[S][M] = {}, acc[S][M] = {};
  for (int64_t g = 0; g < groups; g++) {
    for (int64_t u = 0; u < group; u++, a += UNIT<BITS> * M) {
      vf unit[S];
      for (int v = 0; v < S; v++) {
        unit[v] = load(codes[v]);
        __builtin_prefetch(codes[v] + 16 * R);
        codes[v] += R;
      }
#pragma GCC unroll 8
      for (int step = 0; step < steps; step++)
#pragma GCC unroll 4
        for (int v = 0; v < S; v++) {
          const auto weights = expand<E, BITS>(unit[v], step);
#pragma GCC unroll 16
          for (int i = 0; i < M; i++)
            acc[v][i] = Step<E>::fma(weights, Step<E>::broadcast(a + (step * M + i) * KS<E>), acc[v][i]);
        }
    }
#pragma GCC unroll 4
    for (int v = 0; v < S; v++) {
      const vf loaded = load(scales[v] + g * R), scale = t.sums ? upper_halves(loaded) : loaded;
      for (int i = 0; i < M; i++) {
        total[v][i] += scale * acc[v][i];
        if (t.sums) total[v][i] += lower_halves(loaded) * t.sums[(first + i) * groups + g];
        acc[v][i] = vf{};
      }
    }
  }
  for (int v = 0; v < S; v++)
    for (int i = 0; i < M; i++) t.put(first + i, column + v * W, total[v][i]);
}

// The largest number of rows, at most `left`, for which a kernel exists.
inline int64_t strip_rows(int64_t left) { return left >= STREAMED ? STREAMED : left >= 4 ? 4 : left >= 2 ? 2 : 1; }
// With few rows, several vectors of columns are computed at once, because additions to the same sum must wait for each other.
#if defined(__SSE2__) && !defined(__AVX2__)
constexpr int side_by_side(int64_t) { return 1; }  // it has only half the registers
#else
constexpr int side_by_side(int64_t m) { return m > 4 ? 1 : m == 1 ? 4 : 2; }
#endif
constexpr int64_t PANEL = 4 * R;  // columns per task

template <class E, int BITS>
void strip(const Task<E>& t, int64_t first, int64_t m, int64_t column, int64_t end) {
  using Columns = void (*)(const Task<E>&, const Packed<E>*, int64_t, int64_t);
  static constexpr Columns single[] = {columns<E, BITS, 1, 1>, columns<E, BITS, 2, 1>, columns<E, BITS, 4, 1>,
                                       columns<E, BITS, STREAMED, 1>};
  static constexpr Columns several[] = {columns<E, BITS, 1, side_by_side(1)>, columns<E, BITS, 2, side_by_side(2)>,
                                        columns<E, BITS, 4, side_by_side(4)>, single[3]};
  const int64_t index = m == STREAMED ? 3 : m / 2, together = side_by_side(m) * W;
  while (column < end) {
    const bool whole = end - column >= together;
    (whole ? several : single)[index](t, t.a + first * t.k, first, column);
    column += whole ? together : W;
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
        strip<E, BITS>(t, first, m, column, least(column + PANEL, end));
      }
  });
}

// Packs A in strips of rows, interleaved for every step, in the order of `place`.
template <class E, int BITS>
const Packed<E>* pack(Context& ctx, int64_t m, int64_t k, const E* a, int64_t lda, char* room) {
  auto* packed = reinterpret_cast<Packed<E>*>(room);
  ctx.pool.run((m + STREAMED - 1) / STREAMED, [&](int64_t task, int) {
    const int64_t end = least(m, (task + 1) * STREAMED);
    for (int64_t first = task * STREAMED, rows; first < end; first += rows) {
      rows = strip_rows(end - first);
      for (int64_t i = 0; i < rows; i++) {
        const E* from = a + (first + i) * lda;
        Packed<E>* to = packed + first * k + i * KS<E>;
        for (int64_t unit = 0; unit < k; unit += UNIT<BITS>)
#pragma GCC unroll 8
          for (int step = 0; step < UNIT<BITS> / KS<E>; step++, to += rows * KS<E>)
            for (int half = 0; half < KS<E>; half++) to[half] = as_packed(from[unit + place<E, BITS>(step, half)]);
      }
    }
  });
  return packed;
}

// Sums of the activations of each group: out [m, k / group].
template <class E>
void sum_groups(Context& ctx, int64_t m, int64_t k, int group, const E* a, int64_t lda, float* out) {
  const int64_t groups = k / group;
  for_rows(ctx, m, k, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++)
      for (int64_t g = 0; g < groups; g++) {
        vf all = {};
        for (int l = 0; l < group; l += W) all += load(a + i * lda + g * group + l);
        out[i * groups + g] = sum(all);
      }
  });
}

template <class E>
int typed(Context& ctx, int64_t m, int64_t n, int64_t k, const void* a, int64_t lda, const LoopQuantized& b, void* c, int64_t ldc,
          bool rounded) {
  const auto product = [&](auto bits) {
    constexpr int BITS = decltype(bits)::value;
    const auto* rows = static_cast<const E*>(a);
    const size_t packed = size_t(m * k) * sizeof(Packed<E>);
    char* room = static_cast<char*>(ctx.pool.scratch(ctx.pool.threads(), packed + size_t(m * (k / b.group)) * 4));
    float* sums = b.asymmetric ? reinterpret_cast<float*>(room + packed) : nullptr;
    if (sums) sum_groups(ctx, m, k, b.group, rows, lda, sums);
    run<E, BITS>(ctx, {b, n, k, pack<E, BITS>(ctx, m, k, rows, lda, room), c, m, ldc, rounded, sums});
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
  const bool rounded = dt == LOOP_BF16 && !(flags & LOOP_GEMM_REAL_OUT);
  if (b->activation_bits == 8) return ctx.int8->product(ctx, dt, m, n, k, a, lda, *b, c, ldc, rounded), 0;
  return dt == LOOP_BF16 ? typed<bf16>(ctx, m, n, k, a, lda, *b, c, ldc, rounded)
                         : typed<float>(ctx, m, n, k, a, lda, *b, c, ldc, rounded);
}

int byte_products(void* context, int64_t rounds, double* host_operations) {
  auto& ctx = *static_cast<Context*>(context);
  *host_operations = ctx.int8->roof(ctx, rounds);
  return 0;
}

}  // namespace looplm::cpu::LOOPLM_ISA

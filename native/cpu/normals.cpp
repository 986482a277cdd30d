// Initial values of parameters: normal values in vectors of double, which match exact_normal bit for bit after rounding to
// float32. A vector's values are known to ±MARGIN · radius. If both ends of that range round to the same float32, that is
// exact_normal's value as well. The few others (about one in a million) are computed by exact_normal.
#include "exact_normals.h"
#include "kernels.h"
#if defined(__SSE2__)
#include <emmintrin.h>  // defines: _mm_mul_epu32
#endif

namespace looplm::cpu::LOOPLM_ISA {

namespace {

constexpr int H = W / 2;  // doubles in a vector
typedef double vd __attribute__((vector_size(H * 8)));
typedef uint64_t vq __attribute__((vector_size(H * 8)));
typedef float vd_floats __attribute__((vector_size(H * 4)));

// Relative to the radius of Box-Muller. The error here is below 2^-48. That of exact_normal, mostly from rounding the angle,
// is below 2^-50.
constexpr double MARGIN = 0x1p-44;

struct Counters {
  vq word[4];  // each below 2^32, in 64 bits
};

// The full 64-bit product of numbers below 2^32.
inline vq product(vq a, uint32_t b) {
#if defined(__AVX512F__)
  return (vq)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(b));
#elif defined(__AVX2__)
  return (vq)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b));
#elif defined(__SSE2__)
  return (vq)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(b));
#else
  return a * uint64_t(b);
#endif
}

inline Counters philox_words(Counters c, uint64_t seed) {
  constexpr uint64_t low = 0xffffffffu;
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
  for (int round = 0; round < 10; round++) {
    const vq p0 = product(c.word[0], 0xD2511F53u), p1 = product(c.word[2], 0xCD9E8D57u);
    c = {{(p1 >> 32) ^ c.word[1] ^ uint64_t(k0), p1 & low, (p0 >> 32) ^ c.word[3] ^ uint64_t(k1), p0 & low}};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

// Integers below 2^52 as doubles, using only instructions that AVX2 has.
inline vd to_doubles(vq x) { return (vd)(x | 0x4330000000000000u) - 0x1p52; }

// unit_interval of philox.h: a 53-bit uniform number in (0, 1).
inline vd unit(vq high, vq low) {
  const vd x = (to_doubles(high) * 0x1p21 + to_doubles(low >> 11)) * 0x1p-53, smallest = vd{} + 0x1p-54;
  return x > smallest ? x : smallest;
}

// log x of normal numbers below 1: x = 2^k m with m in [sqrt(1/2), sqrt 2), log m = 2 artanh(s), s = (m - 1) / (m + 1).
inline vd log_of(vd x) {
  constexpr uint64_t root_half = 0x3fe6a09e667f3bcdu, offset = 2048;
  const vq k = ((vq)x - root_half + (offset << 52)) >> 52;  // the offset keeps it positive
  const vd m = (vd)((vq)x - ((k - offset) << 52)), s = (m - 1.0) / (m + 1.0), z = s * s;
  vd p = z * (1.0 / 21) + 1.0 / 19;
  for (const double c : {1.0 / 17, 1.0 / 15, 1.0 / 13, 1.0 / 11, 1.0 / 9, 1.0 / 7, 1.0 / 5, 1.0 / 3}) p = p * z + c;
  return (to_doubles(k) - double(offset)) * 0.69314718055994530942 + 2.0 * (s + s * z * p);
}

// cos and sin of 2π u: the nearest quarter turn, plus series in the rest (at most an eighth of a turn).
inline void turn(vd u, vd& cosine, vd& sine) {
  constexpr double round = 0x1.8p52;
  const vd nearest = u * 4.0 + round;
  const vq quarter = (vq)nearest;  // only its lowest bits matter
  const vd x = (u * 4.0 - (nearest - round)) * 1.57079632679489661923, z = x * x;
  vd s = z * (-1.0 / 1307674368000) + 1.0 / 6227020800, c = z * (1.0 / 20922789888000) - 1.0 / 87178291200;
  for (const double k : {-1.0 / 39916800, 1.0 / 362880, -1.0 / 5040, 1.0 / 120, -1.0 / 6}) s = s * z + k;
  for (const double k : {1.0 / 479001600, -1.0 / 3628800, 1.0 / 40320, -1.0 / 720, 1.0 / 24, -1.0 / 2}) c = c * z + k;
  s = x + x * z * s;
  c = 1.0 + z * c;
  const vq odd = -(quarter & 1u), minus_cos = ((quarter + 1u) >> 1 & 1u) << 63, minus_sin = (quarter >> 1 & 1u) << 63;
  cosine = (vd)((((vq)s & odd) | ((vq)c & ~odd)) ^ minus_cos);
  sine = (vd)((((vq)c & odd) | ((vq)s & ~odd)) ^ minus_sin);
}

inline vd root(vd x) {
#if defined(__AVX512F__)
  return (vd)_mm512_maskz_sqrt_pd(0xff, (__m512d)x);
#elif defined(__AVX2__)
  return (vd)_mm256_sqrt_pd((__m256d)x);
#else
  for (int i = 0; i < H; i++) x[i] = __builtin_sqrt(x[i]);
  return x;
#endif
}

// Both ends of the range of normal · deviation, in float32. If they differ, exact_normal must decide.
struct Ends {
  vd_floats low, high;
};
inline Ends ends(vd normal, vd radius, double deviation) {
  const vd value = normal * deviation, margin = radius * (MARGIN * __builtin_fabs(deviation));
  return {__builtin_convertvector(value - margin, vd_floats), __builtin_convertvector(value + margin, vd_floats)};
}

struct Drawn {
  vf low, high;  // W elements
};

template <size_t... I>
inline vf interleaved(vd_floats a, vd_floats b, std::index_sequence<I...>) {
  return __builtin_shufflevector(a, b, int(I / 2 + (I % 2) * H)...);
}
template <size_t... I>
inline vf joined(vd_floats a, vd_floats b, std::index_sequence<I...>) {
  return __builtin_shufflevector(a, b, int(I)...);
}

struct Stream {
  uint64_t seed;
  uint32_t parameter;
  double deviation;
};

inline vq following(uint64_t first, uint64_t mask) {
  vq x = {};
  for (int i = 0; i < H; i++) x[i] = first + uint64_t(i);
  return x & mask;
}

// Elements [index, index + W) for an even index: H Philox blocks, each of which gives a pair of values.
inline Drawn draw_pairs(const Stream& s, uint32_t index) {
  const vq zero = {};
  const Counters bits = philox_words({{following(index / 2, 0x7fffffffu), zero, zero + s.parameter, zero + 1}}, s.seed);
  vd cosine, sine;
  turn(unit(bits.word[2], bits.word[3]), cosine, sine);
  const vd radius = root(-2.0 * log_of(unit(bits.word[0], bits.word[1])));
  const Ends even = ends(radius * cosine, radius, s.deviation), odd = ends(radius * sine, radius, s.deviation);
  return {interleaved(even.low, odd.low, Lanes()), interleaved(even.high, odd.high, Lanes())};
}

// H elements, each from its own Philox block. For values near or beyond the bound the ends are made to differ.
inline Ends draw_truncated_half(const Stream& s, uint32_t index) {
  const vq zero = {};
  const Counters bits = philox_words({{following(index, 0xffffffffu), zero, zero + s.parameter, zero + 3}}, s.seed);
  vd cosine, sine;
  turn(unit(bits.word[2], bits.word[3]), cosine, sine);
  const vd radius = root(-2.0 * log_of(unit(bits.word[0], bits.word[1]))), x = radius * cosine;
  const vd magnitude = (vd)((vq)x & 0x7fffffffffffffffu);
  const vq beyond = (vq)(magnitude > 3 - 0x1p-32);
  Ends out = ends(x, radius, s.deviation);
  for (int i = 0; i < H; i++)
    if (beyond[i]) out.low[i] = 0, out.high[i] = 1;
  return out;
}
inline Drawn draw_truncated(const Stream& s, uint32_t index) {
  const Ends first = draw_truncated_half(s, index), second = draw_truncated_half(s, index + H);
  return {joined(first.low, second.low, Lanes()), joined(first.high, second.high, Lanes())};
}

inline bool differ(vf a, vf b) {
  const vi different = ~(vi)(a == b);
  uint64_t parts[W / 2], any = 0;
  memcpy(parts, &different, sizeof parts);
  for (uint64_t part : parts) any |= part;
  return any != 0;
}

inline void store_rounded(float* p, vf x) { store(p, x); }
inline void store_rounded(bf16* p, vf x) { store_exact(p, x); }

// Draws `count` elements from `index` on.
template <bool truncated, class E>
void draw(const Stream& s, uint32_t index, int64_t count, E* out) {
  const auto exact = [&](int64_t i) {
    set(out[i], float(s.deviation * exact_normal(truncated, s.seed, s.parameter, index + uint32_t(i))));
  };
  int64_t i = 0;
  if (!truncated && index % 2 == 1 && count > 0) exact(i++);  // the second value of a pair
  for (; i + W <= count; i += W) {
    const uint32_t at = index + uint32_t(i);
    const Drawn drawn = truncated ? draw_truncated(s, at) : draw_pairs(s, at);
    store_rounded(out + i, drawn.low);
    if (differ(drawn.low, drawn.high))
      for (int k = 0; k < W; k++)
        if (!(drawn.low[k] == drawn.high[k])) exact(i + k);
  }
  for (; i < count; i++) exact(i);
}

template <class E>
int draw_all(Context& ctx, bool truncated, const Stream& s, uint32_t first, int64_t count, E* out) {
  constexpr int64_t BLOCK = 16384;  // elements per task
  for_rows(ctx, (count + BLOCK - 1) / BLOCK, BLOCK, [=](int64_t begin, int64_t end, int) {
    const int64_t at = begin * BLOCK, length = (end * BLOCK < count ? end * BLOCK : count) - at;
    (truncated ? draw<true, E> : draw<false, E>)(s, first + uint32_t(at), length, out + at);
  });
  return 0;
}

}  // namespace

int draw_normals(void* context, LoopDType dt, int truncated, uint64_t seed, uint32_t parameter, uint32_t first, int64_t count,
                 double deviation, void* out) {
  auto& ctx = *static_cast<Context*>(context);
  const Stream s = {seed, parameter, deviation};
  return dt == LOOP_BF16 ? draw_all(ctx, truncated != 0, s, first, count, static_cast<bf16*>(out))
                         : draw_all(ctx, truncated != 0, s, first, count, static_cast<float*>(out));
}

}  // namespace looplm::cpu::LOOPLM_ISA

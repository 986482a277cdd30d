// The quantized KV cache (backend.h, LoopCacheCodes): encodes rows into records, and computes attention directly on the
// records.
//
// A vector of words holds, at each place of a word, the codes of as many lanes. The codes are masked but not shifted: the
// code at place n is code · 2^(bits n) as an integer, and exactly so as a float. The factor
// 2^(bits n) is divided out of the query before the scores, and out of the sums after the values. So a code costs one `and`, one
// conversion and one multiply-add.
//
// If the processor multiplies bytes, scores of bfloat16 queries are sums of integers (ByteScores). A code then costs a
// quarter of that. Records of pruned keys are first expanded, a few at a time, to records with all codes.
#include <math.h>

#include <tuple>
#include <type_traits>

#include "decoded_row.h"
#if defined(__AVX2__)
#include <immintrin.h>  // defines: products of bytes, _pdep_u64
#endif

namespace looplm::cpu::LOOPLM_ISA {

namespace {

constexpr int LANES = W < 8 ? W : 8;  // a group of 64 numbers of 4 bits is one vector of words

template <int L>
struct Lane {
  typedef float real __attribute__((vector_size(L * 4)));
  typedef int32_t word __attribute__((vector_size(L * 4)));
};
// Loads a vector from any address; it need not be aligned.
template <class V>
inline V load_lanes(const void* p) {
  V x;
  memcpy(&x, p, sizeof x);
  return x;
}

struct Format {
  LoopCacheCodes codes;
  int64_t words, width;  // words: of a group with all codes; width: numbers per record
  Format(LoopCacheCodes of, int64_t numbers) : codes(of), words(loop_code_words(of)), width(numbers) {}
  int64_t groups() const { return width / codes.group; }
  int64_t record() const { return loop_record_bytes(codes, width) / 4; }  // words per record
  bool pruned() const { return codes.kept > 0; }
  // Offsets in a pruned record, in words: the masks, the scales and minimums, the codes of the pruned numbers.
  int64_t masks() const { return groups() * loop_kept_words(codes); }
  int64_t pairs() const { return masks() + groups() * loop_mask_words(codes); }
  int64_t restored() const { return pairs() + groups(); }
};

// Scale (lower half) and minimum (upper half) of a group, both bfloat16.
inline float scale_of(uint32_t pair) { return bf16_to_float(uint16_t(pair)); }
inline float minimum_of(uint32_t pair) { return bf16_to_float(uint16_t(pair >> 16)); }

inline uint32_t bits_of(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  return u;
}
// Rounds x >= 0 up to bfloat16.
inline uint16_t up(float x) {
  const uint32_t u = bits_of(x);
  return uint16_t((u >> 16) + ((u & 0xffff) != 0));
}
inline uint16_t down(float x) {
  const uint32_t u = bits_of(x);
  return u >> 31 ? up(x) : uint16_t(u >> 16);  // for a negative number, down means a larger magnitude
}

// ---- Records

template <class E>
void encode(const Format& f, const E* x, uint32_t* record) {
  const int64_t group = f.codes.group;
  const float most = float((1 << f.codes.bits) - 1);
  uint32_t* pairs = record + f.groups() * f.words;
  for (int64_t g = 0; g < f.groups(); g++, x += group, record += f.words) {
    vf low = splat(__builtin_inff()), high = -low, zero = {};  // zero: becomes NaN if a number is not finite
    for_vectors(
        group, LOOPLM_VECTORS(j, part, chain) {
          const vf y = load(x + j, part);
          low = vmin(low, keep(y, low, part));
          high = vmax(high, keep(y, high, part));
          zero += y * 0.0f;
        });
    const bool finite = sum(zero) == 0;
    const uint16_t minimum = finite ? down(-maximum(-low)) : 0x7fc0;
    const float from = bf16_to_float(minimum);
    const uint16_t scale = finite ? up((maximum(high) - from) / most) : 0;
    const float inverse = scale ? 1 / bf16_to_float(scale) : 0;
    pairs[g] = uint32_t(minimum) << 16 | scale;
    memset(record, 0, size_t(f.words) * 4);
    if (!scale) continue;
    for (int64_t i = 0, shift = 0; i < group; i += f.words, shift += f.codes.bits)
      for (int64_t w = 0; w < least(f.words, group - i); w++) {
        const float code = rintf((to_float(x[i + w]) - from) * inverse);
        record[w] |= uint32_t(int32_t(code < most ? code : most)) << shift;
      }
  }
}

// Start of the first shortest interval: of all runs of `count` neighbours among `size` ascending numbers, the first with the
// smallest last - first.
inline int64_t shortest_interval(const float* ascending, int64_t size, int64_t count) {
  int64_t first = 0;
  for (int64_t i = 1; i + count <= size; i++)
    if (ascending[i + count - 1] - ascending[i] < ascending[first + count - 1] - ascending[first]) first = i;
  return first;
}

// scratch: three floats per number of a group.
template <class E>
void encode_pruned(const Format& f, const E* x, uint32_t* record, float* scratch) {
  const int64_t group = f.codes.group, pruned = group - f.codes.kept, words = f.words;
  float *y = scratch, *ascending = y + group;
  auto* rank = reinterpret_cast<int32_t*>(ascending + group);
  memset(record, 0, size_t(f.record()) * 4);
  uint32_t* pairs = record + f.pairs();
  auto* restored = reinterpret_cast<uint8_t*>(record + f.restored());
  for (int64_t g = 0; g < f.groups(); g++, x += group) {
    float zero = 0;  // becomes NaN if a number is not finite
    for (int64_t i = 0; i < group; i++) y[i] = to_float(x[i]), zero += y[i] * 0.0f;
    pairs[g] = 0x7fc00000;
    if (zero != 0) continue;
    for (int64_t i = 0; i < group; i++) {
      int32_t below = 0;
      for (int64_t j = 0; j < i; j++) below += y[j] <= y[i];
      for (int64_t j = i + 1; j < group; j++) below += y[j] < y[i];
      rank[i] = below, ascending[below] = y[i];
    }
    const uint16_t minimum = down(ascending[0]);
    const float from = bf16_to_float(minimum);
    const uint16_t scale = up((ascending[group - 1] - from) / 14);
    pairs[g] = uint32_t(minimum) << 16 | scale;
    if (!scale) continue;
    const float inverse = 1 / bf16_to_float(scale);
    const auto code = [](float x, float most) { return uint32_t(int32_t(rintf(x) < most ? rintf(x) : most)); };
    const int64_t first = shortest_interval(ascending, group, pruned);
    const float middle = ascending[first] / 2 + ascending[first + pruned - 1] / 2;
    restored[g] = uint8_t(code((middle - from) * inverse, 14));
    uint32_t* kept = record + g * loop_kept_words(f.codes);
    auto* mask = reinterpret_cast<uint8_t*>(record + f.masks() + g * loop_mask_words(f.codes));
    uint64_t open = 0;  // codes not yet written as a word, and how many bits they have
    int bits = 0;
    for (int64_t w = 0; w < words; w++)
      for (int64_t i = w, place = 0; i < group; i += words, place++) {
        if (rank[i] >= first && rank[i] < first + pruned) continue;
        mask[w] |= uint8_t(1 << place);
        open |= uint64_t(code((y[i] - from) * inverse / 2, 7)) << bits;
        bits += 3;
        if (bits >= 32) *kept++ = uint32_t(open), open >>= 32, bits -= 32;
      }
    if (bits > 0) *kept = uint32_t(open);
  }
}

// Expands groups [begin, end) of a pruned record into a record with all codes. Takes L words at a time, one per lane.
template <int L>
void expand_groups(const Format& f, const uint32_t* record, int64_t begin, int64_t end, uint32_t* to) {
  typedef uint32_t word __attribute__((vector_size(L * 4)));
  const auto* restored = reinterpret_cast<const uint8_t*>(record + f.restored());
  for (int64_t g = begin; g < end; g++) {
    const auto* kept = reinterpret_cast<const char*>(record + g * loop_kept_words(f.codes));
    const auto* mask = reinterpret_cast<const uint8_t*>(record + f.masks() + g * loop_mask_words(f.codes));
    for (int64_t w = 0, at = 0; w < f.words; w += L) {  // at: the bit at which the next codes start
      uint32_t masks[L], codes[L];
      for (int k = 0; k < L; k++) {
        masks[k] = mask[w + k];
        // At most 24 bits. Reading past the last codes is safe, because masks and scales follow.
        codes[k] = load_lanes<uint32_t>(kept + at / 8) >> at % 8;
        at += 3 * __builtin_popcount(masks[k]);
      }
      const word places = load_lanes<word>(masks);
      word code = load_lanes<word>(codes), out = {};
      for (int place = 0; place < 8; place++) {
        const word is_kept = 0 - (places >> place & 1);
        out |= ((code << 1 & 14 & is_kept) | (restored[g] & ~is_kept)) << (4 * place);
        code >>= 3 & is_kept;
      }
      memcpy(to + g * f.words + w, &out, sizeof out);
    }
  }
}

#if defined(__AVX2__)
// The same with two words at a time, using an instruction that scatters bits (pdep). On family 17h (Zen, Zen 2) that
// instruction takes hundreds of cycles.
inline bool scatters_bits() { return __builtin_cpu_supports("bmi2") && !__builtin_cpu_is("amdfam17h"); }
__attribute__((target("bmi2,popcnt"))) void expand_pairs(const Format& f, const uint32_t* record, int64_t begin, int64_t end,
                                                         uint32_t* to) {
  constexpr uint64_t ones = 0x1111111111111111;
  const auto* restored = reinterpret_cast<const uint8_t*>(record + f.restored());
  const auto *kept = reinterpret_cast<const char*>(record), *masks = reinterpret_cast<const char*>(record + f.masks());
  const int64_t kept_bytes = 4 * loop_kept_words(f.codes), mask_bytes = 4 * loop_mask_words(f.codes);
  for (int64_t g = begin; g < end; g++)
    for (int64_t w = 0, at = g * kept_bytes * 8; w < f.words; w += 2) {
      const uint64_t places = load_lanes<uint16_t>(masks + g * mask_bytes + w), is_kept = _pdep_u64(places, ones),
                     codes = load_lanes<uint64_t>(kept + at / 8) >> at % 8,  // at most 48 bits
          out = _pdep_u64(codes, is_kept * 7) << 1 | (restored[g] * ones & ~(is_kept * 15));
      memcpy(to + g * f.words + w, &out, sizeof out);
      at += 3 * __builtin_popcountll(places);
    }
}
#endif

template <int L>
void expand(const Format& f, const uint32_t* record, int64_t begin, int64_t end, uint32_t* to) {
  memcpy(to + f.groups() * f.words + begin, record + f.pairs() + begin, size_t(end - begin) * 4);
#if defined(__AVX2__)
  if (scatters_bits() && f.words % 2 == 0) return expand_pairs(f, record, begin, end, to);
#endif
  expand_groups<L>(f, record, begin, end, to);
}

// Decodes a record with all codes: calls number(i, x) for each i, where x is the decoded number i.
template <class F>
void for_numbers(const Format& f, const uint32_t* record, F number) {
  const int64_t group = f.codes.group;
  const uint32_t mask = (1u << f.codes.bits) - 1;
  const uint32_t* pairs = record + f.groups() * f.words;
  for (int64_t g = 0; g < f.groups(); g++, record += f.words) {
    const float from = minimum_of(pairs[g]), scale = scale_of(pairs[g]);
    for (int64_t i = 0, shift = 0; i < group; i += f.words, shift += f.codes.bits)
      for (int64_t w = 0; w < least(f.words, group - i); w++)
        number(g * group + i + w, from + scale * float(int32_t(record[w] >> shift & mask)));
  }
}

// Writes the records of a token: the anchor, and one residual for each earlier loop. scratch: 2 · width floats.
template <class E>
void encode_residuals(const LoopResidualEncode& e, const LoopResidualToken& token, const E* exact, uint32_t* anchors,
                      uint32_t* residuals, float* scratch) {
  const Format anchor(e.anchor, e.width), residual(e.residual, e.width);
  float *numbers = scratch, *differences = scratch + e.width;
  const auto row = [&](int64_t loop) { return exact + (loop * e.exact_slots + token.exact) * e.width; };
  uint32_t* const record = anchors + token.slot * anchor.record();
  encode(anchor, row(token.loops - 1), record);
  for_numbers(anchor, record, [&](int64_t i, float x) { numbers[i] = x; });
  for (int64_t t = 0; t + 1 < token.loops; t++) {
    for (int64_t i = 0; i < e.width; i++) differences[i] = to_float(row(t)[i]) - numbers[i];
    encode(residual, differences, residuals + (t * e.slots + token.slot) * residual.record());
  }
}

// ---- Attention

#if defined(__AVX2__)
// Dot products of a query with the codes of a group of 32 or 64 numbers, in integers. The query is rounded to 15 bits with
// sign, relative to the largest magnitude in the group: unit · (128 · high + low). Codes are unsigned bytes, 32 per vector.
template <int B, int WORDS>
struct ByteScores {
  static constexpr int KEYS = 8, VECTORS = WORDS / B, COPIES = 8 / WORDS;  // COPIES: how often a group's words are in a vector
  using real = typename Lane<8>::real;
  using word = typename Lane<8>::word;
  struct Query {  // one group of a query
    int8_t high[VECTORS][32], low[VECTORS][32];
    float unit, total;
  };

  // The channel of byte `at` of vector v.
  static constexpr int64_t channel(int v, int at) {
    const int part = at / (4 * WORDS) + COPIES * v, word = at % (4 * WORDS) / 4, byte = at % 4;
    return WORDS * (byte * (8 / B) + part) + word;
  }
  template <class E>
  static Query round(const E* q) {
    constexpr float most = 127 * 128;
    Query out;
    float top = 0;
    out.total = 0;
    for (int64_t i = 0; i < 32 * VECTORS; i++) {
      const float x = to_float(q[i]), size = x < 0 ? -x : x;
      top = size > top ? size : top;
      out.total += x;
    }
    out.unit = top / most;
    const float inverse = out.unit > 0 ? 1 / out.unit : 0;
    for (int v = 0; v < VECTORS; v++)
      for (int at = 0; at < 32; at++) {
        const float x = rintf(to_float(q[channel(v, at)]) * inverse);
        const int32_t code = x >= -most && x <= most ? int32_t(x) : 0,
                      high = (code + 64) >> 7;  // out of range only if not finite, as is the total then
        out.high[v][at] = int8_t(high), out.low[v][at] = int8_t(code - 128 * high);
      }
    return out;
  }

  static inline __attribute__((always_inline)) void unpack(const uint32_t* code, __m256i (&out)[VECTORS]) {
    const __m256i mask = _mm256_set1_epi8((1 << B) - 1);
    __m256i x;
    if constexpr (WORDS == 8) {
      x = load_lanes<__m256i>(code);
    } else if constexpr (WORDS == 4) {
      x = _mm256_srlv_epi32(_mm256_broadcastsi128_si256(load_lanes<__m128i>(code)), _mm256_setr_epi32(0, 0, 0, 0, B, B, B, B));
    } else {
      x = _mm256_srlv_epi64(_mm256_set1_epi64x(load_lanes<int64_t>(code)), _mm256_setr_epi64x(0, B, 2 * B, 3 * B));
    }
    for (int v = 0; v < VECTORS; v++) out[v] = _mm256_and_si256(v ? _mm256_srli_epi16(x, B * COPIES * v) : x, mask);
  }
  // Returns lanes whose sum is Σ code · (128 · high + low).
  static inline __attribute__((always_inline)) word products(const uint32_t* code, const Query& q) {
    __m256i x[VECTORS], high = {}, low = {};
    unpack(code, x);
    for (int v = 0; v < VECTORS; v++) {
      const __m256i a = load_lanes<__m256i>(q.high[v]), b = load_lanes<__m256i>(q.low[v]);
#if defined(__AVX512VNNI__)
      high = _mm256_dpbusd_epi32(high, x[v], a), low = _mm256_dpbusd_epi32(low, x[v], b);
#elif defined(__AVXVNNI__)
      high = _mm256_dpbusd_avx_epi32(high, x[v], a), low = _mm256_dpbusd_avx_epi32(low, x[v], b);
#else  // four products of at most 15 · 127 fit in 16 bits
      high = _mm256_add_epi16(high, _mm256_maddubs_epi16(x[v], a)), low = _mm256_add_epi16(low, _mm256_maddubs_epi16(x[v], b));
#endif
    }
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
    return ((word)high << 7) + (word)low;
#else
    return (word)_mm256_madd_epi16(high, _mm256_set1_epi16(128)) + (word)_mm256_madd_epi16(low, _mm256_set1_epi16(1));
#endif
  }
  // Returns query · key for KEYS keys. record: the keys' records. next: records of later keys, to prefetch. codes, pairs:
  // where the head's codes and its pairs of scale and minimum start in a record.
  static inline real score(const uint32_t* const* record, const uint32_t* const* next, int64_t codes, int64_t pairs,
                           const Query* q, int64_t groups) {
    real total = {};
    for (int k = 0; k < KEYS; k++) __builtin_prefetch(next[k] + codes);
    for (int64_t g = 0; g < groups; g++, codes += WORDS, pairs++, q++) {
      word sums[KEYS], pair;
#pragma GCC unroll 8
      for (int k = 0; k < KEYS; k++) sums[k] = products(record[k] + codes, *q), pair[k] = int32_t(record[k][pairs]);
      const real sum = __builtin_convertvector(sums_of<KEYS>(sums), real);
      total += (real)(pair << 16) * (sum * q->unit) + (real)(pair & int32_t(0xffff0000)) * q->total;
    }
    return total;
  }
};
#endif

// Attention of one row over the records of its context, for some key heads. DecodedRow does the same for rows in act. Codes
// of B bits, in vectors of L lanes.
template <int B, int L>
struct CodedRow {
  using real = typename Lane<L>::real;
  using word = typename Lane<L>::word;
  static constexpr int BITS = B, PLACES = 32 / B;

  const Format& format;
  int64_t head_dim, context;
  int32_t first, kv_heads, group;
  const int64_t *key_offsets, *offsets;  // [context] offset of each slot's record, in words: keys, values
  const uint32_t *keys, *values;
  float scale;
  // [kv_heads, group, query_size]: per group [vectors, PLACES, L] channels in the order of the codes; then the sums.
  float* query;
  float* scores;
  int64_t stride;
  float* sums;
  bool adds = false;  // add to the scores instead of overwriting them

  int64_t vectors() const { return format.words / L; }
  int64_t groups() const { return head_dim / format.codes.group; }  // per head
  int64_t first_group(int32_t head) const { return (first + head) * groups(); }
  int64_t query_size() const { return groups() * (format.words * PLACES + 1); }
  static constexpr float power(int place) { return place == PLACES - 1 ? 1.0f : 1.0f / float(1u << (B * place)); }
  template <int place>
  static inline real codes(word w) {
    typedef uint32_t bits __attribute__((vector_size(L * 4)));
    if constexpr (place == PLACES - 1) return __builtin_convertvector((word)((bits)w >> (B * place)), real);
    else return __builtin_convertvector(w & int32_t(((1u << B) - 1) << (B * place)), real);
  }
  template <class F, size_t... I>
  static inline __attribute__((always_inline)) void for_places(F f, std::index_sequence<I...>) {
    (f(std::integral_constant<int, int(I)>()), ...);
  }
  template <class F>
  static inline __attribute__((always_inline)) void for_places(F f) {
    for_places(f, std::make_index_sequence<PLACES>());
  }

  template <class E>
  void take_query(const E* q, float* to) const {
    const int64_t size = format.codes.group, words = format.words;
    float* totals = to + groups() * words * PLACES;
    memset(to, 0, size_t(groups() * words * PLACES) * sizeof(float));
    for (int64_t g = 0; g < groups(); g++, q += size, to += words * PLACES) {
      totals[g] = 0;
      for (int64_t i = 0; i < size; i++) {
        const int64_t w = i % words, place = i / words;
        to[(w / L * PLACES + place) * L + w % L] = to_float(q[i]) * power(int(place));
        totals[g] += to_float(q[i]);
      }
    }
  }

  // Records are read in pieces. Between two pieces of a record there is so much work that the processor does not prefetch the
  // next one by itself. Returns the offset of the record `keys` further on, to prefetch its same piece. Near the end it
  // returns the offset of j itself.
  int64_t ahead(const int64_t* at, int64_t j, int64_t keys) const { return at[j + keys < context ? j + keys : j]; }
  static constexpr int64_t SCORED = 16;  // keys to prefetch ahead, and keys per chunk of expanded records

  // Scores of query head `head`, which belongs to key head h, for keys [j, j + count).
  void score(int32_t h, int32_t head, int64_t j, int64_t count) const {
    const int64_t G = groups(), V = vectors(), codes_at = first_group(h) * format.words,
                  pairs_at = format.groups() * format.words + first_group(h);
    const float *channels = query + head * query_size(), *totals = channels + G * format.words * PLACES;
    real part[L], low = {};
    for (int64_t k = 0; k < L; k++) {
      const uint32_t* record = keys + key_offsets[j + (k < count ? k : 0)];
      const uint32_t *code = record + codes_at, *pairs = record + pairs_at;
      __builtin_prefetch(keys + ahead(key_offsets, j + (k < count ? k : 0), SCORED) + codes_at);
      const float* q = channels;
      real total = {};
      float minimums = 0;
      for (int64_t g = 0; g < G; g++) {
        real even = {}, odd = {};
        for (int64_t v = 0; v < V; v++, code += L, q += PLACES * L) {
          const word w = load_lanes<word>(code);
          for_places([&](auto place) __attribute__((always_inline)) {
            const real x = load_lanes<real>(q + place * L);
            if constexpr (place % 2) odd += x * codes<place>(w);
            else even += x * codes<place>(w);
          });
        }
        total += (even + odd) * scale_of(pairs[g]);
        minimums += totals[g] * minimum_of(pairs[g]);
      }
      part[k] = total;
      low[k] = minimums;
    }
    put_scores(head, j, count, sums_of<L>(part) + low);
  }
  template <class V>
  void put_scores(int32_t head, int64_t j, int64_t count, V products) const {
    V s = products * scale, before = {};
    float* to = scores + head * stride + j;
    if (adds) memcpy(&before, to, size_t(count) * sizeof(float));
    s += before;
    memcpy(to, &s, size_t(count) * sizeof(float));
  }

  // sums += Σ weight · value over the keys [begin, begin + count). Handles at least eight places at a time, so that as many
  // sums run in parallel.
  void add(int32_t h, int32_t head, int64_t begin, int64_t count) const {
    constexpr int CHAINS = PLACES < 8 ? 8 / PLACES : 1;
    const int64_t size = format.codes.group, words = format.words;
    const float* weight = scores + head * stride + begin;
    for (int64_t g = 0; g < groups(); g++) {
      const int64_t code_at = (first_group(h) + g) * words, pair_at = format.groups() * words + first_group(h) + g;
      float scaled[VALUES];
      float low = 0;
      for (int64_t k = 0; k < count; k++) {
        const uint32_t pair = values[offsets[begin + k] + pair_at];
        scaled[k] = weight[k] * scale_of(pair);
        low += weight[k] * minimum_of(pair);
      }
      for (int64_t v = 0; v < vectors(); v++) {
        const uint32_t* code = values + code_at + v * L;
        real total[CHAINS][PLACES] = {};
        const auto one = [&](int64_t k, int chain) __attribute__((always_inline)) {
          const word w = load_lanes<word>(code + offsets[begin + k]);
          const float x = scaled[k];
          __builtin_prefetch(code + ahead(offsets, begin + k, VALUES));
          for_places([&](auto place) __attribute__((always_inline)) { total[chain][place] += x * codes<place>(w); });
        };
        int64_t k = 0;
        for (; k + CHAINS <= count; k += CHAINS)
#pragma GCC unroll 2
          for (int c = 0; c < CHAINS; c++) one(k + c, c);
        for (; k < count; k++) one(k, 0);
        for_places([&](auto place) {
          const int64_t at = place * words + v * L;  // index in the group; if L is 1, the last word may be partly empty
          if (at >= size) return;
          real of = total[0][place];
          if constexpr (CHAINS > 1) of += total[1][place];
          float* to = sums + head * head_dim + g * size + at;
          of = load_lanes<real>(to) + (of * power(place) + low);
          memcpy(to, &of, sizeof of);
        });
      }
    }
  }

#if defined(__AVX2__)
  template <int WORDS>
  void score_bytes(const bf16* q) const {
    using Bytes = ByteScores<B, WORDS>;
    const int64_t G = groups(), pairs = format.groups() * format.words;
    // [kv_heads, group, G]; smaller than the usual contents of `query`.
    auto* rounded = reinterpret_cast<typename Bytes::Query*>(query);
    for (int64_t i = 0; q && i < kv_heads * group * G; i++) rounded[i] = Bytes::round(q + i * format.codes.group);
    for (int64_t j = 0; j < context; j += Bytes::KEYS) {
      const int64_t count = context - j < Bytes::KEYS ? context - j : Bytes::KEYS;
      const uint32_t *record[Bytes::KEYS], *next[Bytes::KEYS];
      for (int64_t k = 0; k < Bytes::KEYS; k++) {
        const int64_t key = j + (k < count ? k : 0);
        record[k] = keys + key_offsets[key], next[k] = keys + ahead(key_offsets, key, SCORED);
      }
      for (int32_t h = 0; h < kv_heads; h++)
        for (int32_t head = h * group; head < (h + 1) * group; head++) {
          const int64_t at = first_group(h);
          put_scores(head, j, count, Bytes::score(record, next, at * WORDS, pairs + at, rounded + head * G, G));
        }
    }
  }
#endif
  bool scores_bytes([[maybe_unused]] const bf16* q) const {
#if defined(__AVX2__)
    // Each width has one number of lanes (with_lanes): the others would compile the same function again.
    if constexpr (B < 8 && L == (B == 4 ? 8 : 4))
      if (format.words == 2 * B && format.codes.group == 64) return score_bytes<2 * B>(q), true;
    if constexpr (B < 8 && L == (B == 4 ? 4 : 1))
      if (format.words == B && format.codes.group == 32) return score_bytes<B>(q), true;
#endif
    return false;
  }
  bool scores_bytes(const float*) const { return false; }

  // q: NULL if `query` is already filled.
  template <class E>
  void score(const E* q) const {
    if (scores_bytes(q)) return;
    for (int32_t head = 0; q && head < kv_heads * group; head++) take_query(q + head * head_dim, query + head * query_size());
    for (int64_t j = 0; j < context; j += L)
      for (int32_t h = 0; h < kv_heads; h++)
        for (int32_t head = h * group; head < (h + 1) * group; head++) score(h, head, j, context - j < L ? context - j : L);
  }
  // The same for pruned keys. expanded: room for SCORED records with all codes.
  template <class E>
  void score(const E* q, const Format& pruned, uint32_t* expanded) const {
    int64_t at[SCORED];
    for (int64_t k = 0; k < SCORED; k++) at[k] = k * format.record();
    CodedRow some = *this;
    some.keys = expanded, some.key_offsets = at;
    for (int64_t j = 0; j < context; j += SCORED, some.scores += SCORED, q = nullptr) {
      some.context = context - j < SCORED ? context - j : SCORED;
      for (int64_t k = 0; k < some.context; k++)
        expand<L>(pruned, keys + key_offsets[j + k], first_group(0), first_group(kv_heads), expanded + at[k]);
      some.score(q);
    }
  }
  void add() const {
    for (int64_t j = 0; j < context; j += VALUES)
      for (int32_t h = 0; h < kv_heads; h++)
        for (int32_t head = h * group; head < (h + 1) * group; head++)
          add(h, head, j, context - j < VALUES ? context - j : VALUES);
  }
};

template <class F>
void with_lanes(const Format& f, F run) {
  using std::integral_constant;
  const bool whole = f.codes.group * f.codes.bits % 32 == 0;
  const auto lanes = [&](auto bits) {
    if (whole && f.words % LANES == 0) run(bits, integral_constant<int, LANES>());
    else if (whole && f.words % 4 == 0) run(bits, integral_constant<int, 4>());
    else run(bits, integral_constant<int, 1>());
  };
  if (f.codes.bits == 2) lanes(integral_constant<int, 2>());
  else if (f.codes.bits == 4) lanes(integral_constant<int, 4>());
  else lanes(integral_constant<int, 8>());
}

struct Formats {
  Format keys, records, residuals;  // records: with all codes
  Formats(const LoopCodedAttention& in)
      : keys(in.codes, width(in)),
        records(loop_whole_codes(in.codes), width(in)),
        residuals(in.residual.bits > 0 ? in.residual : in.codes, width(in)) {}
  // Words of the buffer for expanded records.
  int64_t expanded() const { return keys.pruned() ? CodedRow<4, 1>::SCORED * records.record() : 0; }
  static int64_t width(const LoopCodedAttention& in) { return int64_t(in.rows.kv_heads) * in.rows.head_dim; }
  int64_t query(int64_t head_dim) const {  // floats of CodedRow::query per head, the larger of the two formats
    const auto of = [=](const Format& f) { return head_dim / f.codes.group * (f.words * (32 / f.codes.bits) + 1); };
    return of(records) > of(residuals) ? of(records) : of(residuals);
  }
};

template <class E>
void attend(const LoopCodedAttention& in, const Formats& formats, int64_t row, int32_t first, int32_t count, int64_t longest,
            char* scratch) {
  const LoopDecodeAttention& a = in.rows;
  const int64_t head_dim = a.head_dim, group = a.heads / a.kv_heads, begin = first * group;
  const int64_t coded = length_of(a.contexts[row]), recent = length_of(in.recent[row]), context = coded + recent;
  const int32_t heads = int32_t(count * group);
  const bool with_residuals = in.residual.bits > 0 && in.residual_at[row] >= 0;
  auto* offsets = reinterpret_cast<int64_t*>(scratch);
  auto* residual_offsets = offsets + longest;  // if keys are pruned: offsets of their records
  auto* expanded = reinterpret_cast<uint32_t*>(residual_offsets + longest);
  auto* sums = reinterpret_cast<float*>(expanded + formats.expanded());
  float *totals = sums + heads * head_dim, *scores = totals + heads, *query = scores + heads * context;
  slot_offsets(a.contexts[row], formats.records.record(), offsets);
  const bool pruned = formats.keys.pruned();
  if (pruned) slot_offsets(a.contexts[row], formats.keys.record(), residual_offsets);
  slot_offsets(in.recent[row], formats.records.width, offsets + coded);
  if (with_residuals) {
    const int64_t record = formats.residuals.record();
    slot_offsets(a.contexts[row], record, residual_offsets);
    for (int64_t j = 0; j < coded; j++) residual_offsets[j] += in.residual_at[row] * record;
  }
  const E* q = static_cast<const E*>(a.qkv) + (row * (a.heads + 2 * a.kv_heads) + begin) * head_dim;
  memset(sums, 0, size_t(heads * head_dim) * sizeof(float));
  // Calls f with a CodedRow for the records of the slots, then for the residuals that are added to them.
  const auto for_records = [&](auto f) {
    const auto of = [&](const Format& format, const int64_t* at, const void* keys, const void* values, bool adds) {
      with_lanes(format, [&](auto bits, auto lanes) {
        f(CodedRow<decltype(bits)::value, decltype(lanes)::value>{
            format, head_dim, coded, first, count, int32_t(group), pruned ? residual_offsets : at, at,
            static_cast<const uint32_t*>(keys), static_cast<const uint32_t*>(values), float(a.scale), query, scores, context,
            sums, adds});
      });
    };
    of(formats.records, offsets, a.keys, a.values, false);
    if (with_residuals) of(formats.residuals, residual_offsets, in.residual_keys, in.residual_values, true);
  };
  // The same for the rows that are not coded yet: apart, so that the compiler does not write the code for records once per head
  // size.
  const auto for_exact = [&](auto f) {
    with_vectors(head_dim, [&](auto c) {
      f(DecodedRow<E, decltype(c)::value>{
          head_dim, recent, count, int32_t(group), offsets + coded, static_cast<const E*>(in.recent_keys) + first * head_dim,
          static_cast<const E*>(in.recent_values) + first * head_dim, q, float(a.scale), scores + coded, context, sums});
    });
  };
  for_records([&](const auto& records) {
    if constexpr (std::decay_t<decltype(records)>::BITS == 4)  // pruned keys have codes of 4 bits
      if (pruned) return records.score(q, formats.keys, expanded);
    records.score(q);
  });
  for_exact([](const auto& exact) { exact.score(); });
  weigh(heads, context, scores, totals);
  for_records([](const auto& records) { records.add(); });
  for_exact([](const auto& exact) { exact.add(); });
  divide(heads, head_dim, sums, totals, static_cast<E*>(a.out) + (row * a.heads + begin) * head_dim);
}

template <class E>
void coded_rows(Context& ctx, const LoopCodedAttention& in) {
  const LoopDecodeAttention& a = in.rows;
  const Formats formats(in);
  const int64_t group = a.heads / a.kv_heads, query = formats.query(a.head_dim);
  int64_t keys = 0, longest = 0;
  for (int64_t i = 0; i < a.rows; i++) {
    const int64_t context = length_of(a.contexts[i]) + length_of(in.recent[i]);
    keys += context;
    if (context > longest) longest = context;
  }
  for_key_heads(ctx, a, keys, 1, size_t(longest) * 16 + size_t(formats.expanded()) * 4,
                size_t(group * (a.head_dim + 1 + longest + query)) * 4,
                [&](int64_t row, int32_t first, int32_t count, char* scratch) {
                  attend<E>(in, formats, row, first, count, longest, scratch);
                });
}

template <class E>
void encode_tokens(Context& ctx, const LoopResidualEncode& e) {
  for_rows(ctx, e.count, 64 * e.width, [&](int64_t begin, int64_t end, int thread) {
    auto* scratch = static_cast<float*>(ctx.pool.scratch(thread, size_t(2 * e.width) * sizeof(float)));
    for (int64_t i = begin; i < end; i++)
      for (const auto& [exact, anchors, residuals] :
           {std::tuple(e.keys, e.anchor_keys, e.residual_keys), std::tuple(e.values, e.anchor_values, e.residual_values)})
        encode_residuals(e, e.tokens[i], static_cast<const E*>(exact), static_cast<uint32_t*>(anchors),
                         static_cast<uint32_t*>(residuals), scratch);
  });
}

template <class E>
void encode_rows(Context& ctx, const Format& f, int64_t rows, int64_t heads, const int32_t* slots, const E* qkv, uint32_t* keys,
                 uint32_t* values) {
  const int64_t width = f.width, before = heads;
  const Format whole(loop_whole_codes(f.codes), width);
  for_rows(ctx, rows, (f.pruned() ? f.codes.group : 16) * width, [&](int64_t begin, int64_t end, int thread) {
    auto* scratch = static_cast<float*>(ctx.pool.scratch(thread, size_t(3 * f.codes.group) * sizeof(float)));
    for (int64_t i = begin; i < end; i++) {
      const E* row = qkv + i * (before + 2 * width) + before;
      if (f.pruned()) encode_pruned(f, row, keys + slots[i] * f.record(), scratch);
      else encode(f, row, keys + slots[i] * f.record());
      encode(whole, row + width, values + slots[i] * whole.record());
    }
  });
}

template <class E>
void decode_records(Context& ctx, const Format& f, int64_t rows, const uint32_t* records, const Format& residual,
                    const uint32_t* residuals, int64_t stride, E* out) {
  const Format whole(loop_whole_codes(f.codes), f.width);
  for_rows(ctx, rows, 2 * f.width, [&](int64_t begin, int64_t end, int thread) {
    auto* sums = static_cast<float*>(ctx.pool.scratch(thread, size_t(f.width + whole.record()) * sizeof(float)));
    auto* expanded = reinterpret_cast<uint32_t*>(sums + f.width);
    for (int64_t i = begin; i < end; i++) {
      const uint32_t* record = records + i * f.record();
      if (f.pruned()) expand<1>(f, record, 0, f.groups(), expanded), record = expanded;
      for_numbers(whole, record, [&](int64_t e, float x) { sums[e] = x; });
      if (residuals) for_numbers(residual, residuals + i * residual.record(), [&](int64_t e, float x) { sums[e] += x; });
      for (int64_t e = 0; e < f.width; e++) set(out[i * stride + e], sums[e]);
    }
  });
}

}  // namespace

int cache_encode(void* context, LoopDType dt, LoopCacheCodes codes, int64_t rows, int32_t heads, int32_t kv_heads,
                 int32_t head_dim, const int32_t* slots, const void* qkv, void* keys, void* values) {
  auto& ctx = *static_cast<Context*>(context);
  const Format f(codes, int64_t(kv_heads) * head_dim);
  const int64_t before = int64_t(heads) * head_dim;
  auto *k = static_cast<uint32_t*>(keys), *v = static_cast<uint32_t*>(values);
  if (dt == LOOP_BF16) encode_rows(ctx, f, rows, before, slots, static_cast<const bf16*>(qkv), k, v);
  else encode_rows(ctx, f, rows, before, slots, static_cast<const float*>(qkv), k, v);
  return 0;
}

int cache_decode(void* context, LoopDType dt, LoopCacheCodes codes, int64_t rows, int64_t width, const void* records,
                 LoopCacheCodes residual, const void* residuals, int64_t stride, void* out) {
  auto& ctx = *static_cast<Context*>(context);
  const Format f(codes, width), added(residuals ? residual : codes, width);
  const auto *from = static_cast<const uint32_t*>(records), *more = static_cast<const uint32_t*>(residuals);
  if (dt == LOOP_BF16) decode_records(ctx, f, rows, from, added, more, stride, static_cast<bf16*>(out));
  else decode_records(ctx, f, rows, from, added, more, stride, static_cast<float*>(out));
  return 0;
}

int cache_encode_residuals(void* context, LoopDType dt, const LoopResidualEncode* e) {
  if (e->count > 0) (dt == LOOP_BF16 ? encode_tokens<bf16> : encode_tokens<float>)(*static_cast<Context*>(context), *e);
  return 0;
}

int coded_attention(void* context, LoopDType dt, const LoopCodedAttention* a) {
  if (a->rows.rows > 0) (dt == LOOP_BF16 ? coded_rows<bf16> : coded_rows<float>)(*static_cast<Context*>(context), *a);
  return 0;
}

}  // namespace looplm::cpu::LOOPLM_ISA

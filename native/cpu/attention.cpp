// Causal attention over packed segments (math.md §1), forward and backward, in float32 and bfloat16. The first tokens of a
// segment may attend to each other in both directions. The scale is positive.
//
// Everything is computed transposed: a vector lane is a query, so scores are [keys][lanes] tiles (Sᵀ = K Qᵀ, Oᵀ = Vᵀ Pᵀ).
// This has three advantages. Row maxima and sums are plain vector operations. Pᵀ is already the right operand of the next
// product. K and V are read by broadcast, so they need no packing beyond one contiguous copy.
//
// A block is LANES queries of one key/value head, in ascending order of rows. The query heads that share the key/value head
// are next to each other. A block attends to its context (prefix, then own tokens) in blocks of KEYS keys, cut at absolute
// positions. Above the diagonal, work is skipped in units of M keys (a strip) by W lanes. In a strip that is computed anyway,
// masked keys add exact zeros. So a lane's operations do not depend on the other lanes: a forward row has the same bits
// alone, in a batch, and after a shared prefix.
//
// Backward: P comes from the stored log-sum-exp. With δ = Σ dO∘O and c = scale:
//   dV += Pᵀ dO    dSᵀ = Pᵀ∘(V dOᵀ - δ)    dQᵀ += c Kᵀ dSᵀ    dK += c dSᵀ Q
// A task handles one (group, key/value head). It sums dK and dV of its keys in float32 over its blocks, in order, and rounds
// once. If there are only a few long groups, they are cut into parts that threads can share. The cut depends only on the
// shapes, and the sums of the parts are added in order.
//
// Operands consist of units. A unit is a float or, if the processor multiplies bfloat16, a pair along the summed dimension.
#include <type_traits>  // defines: conditional_t

#include "gemm.h"  // defines: KS, the elements in a unit
#include "neon.h"

namespace looplm::cpu::LOOPLM_ISA {

namespace {

#if defined(__aarch64__)
constexpr int M = 8;  // rows of the register tile, which is M x 2 vectors
#else
constexpr int M = W == 16 ? 8 : 4;
#endif
constexpr int WHOLE = W > M ? W : M;  // padding of rows: whole vectors, and whole strips when rows act as columns
constexpr int VECTORS = 4;
constexpr int LANES = VECTORS * W;  // queries in a block
constexpr int KEYS = 64;            // keys in a block: a tile of scores, KEYS x LANES floats, is at most 16 KiB and stays in L1
constexpr float MASKED = -1e30f;    // its exponential is exactly 0; finite, so that a difference of two is never NaN
constexpr float LOG2E = 1.44269504088896341f, LN2 = 0.693147180559945309f;

template <class E>
using Unit = std::conditional_t<KS<E> == 2, int32_t, float>;

inline int64_t round_up(int64_t n, int64_t size) { return (n + size - 1) / size * size; }

// ---- Arithmetic ----

inline vf broadcast(const float* p) { return splat(*p); }
inline vf broadcast(const int32_t* p) { return (vf)(*p - vi{}); }
inline vf load_units(const void* p) { return *(const vf_any*)p; }
inline void store_units(void* p, vf x) { *(vf_any*)p = x; }

// acc + a·b, unit by unit.
template <class U>
inline vf multiply_add(vf a, vf b, vf acc) {
#if defined(__AVX512BF16__)
  if constexpr (!std::is_same_v<U, float>) return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
#endif
  return a * b + acc;
}

// Combines two rows of floats into one row of units along the rows: a pair of bfloat16, or only the first row.
template <class U>
inline vf unite(vf first, [[maybe_unused]] vf second) {
#if defined(__AVX512BF16__)
  if constexpr (!std::is_same_v<U, float>) {
    const vi lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const __m512i order = (__m512i)(lane | (lane + 16) << 16);
    return (vf)_mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first));
  }
#endif
  return first;
}

// acc += A B over units, acc [M][V vectors]. A(i, s) is a[i·a_stride + s], or with Columns a[s·a_stride + i].
template <bool Columns, class U, int V>
inline __attribute__((always_inline)) void multiply(int64_t steps, const U* a, int64_t a_stride, const U* b, int64_t b_stride,
                                                    vf (&acc)[M][V]) {
#if defined(__aarch64__)
  if constexpr (Columns) add_columns<M>(steps, a, a_stride, b, b_stride, acc);
  else add_rows(steps, a, a_stride, b, b_stride, acc);
#else
  constexpr int groups = (M + 2) / 3;
  const U* p[groups];  // one base per three rows: x86 can address base, base + stride and base + 2·stride
  for (int g = 0; g < groups; g++) p[g] = a + 3 * g * a_stride;
  for (int64_t s = 0; s < steps; s++) {
    vf x[V];
    for (int j = 0; j < V; j++) x[j] = load_units(b + j * W);
#pragma GCC unroll 8
    for (int i = 0; i < M; i++) {
      vf y = broadcast(Columns ? a + i : p[i / 3] + (i % 3) * a_stride);
#pragma GCC unroll 2
      for (int j = 0; j < V; j++) acc[i][j] = multiply_add<U>(y, x[j], acc[i][j]);
    }
    b += b_stride;
    if (Columns) a += a_stride;
    else
      for (int g = 0; g < groups; g++) p[g]++;
  }
#endif
}

// out += A B, as in multiply. fresh: the old contents count as 0. factor (may be NULL): first multiplies the old contents,
// per column.
template <bool Columns, int V, class U>
inline void accumulate(int64_t steps, const U* a, int64_t a_stride, const U* b, int64_t b_stride, float* out, int64_t out_stride,
                       bool fresh, const float* factor) {
  vf acc[M][V] = {};
  if (!fresh)
    for (int i = 0; i < M; i++)
      for (int j = 0; j < V; j++) {
        acc[i][j] = load(out + i * out_stride + j * W);
        if (factor) acc[i][j] *= load(factor + j * W);
      }
  multiply<Columns>(steps, a, a_stride, b, b_stride, acc);
  for (int i = 0; i < M; i++)
    for (int j = 0; j < V; j++) store(out + i * out_stride + j * W, acc[i][j]);
}

// ---- Layout ----

// W elements of a row from `at` on; elements beyond the end are 0.
template <class E>
inline vf elements(const E* row, int64_t at, int64_t size) {
  if (M > W && at >= size) return vf{};
  return size - at >= W ? load(row + at) : load_part(row + at, int(size - at));
}
// The same in units along the row.
template <class E>
inline vf row_units(const E* row, int64_t at, int64_t head_dim) {
  if constexpr (KS<E> == 2) return elements(reinterpret_cast<const float*>(row), at, head_dim / 2);
  else return elements(row, at, head_dim);
}

// Lengths and strides of a call.
template <class E>
struct Shape {
  const LoopAttention& a;
  int64_t head_dim = a.head_dim, ratio = a.heads / a.kv_heads;  // ratio: query heads per key/value head
  int64_t units = head_dim / KS<E>;                             // units per row of head_dim elements
  int64_t row = round_up(units, WHOLE);                         // units per row, padded with zeros
  int64_t wide = round_up(head_dim, WHOLE);                     // elements per row, padded with zeros
  int64_t stride = (a.heads + 2 * a.kv_heads) * head_dim;       // elements between tokens of qkv
  int64_t out_stride = a.heads * head_dim;                      // elements between tokens of out
  int64_t context = round_up(a.max_context, M);                 // keys, rounded up to whole strips
};

// Packs rows [from, to) as units along the row: out [to][row], with zero rows up to a whole strip. row(i) returns the start
// of row i.
template <class E, class Row>
void pack_rows(Shape<E> shape, int64_t from, int64_t to, Unit<E>* out, Row row) {
  for (int64_t i = from; i < to; i++) {
    const E* x = row(i);
    for (int64_t at = 0; at < shape.row; at += W) store_units(out + i * shape.row + at, row_units(x, at, shape.head_dim));
  }
  memset(out + to * shape.row, 0, size_t((round_up(to, M) - to) * shape.row) * 4);
}

// Packs rows [from, to) as units along the rows: out [to / KS][wide], padded like pack_rows.
template <class E, class Row>
void pack_columns(Shape<E> shape, int64_t from, int64_t to, Unit<E>* out, Row row) {
  for (int64_t i = from / KS<E> * KS<E>; i < to; i += KS<E>) {
    const E *x = row(i), *y = KS<E> == 2 && i + 1 < to ? row(i + 1) : nullptr;
    for (int64_t at = 0; at < shape.wide; at += W) {
      vf unit = elements(x, at, shape.head_dim);
      if constexpr (KS<E> == 2) unit = (vf)((vu)unit >> 16 | (y ? (vu)elements(y, at, shape.head_dim) : vu{}));
      store_units(out + i / KS<E> * shape.wide + at, unit);
    }
  }
  const int64_t packed = (to + KS<E> - 1) / KS<E>;
  memset(out + packed * shape.wide, 0, size_t((round_up(to, M) / KS<E> - packed) * shape.wide) * 4);
}

// A block of queries of one key/value head. The lanes from `count` on fill the last vector with copies of the last query;
// they have no effect.
struct Block {
  int count, vectors;
  alignas(64) int32_t limit[LANES] = {};         // the last key that each lane attends to, ascending
  int64_t query[LANES], out[LANES], lse[LANES];  // per lane: start of its row in qkv and in out, index in lse

  // Queries from `first` on. They are numbered by row of the segment, then by query head.
  template <class E>
  Block(const LoopAttention& a, Shape<E> shape, const LoopSegment& s, int64_t first, int kv_head) {
    int64_t sharer = first % shape.ratio, row = first / shape.ratio;
    const int64_t head = kv_head * shape.ratio + sharer, token = s.begin + row, back = shape.ratio * shape.head_dim;
    int64_t in_query = token * shape.stride + head * shape.head_dim, in_out = token * shape.out_stride + head * shape.head_dim;
    int64_t in_lse = head * a.tokens + token;
    const int64_t prefix = s.prefix_end - s.prefix_begin, two_way = prefix + s.two_way;  // end of the two-way keys
    row += prefix;
    count = int(least(LANES, (s.end - s.begin) * shape.ratio - first));
    vectors = (count + W - 1) / W;
    for (int lane = 0; lane < vectors * W; lane++) {
      limit[lane] = int32_t(row < two_way ? two_way - 1 : row), query[lane] = in_query, out[lane] = in_out, lse[lane] = in_lse;
      if (lane + 1 >= count) continue;
      in_query += shape.head_dim, in_out += shape.head_dim, in_lse += a.tokens;
      if (++sharer < shape.ratio) continue;
      sharer = 0, row++;
      in_query += shape.stride - back, in_out += shape.out_stride - back, in_lse += 1 - shape.ratio * a.tokens;
    }
  }
  // Number of keys that vector v attends to in the block that starts at `key`, in whole strips.
  int64_t keys(int v, int64_t key) const { return least(KEYS, round_up(limit[v * W + W - 1] + 1 - key, M)); }
};

// Packs the rows base + rows[i] as units, transposed: out [units][LANES].
template <class E>
void pack_lanes(Shape<E> shape, int vectors, const E* base, const int64_t* rows, Unit<E>* out) {
  for (int v = 0; v < vectors; v++, rows += W, out += W)
    for (int64_t at = 0; at < shape.units; at += W) {
      vf t[W];
      for (int i = 0; i < W; i++) t[i] = row_units(base + rows[i], at, shape.head_dim);
      transpose(t);
      for (int64_t i = 0; i < least(W, shape.units - at); i++) store_units(out + (at + i) * LANES, t[i]);
    }
}

// Writes `count` rows base + rows[i] from the transposed in [wide][LANES], times a factor per lane.
template <class E>
void unpack_lanes(Shape<E> shape, int count, const float* in, const float* factor, E* base, const int64_t* rows) {
  for (; count > 0; count -= W, in += W, factor += W, rows += W)
    for (int64_t at = 0; at < shape.head_dim; at += W) {
      const int size = int(least(W, shape.head_dim - at));
      vf t[W];
      for (int i = 0; i < W; i++) t[i] = load(in + (at + i) * LANES) * load(factor);
      transpose(t);
      for (int i = 0; i < least(W, count); i++) {
        E* out = base + rows[i] + at;
        size == W ? store(out, t[i]) : store_part(out, t[i], size);
      }
    }
}

// Returns a function from a key of a segment's context to the start of its row. first: the row of token 0.
template <class E>
auto context_row(const E* first, int64_t stride, const LoopSegment& s) {
  const int64_t prefix = s.prefix_end - s.prefix_begin, prefix_begin = s.prefix_begin, own_begin = s.begin - prefix;
  return [=](int64_t key) { return first + ((key < prefix ? prefix_begin : own_begin) + key) * stride; };
}

// Hands out pieces of a block of scratch memory. Without a block it only adds up the sizes.
struct Arena {
  uintptr_t base = 0;
  size_t used = 0;
  template <class T>
  T* take(int64_t count) {
    T* p = reinterpret_cast<T*>(base + used);
    used += size_t(round_up(count * int64_t(sizeof(T)), 64));
    return p;
  }
};

// ---- Steps shared by forward and backward ----

// Calls f<V>(v, from, to) for the keys that each vector attends to in the block at `key`. Where two neighbouring vectors
// attend to the same keys, it handles both at once (V = 2).
template <class F>
inline void over_pairs(const Block& block, int64_t key, F f) {
  for (int v = 0; v < block.vectors; v += 2) {
    const bool pair = v + 1 < block.vectors;
    const int64_t met = block.keys(v, key), common = met > 0 ? met : 0, more = pair ? block.keys(v + 1, key) : 0;
    if (common > 0) pair ? f.template operator()<2>(v, 0, common) : f.template operator()<1>(v, 0, common);
    if (more > common) f.template operator()<1>(v + 1, common, more);
  }
}

// Sets acc[i][j] to MASKED if key + i is beyond the lane's limit.
template <int V>
inline void mask(const Block& block, int64_t key, int v, vf (&acc)[M][V]) {
  if (key + M - 1 <= block.limit[v * W]) return;
  for (int j = 0; j < V; j++) {
    const vi limit = (vi)load_units(block.limit + (v + j) * W);
    for (int i = 0; i < M; i++) acc[i][j] = int32_t(key + i) > limit ? splat(MASKED) : acc[i][j];
  }
}

// sums [wide][LANES] += columnsᵀ [context / KS][wide] · tile [KEYS / KS][LANES] over keys [from, to) of the block at `key`,
// for V vectors. The call with the first keys of a block multiplies the old sums by `decay` first.
template <class E, int V>
void gather(Shape<E> shape, const Unit<E>* columns, const Unit<E>* tile, float* sums, const float* decay, int64_t key, int v,
            int64_t from, int64_t to) {
  columns += (key + from) / KS<E> * shape.wide;
  tile += from / KS<E> * LANES + v * W;
  for (int64_t d = 0; d < shape.head_dim; d += M)
    accumulate<true, V>((to - from) / KS<E>, columns + d, shape.wide, tile, LANES, sums + d * LANES + v * W, LANES,
                        key + from == 0, decay && from == 0 ? decay + v * W : nullptr);
}

// ---- Forward ----

template <class E>
struct Forward {
  using U = Unit<E>;
  const LoopAttention& a;
  Arena arena;
  int kv_head = 0;
  const Shape<E> shape{a};
  const E* qkv = static_cast<const E*>(a.qkv);
  U* keys = arena.take<U>(shape.context * shape.row);             // [context][row]
  U* values = arena.take<U>(shape.context / KS<E> * shape.wide);  // [context / KS][wide]
  U* queries = arena.take<U>(shape.units * LANES);                // [units][LANES]
  float* scores = arena.take<float>(KEYS * LANES);                // [KEYS][LANES]
  U* probs = arena.take<U>(KEYS / KS<E> * LANES);                 // [KEYS / KS][LANES]
  float* sums = arena.take<float>(shape.wide * LANES);            // [wide][LANES]: Oᵀ before the division
  float* top = arena.take<float>(LANES);                          // largest scaled score so far, as an exponent of 2
  float* total = arena.take<float>(LANES);                        // Σ exp relative to `top`
  float* decay = arena.take<float>(LANES);                        // factor for the sums of earlier blocks

  // Packs keys [from, length) of a segment's context; the earlier keys are already packed.
  void open(const LoopSegment& s, int64_t from, int64_t length) {
    const E* base = qkv + (a.heads + kv_head) * shape.head_dim;
    pack_rows(shape, from, length, keys, context_row(base, shape.stride, s));
    pack_columns(shape, from, length, values, context_row(base + a.kv_heads * shape.head_dim, shape.stride, s));
  }
  void close(int64_t, int64_t, int64_t) {}

  void run(const Block& block) {
    pack_lanes(shape, block.vectors, qkv, block.query, queries);
    for (int lane = 0; lane < LANES; lane++) top[lane] = MASKED, total[lane] = 0;
    for (int64_t key = 0; key <= block.limit[block.count - 1]; key += KEYS) {
      vf largest[VECTORS];
      for (vf& x : largest) x = splat(MASKED);
      over_pairs(block, key, [&]<int V>(int v, int64_t from, int64_t to) { score<V>(block, key, v, from, to, largest + v); });
      for (int v = 0; v < block.vectors; v++) exponentiate(v, block.keys(v, key), largest[v]);
      over_pairs(block, key, [&]<int V>(int v, int64_t from, int64_t to) {
        gather<E, V>(shape, values, probs, sums, decay, key, v, from, to);
      });
    }
    finish(block);
  }

  template <int V>
  void score(const Block& block, int64_t key, int v, int64_t from, int64_t to, vf* largest) {
    vf best[V];
    for (int j = 0; j < V; j++) best[j] = largest[j];
    for (int64_t k = from; k < to; k += M) {
      vf acc[M][V] = {};
      multiply<false>(shape.units, keys + (key + k) * shape.row, shape.row, queries + v * W, LANES, acc);
      mask(block, key + k, v, acc);
      for (int i = 0; i < M; i++)
        for (int j = 0; j < V; j++) {
          best[j] = vmax(best[j], acc[i][j]);
          store(scores + (k + i) * LANES + (v + j) * W, acc[i][j]);
        }
    }
    for (int j = 0; j < V; j++) largest[j] = best[j];
  }

  // Turns scores into probabilities relative to the largest score so far. If a lane attends to no key of a block, its state
  // stays exactly the same.
  void exponentiate(int v, int64_t count, vf largest) {
    if (count <= 0) return;
    const float factor = float(a.scale * LOG2E);
    const float* in = scores + v * W;
    U* out = probs + v * W;
    const vf before = load(top + v * W), shift = vmax(before, largest * factor);
    vf sum{};
    for (int64_t k = 0; k < count; k += 2, in += 2 * LANES) {
      vf first = vexp2_negative(load(in) * factor - shift), second = vexp2_negative(load(in + LANES) * factor - shift);
      sum = (sum + first) + second;
      store_units(out, unite<U>(first, second));
      if constexpr (KS<E> == 1) store_units(out + LANES, second);
      out += 2 / KS<E> * LANES;
    }
    vf shrink = vexp2_negative(before - shift);
    store(total + v * W, load(total + v * W) * shrink + sum);
    store(decay + v * W, shrink);
    store(top + v * W, shift);
  }

  void finish(const Block& block) {
    for (int v = 0; v < block.vectors; v++) {
      store(top + v * W, load(top + v * W) * LN2 + vlog(load(total + v * W)));
      store(decay + v * W, 1.0f / load(total + v * W));
    }
    float* lse = static_cast<float*>(a.lse);
    for (int lane = 0; lane < block.count; lane++) lse[block.lse[lane]] = top[lane];
    unpack_lanes(shape, block.count, sums, decay, static_cast<E*>(a.out), block.out);
  }
};

// ---- Backward ----

template <class E>
struct Backward {
  using U = Unit<E>;
  const LoopAttention& a;
  Arena arena;
  int kv_head = 0;
  float* partial = nullptr;  // [tokens][2][wide]: dK and dV of this part; NULL if the group is not cut into parts
  const Shape<E> shape{a};
  const E *qkv = static_cast<const E*>(a.qkv), *dout = static_cast<const E*>(a.dout);
  U* keys = arena.take<U>(shape.context * shape.row);                                      // [context][row]
  U* values = arena.take<U>(shape.context * shape.row);                                    // [context][row]
  U* key_columns = KS<E> == 2 ? arena.take<U>(shape.context / KS<E> * shape.wide) : keys;  // [context / KS][wide]
  U* queries = arena.take<U>(shape.units * LANES);                                         // [units][LANES]
  U* douts = arena.take<U>(shape.units * LANES);                                           // [units][LANES]
  U* query_columns = arena.take<U>(LANES / KS<E> * shape.wide);                            // [LANES / KS][wide]
  U* dout_columns = arena.take<U>(LANES / KS<E> * shape.wide);                             // [LANES / KS][wide]
  U* probs = arena.take<U>(KEYS * LANES / KS<E>);                                          // [KEYS][LANES / KS]
  U* dscores = arena.take<U>(KEYS * LANES / KS<E>);                                        // [KEYS][LANES / KS]
  U* dscore_columns = KS<E> == 2 ? arena.take<U>(KEYS / KS<E> * LANES) : dscores;          // [KEYS / KS][LANES]
  float* dqueries = arena.take<float>(shape.wide * LANES);                                 // [wide][LANES]
  float* dcontext = arena.take<float>(shape.context * 2 * shape.wide);                     // [context][2][wide]: dK, dV
  float* lse = arena.take<float>(LANES);                                                   // log-sum-exp, base 2
  float* delta = arena.take<float>(LANES);                                                 // δ
  float* scale = arena.take<float>(LANES);                                                 // factor of dQ

  void open(const LoopSegment& s, int64_t from, int64_t length) {
    const E* base = qkv + (a.heads + kv_head) * shape.head_dim;
    const auto key = context_row(base, shape.stride, s), value = context_row(base + a.kv_heads * shape.head_dim, shape.stride, s);
    pack_rows(shape, from, length, keys, key);
    pack_rows(shape, from, length, values, value);
    if (KS<E> == 2) pack_columns(shape, from, length, key_columns, key);
    memset(dcontext + from * 2 * shape.wide, 0, size_t((round_up(length, M) - from) * 2 * shape.wide) * 4);
  }

  // Writes dK and dV of keys [from, to), which belong to the tokens from `token` on.
  void close(int64_t from, int64_t to, int64_t token) {
    for (int64_t key = from; key < to; key++, token++) {
      const float* sum = dcontext + key * 2 * shape.wide;
      if (!partial) write(token, sum);
      else memcpy(partial + token * 2 * shape.wide, sum, size_t(2 * shape.wide) * 4);
    }
  }
  void write(int64_t token, const float* sum) const {
    E* out = static_cast<E*>(a.dqkv) + token * shape.stride + (a.heads + kv_head) * shape.head_dim;
    write_row(out, sum, float(a.scale));
    write_row(out + a.kv_heads * shape.head_dim, sum + shape.wide, 1.0f);
  }
  void write_row(E* out, const float* in, float scale) const {
    int64_t d = 0;
    for (; d + W <= shape.head_dim; d += W) store(out + d, load(in + d) * scale);
    if (d < shape.head_dim) store_part(out + d, load(in + d) * scale, int(shape.head_dim - d));
  }

  void run(const Block& block) {
    prepare(block);
    for (int64_t key = 0; key <= block.limit[block.count - 1]; key += KEYS) {
      over_pairs(block, key, [&]<int V>(int v, int64_t from, int64_t to) { differentiate<V>(block, key, v, from, to); });
      over_pairs(block, key, [&]<int V>(int v, int64_t from, int64_t to) {
        gather<E, V>(shape, key_columns, dscore_columns, dqueries, nullptr, key, v, from, to);
      });
      spread(block, key, probs, dout_columns, dcontext + shape.wide);
      spread(block, key, dscores, query_columns, dcontext);
    }
    for (int lane = 0; lane < LANES; lane++) scale[lane] = float(a.scale);
    unpack_lanes(shape, block.count, dqueries, scale, static_cast<E*>(a.dqkv), block.query);
  }

  void prepare(const Block& block) {
    pack_lanes(shape, block.vectors, static_cast<const E*>(a.out), block.out, queries);  // needed only for δ
    pack_lanes(shape, block.vectors, dout, block.out, douts);
    for (int v = 0; v < block.vectors; v++) {
      vf sum{};
      for (int64_t u = 0; u < shape.units; u++)
        sum = multiply_add<U>(load_units(queries + u * LANES + v * W), load_units(douts + u * LANES + v * W), sum);
      store(delta + v * W, sum);
    }
    pack_lanes(shape, block.vectors, qkv, block.query, queries);
    pack_columns(shape, 0, block.count, query_columns, [&](int64_t lane) { return qkv + block.query[lane]; });
    pack_columns(shape, 0, block.count, dout_columns, [&](int64_t lane) { return dout + block.out[lane]; });
    for (int lane = 0; lane < block.vectors * W; lane++) lse[lane] = static_cast<const float*>(a.lse)[block.lse[lane]] * LOG2E;
  }

  // Computes P and dS of keys [from, to) of the block, unscaled.
  template <int V>
  void differentiate(const Block& block, int64_t key, int v, int64_t from, int64_t to) {
    const float c = float(a.scale * LOG2E);
    for (int64_t k = from; k < to; k += M) {
      vf p[M][V] = {}, ds[M][V] = {};
      multiply<false>(shape.units, keys + (key + k) * shape.row, shape.row, queries + v * W, LANES, p);
      mask(block, key + k, v, p);
      for (int i = 0; i < M; i++)
        for (int j = 0; j < V; j++) {
          p[i][j] = vexp2_negative(p[i][j] * c - load(lse + (v + j) * W));
          store_lanes(probs, k + i, v + j, p[i][j]);
        }
      multiply<false>(shape.units, values + (key + k) * shape.row, shape.row, douts + v * W, LANES, ds);
      for (int i = 0; i < M; i += 2)
        for (int j = 0; j < V; j++) {
          vf shift = load(delta + (v + j) * W);
          vf first = p[i][j] * (ds[i][j] - shift), second = p[i + 1][j] * (ds[i + 1][j] - shift);
          store_lanes(dscores, k + i, v + j, first);
          store_lanes(dscores, k + i + 1, v + j, second);
          if constexpr (KS<E> == 2) store_units(dscore_columns + (k + i) / 2 * LANES + (v + j) * W, unite<U>(first, second));
        }
    }
  }
  // Stores one vector of a [KEYS][LANES] tile as units along the block.
  static void store_lanes(U* tile, int64_t k, int v, vf x) {
    if constexpr (KS<E> == 2) store(reinterpret_cast<bf16*>(tile) + k * LANES + v * W, x);
    else store(tile + k * LANES + v * W, x);
  }

  // out [context][2][wide] += tile [KEYS][LANES] · rows [LANES][wide]. Each strip starts at the first lane that attends to
  // its keys.
  void spread(const Block& block, int64_t key, const U* tile, const U* rows, float* out) const {
    int first = 0;
    for (int64_t k = 0; k < block.keys(block.vectors - 1, key); k += M) {
      while (first + 1 < block.count && block.limit[first] < key + k) first++;
      const int64_t skip = first / KS<E>, steps = (block.count + KS<E> - 1) / KS<E> - skip;
      const U* strip = tile + k * LANES / KS<E> + skip;
      for (int64_t d = 0; d < shape.wide; d += 2 * W) {
        const U* b = rows + skip * shape.wide + d;
        float* c = out + (key + k) * 2 * shape.wide + d;
        if (d + W < shape.wide)
          accumulate<false, 2>(steps, strip, LANES / KS<E>, b, shape.wide, c, 2 * shape.wide, false, nullptr);
        else accumulate<false, 1>(steps, strip, LANES / KS<E>, b, shape.wide, c, 2 * shape.wide, false, nullptr);
      }
    }
  }
};

// ---- Tasks ----

// The first segment of every group, then the total number of segments.
struct Groups {
  int32_t count = 0, *first;
  Groups(Context& ctx, const LoopAttention& a) {
    first = static_cast<int32_t*>(ctx.pool.scratch(ctx.pool.threads(), (size_t(a.segment_count) + 1) * sizeof *first));
    for (int32_t i = 0; i < a.segment_count; i++)
      if (i == 0 || a.segments[i].group != a.segments[i - 1].group) first[count++] = i;
    first[count] = a.segment_count;
  }
};

// Runs every parts-th block of a group, starting with block number `part`. For the segments that read a prefix, the prefix is
// already packed.
template <class Kernel>
void run_group(const LoopAttention& a, const Groups& groups, int32_t group, int64_t part, int64_t parts, Kernel& kernel) {
  const int32_t begin = groups.first[group], end = groups.first[group + 1];
  int64_t number = 0;
  for (int32_t i = begin; i < end; i++) {
    const LoopSegment& s = a.segments[i];
    const int64_t prefix = s.prefix_end - s.prefix_begin, own = s.end - s.begin, queries = own * kernel.shape.ratio;
    kernel.open(s, i > begin ? prefix : 0, prefix + own);
    for (int64_t first = 0; first < queries; first += LANES)
      if (number++ % parts == part) kernel.run(Block(a, kernel.shape, s, first, kernel.kv_head));
    if (i > begin || end == begin + 1) kernel.close(prefix, prefix + own, s.begin);
  }
  const LoopSegment& shared = a.segments[begin];
  if (end > begin + 1) kernel.close(0, shared.end - shared.begin, shared.begin);
}

// Calls body(group, kernel, part) for all groups, heads and parts. If possible, a task takes several heads, because they
// share cache lines.
template <class Kernel, class Body>
void run_tasks(Context& ctx, const LoopAttention& a, const Groups& groups, int64_t parts, Body body) {
  const size_t bytes = Kernel{a, {}}.arena.used;
  const int64_t spare = int64_t(groups.count) * a.kv_heads * parts / (8 * ctx.pool.threads());
  const int64_t heads = spare < 1 ? 1 : least(spare, a.kv_heads), head_tasks = (a.kv_heads + heads - 1) / heads;
  ctx.pool.run(parts * groups.count * head_tasks, [&](int64_t task, int thread) {
    Kernel kernel{a, {reinterpret_cast<uintptr_t>(ctx.pool.scratch(thread, bytes))}};
    const int64_t first = task % head_tasks * heads, group = task / head_tasks;
    for (int64_t head = first; head < least(first + heads, a.kv_heads); head++) {
      kernel.kv_head = int(head);
      body(int32_t(group % groups.count), kernel, group / groups.count);
    }
  });
}

template <class E>
int forward(Context& ctx, const LoopAttention& a) {
  if (a.segment_count <= 0) return 0;
  const Groups groups(ctx, a);
  const int64_t units = int64_t(groups.count) * a.kv_heads;
  // A row does not depend on the cut, so the number of parts may depend on the number of threads.
  const int64_t parts = ctx.pool.threads() > 1 ? (4 * ctx.pool.threads() + units - 1) / units : 1;
  run_tasks<Forward<E>>(ctx, a, groups, parts, [&](int32_t group, Forward<E>& kernel, int64_t part) {
    run_group(a, groups, group, part, parts, kernel);
  });
  return 0;
}

template <class E>
int backward(Context& ctx, const LoopAttention& a) {
  if (a.segment_count <= 0) return 0;
  const Groups groups(ctx, a);
  const Shape<E> shape{a};
  // Up to 16 tasks, if each has about 8 blocks. The cut depends only on the shapes, because the sums depend on it.
  const int64_t units = int64_t(groups.count) * a.kv_heads, fair = a.tokens * shape.ratio / groups.count / (8 * LANES);
  const int64_t parts = least((15 + units) / units, fair > 1 ? fair : 1), partial = a.tokens * 2 * shape.wide;
  const Aligned owner(parts > 1 ? size_t(parts * a.kv_heads * partial) * 4 : 0);
  auto* sums = static_cast<float*>(owner.data);  // [parts][kv_heads][tokens][2][wide]
  run_tasks<Backward<E>>(ctx, a, groups, parts, [&](int32_t group, Backward<E>& kernel, int64_t part) {
    if (sums) kernel.partial = sums + (part * a.kv_heads + kernel.kv_head) * partial;
    run_group(a, groups, group, part, parts, kernel);
  });
  if (!sums) return 0;
  ctx.pool.run(int64_t(a.segment_count) * a.kv_heads, [&](int64_t task, int) {
    const Backward<E> kernel{a, {}, int(task % a.kv_heads)};
    const LoopSegment& s = a.segments[task / a.kv_heads];
    for (int64_t token = s.begin; token < s.end; token++) {
      float *sum = sums + kernel.kv_head * partial + token * 2 * shape.wide, *more = sum;
      for (int64_t part = 1; part < parts; part++) {
        more += a.kv_heads * partial;
        for (int64_t d = 0; d < 2 * shape.wide; d += W) store(sum + d, load(sum + d) + load(more + d));
      }
      kernel.write(token, sum);
    }
  });
  return 0;
}

}  // namespace

int attention(void* context, LoopDType dt, const LoopAttention* a) {
  auto& ctx = *static_cast<Context*>(context);
  return dt == LOOP_BF16 ? forward<bf16>(ctx, *a) : forward<float>(ctx, *a);
}

int attention_backward(void* context, LoopDType dt, const LoopAttention* a) {
  auto& ctx = *static_cast<Context*>(context);
  return dt == LOOP_BF16 ? backward<bf16>(ctx, *a) : backward<float>(ctx, *a);
}

}  // namespace looplm::cpu::LOOPLM_ISA

// Tensor operations on all dtypes. float16, bfloat16 and float32 compute in float32, float64 and int32 in their own type.
// Sums are double.
#include <float.h>
#include <math.h>
#include <stdio.h>

#include "softmax.h"

namespace looplm::cpu::LOOPLM_ISA {

// IEEE half precision. Without F16C it is converted lane by lane with the two functions below.
struct f16 {
  uint16_t bits;
};

static inline float to_float(f16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7fff;
  if (magnitude < 0x400) {  // subnormal: a multiple of 2^-24
    const float tiny = float(magnitude) * 0x1p-24f;
    return sign ? -tiny : tiny;
  }
  const uint32_t u = sign | (magnitude >= 0x7c00 ? 0x7f800000 | (magnitude & 0x3ff) << 13 : (magnitude << 13) + (112u << 23));
  float f;
  memcpy(&f, &u, 4);
  return f;
}
static inline void set(f16& out, float x) {  // to nearest, ties to even
  uint32_t u;
  memcpy(&u, &x, 4);
  const uint32_t sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffff;
  uint32_t half;
  if (magnitude > 0x7f800000) half = 0x7e00;
  else if (magnitude >= 0x477ff000)  // 65520 and above
    half = 0x7c00;
  else if (magnitude < 0x38800000) {  // below 2^-14: adding 1/2 leaves the rounded multiple of 2^-24 in the low bits
    float f;
    memcpy(&f, &magnitude, 4);
    f += 0.5f;
    memcpy(&half, &f, 4);
    half -= 0x3f000000;
  } else half = (magnitude + 0xfff + (magnitude >> 13 & 1) - (112u << 23)) >> 13;
  out.bits = uint16_t(sign | half);
}
static inline vf load(const f16* p) {
#if defined(__AVX512F__)
  return (vf)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
  return (vf)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  vf x;
  for (int i = 0; i < W; i++) x[i] = to_float(p[i]);
  return x;
#endif
}
static inline void store(f16* p, vf x) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_cvtps_ph(0xffff, (__m512)x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < W; i++) set(p[i], x[i]);
#endif
}

namespace {

// An element as a number, and back. Conversion to int32 saturates, and NaN becomes 0.
template <class E>
inline float number(E x) {
  return to_float(x);
}
inline double number(double x) { return x; }
inline double number(int32_t x) { return x; }
template <class E>
inline void put(E& out, double x) {
  set(out, float(x));
}
inline void put(double& out, double x) { out = x; }
inline void put(int32_t& out, double x) { out = !(x == x) ? 0 : x >= 0x1p31 ? INT32_MAX : x <= -0x1p31 ? INT32_MIN : int32_t(x); }

template <class E>
constexpr bool in_vectors = !std::is_same_v<E, double> && !std::is_same_v<E, int32_t>;

int fail(Context& ctx, const char* message) {
  snprintf(ctx.error, sizeof ctx.error, "%s", message);
  return 1;
}

// Calls f(E{}) with the element type of a dtype.
template <class F>
int with_type(LoopDType type, F&& f) {
  switch (type) {
    case LOOP_F32:
      return f(float{});
    case LOOP_BF16:
      return f(bf16{});
    case LOOP_F64:
      return f(double{});
    case LOOP_I32:
      return f(int32_t{});
    case LOOP_F16:
      return f(f16{});
  }
  return 1;
}

constexpr int64_t TASK = 16384;  // elements

// Walks two strided operands in row-major order. First merges neighbouring dimensions that are contiguous in both.
struct Walk {
  int32_t rank = 0;
  int64_t shape[LOOP_MAX_RANK], a[LOOP_MAX_RANK], b[LOOP_MAX_RANK], count = 1;

  Walk(int32_t dims, const int64_t* sizes, const int64_t* a_strides, const int64_t* b_strides) {
    for (int32_t r = 0; r < dims; r++) {
      count *= sizes[r];
      if (sizes[r] == 1) continue;
      const int32_t outer = rank - 1;
      if (rank > 0 && a[outer] == a_strides[r] * sizes[r] && b[outer] == b_strides[r] * sizes[r]) {
        shape[outer] *= sizes[r];
      } else {
        shape[rank++] = sizes[r];
      }
      a[rank - 1] = a_strides[r];
      b[rank - 1] = b_strides[r];
    }
    if (rank == 0) rank = 1, shape[0] = 1, a[0] = b[0] = 0;
  }

  // Calls f(index, a offset, b offset, n) for runs of n elements along the last dimension. index: number of the first one
  // among all.
  template <class F>
  void run(Context& ctx, F&& f) const {
    if (count <= 0) return;
    const int32_t last = rank - 1;
    const int64_t length = shape[last], piece = length < TASK ? length : TASK, pieces = (length + piece - 1) / piece;
    for_rows(ctx, count / length * pieces, piece, [&](int64_t begin, int64_t end, int) {
      int64_t at[LOOP_MAX_RANK], rest = begin / pieces, from_a = 0, from_b = 0;
      for (int32_t r = last - 1; r >= 0; r--) {
        at[r] = rest % shape[r], rest /= shape[r];
        from_a += at[r] * a[r], from_b += at[r] * b[r];
      }
      for (int64_t unit = begin; unit < end; unit++) {
        const int64_t run = unit / pieces, first = unit % pieces * piece, n = first + piece < length ? piece : length - first;
        f(run * length + first, from_a + first * a[last], from_b + first * b[last], n);
        if (first + n < length) continue;
        for (int32_t r = last - 1; r >= 0; r--) {
          from_a += a[r], from_b += b[r];
          if (++at[r] < shape[r]) break;
          from_a -= at[r] * a[r], from_b -= at[r] * b[r], at[r] = 0;
        }
      }
    });
  }
};

template <class E>
vf broadcast(const E* p) {
  return splat(float(number(*p)));
}

inline int32_t wrapped(int64_t x) { return int32_t(uint32_t(uint64_t(x))); }

template <LoopBinaryOp op, class T>
inline T combine(T a, T b) {
  if constexpr (std::is_same_v<T, int32_t>) return op == LOOP_ADD ? wrapped(int64_t(a) + b) : wrapped(int64_t(a) * b);
  else return op == LOOP_ADD ? a + b : a * b;
}

template <LoopBinaryOp op, class E>
void combine_run(int64_t n, const E* a, int64_t a_stride, const E* b, int64_t b_stride, E* out) {
  if constexpr (in_vectors<E>) {
    if ((a_stride == 1 || a_stride == 0) && (b_stride == 1 || b_stride == 0)) {
      const vf one_a = broadcast(a), one_b = broadcast(b);
      for_vectors(
          n, LOOPLM_VECTORS(j, part, chain) {
            store(out + j, combine<op>(a_stride ? load(a + j, part) : one_a, b_stride ? load(b + j, part) : one_b), part);
          });
    } else {
      for (int64_t j = 0; j < n; j++) set(out[j], combine<op>(number(a[j * a_stride]), number(b[j * b_stride])));
    }
  } else {
    for (int64_t j = 0; j < n; j++) out[j] = combine<op>(a[j * a_stride], b[j * b_stride]);
  }
}

// Rounds to bfloat16 and keeps subnormal numbers, so that values from a checkpoint survive.
template <class From>
void round_run(int64_t n, const From* src, bf16* dst) {
  int64_t j = 0;
  for (; j + W <= n; j += W) store_exact(dst + j, load(src + j));
  for (; j < n; j++) set(dst[j], to_float(src[j]));
}

template <class From, class To>
void convert_run(int64_t n, const From* src, int64_t src_stride, To* dst, int64_t dst_stride) {
  if (src_stride == 1 && dst_stride == 1) {
    if constexpr (std::is_same_v<From, To>) {
      memcpy(static_cast<void*>(dst), src, size_t(n) * sizeof(To));
      return;
    } else if constexpr (in_vectors<From> && in_vectors<To>) {
      if constexpr (std::is_same_v<To, bf16>) round_run(n, src, dst);
      else
        for_vectors(
            n, LOOPLM_VECTORS(j, part, chain) { store(dst + j, load(src + j, part), part); });
      return;
    }
  }
  for (int64_t j = 0; j < n; j++)
    if constexpr (std::is_same_v<From, To>) dst[j * dst_stride] = src[j * src_stride];
    else put(dst[j * dst_stride], number(src[j * src_stride]));
}

void softmax_row(int64_t n, bool logarithm, const double* x, double* out) {
  double largest = x[0], total = 0;
  for (int64_t j = 1; j < n; j++) largest = x[j] > largest ? x[j] : largest;
  for (int64_t j = 0; j < n; j++) total += exp(x[j] - largest);
  const double lse = largest + log(total);
  for (int64_t j = 0; j < n; j++) out[j] = logarithm ? x[j] - lse : exp(x[j] - lse);
}

// row: scratch memory of n floats
template <class E>
void softmax_row(int64_t n, bool logarithm, const E* x, E* out, float* row) {
  for_vectors(
      n, LOOPLM_VECTORS(j, part, chain) { store(row + j, load(x + j, part), part); });
  const float largest = row_maximum(row, n);
  if (logarithm) {
    const double log_total = log(double(exp_sums<false, false>(row, n, largest, 1.0f, nullptr).sum));
    for_vectors(
        n, LOOPLM_VECTORS(j, part, chain) { store(out + j, (load(row + j, part) - largest) - float(log_total), part); });
  } else {
    const float inverse = 1.0f / exp_sums<true, false>(row, n, largest, 1.0f, row).sum;
    for_vectors(
        n, LOOPLM_VECTORS(j, part, chain) { store(out + j, load(row + j, part) * inverse, part); });
  }
}

constexpr int64_t COLUMNS = 64;  // columns reduced at the same time

// Reduces n rows of x (`stride` apart) to out[0, columns). out: E, or int32 for ARGMAX.
template <class E>
void reduce_columns(LoopReduceOp op, int64_t n, int64_t columns, int64_t stride, const E* x, void* out) {
  double value[COLUMNS] = {};
  int32_t best[COLUMNS] = {};
  if (op == LOOP_SUM || op == LOOP_MEAN) {
    for (int64_t j = 0; j < n; j++)
      for (int64_t c = 0; c < columns; c++) value[c] += double(number(x[j * stride + c]));
    if (op == LOOP_MEAN)
      for (int64_t c = 0; c < columns; c++) value[c] /= double(n);
  } else {
    for (int64_t c = 0; c < columns; c++) value[c] = double(number(x[c]));
    for (int64_t j = 1; j < n; j++)
      for (int64_t c = 0; c < columns; c++) {
        const double element = double(number(x[j * stride + c]));
        const bool larger = (element > value[c]) | ((element != element) & (value[c] == value[c]));
        best[c] = larger ? int32_t(j) : best[c];
        value[c] = larger ? element : value[c];
      }
  }
  if (op == LOOP_ARGMAX) memcpy(out, best, size_t(columns) * sizeof(int32_t));
  else
    for (int64_t c = 0; c < columns; c++) put(static_cast<E*>(out)[c], value[c]);
}

// Reduces one contiguous row; the sum uses eight accumulators.
template <class E>
void reduce_row(LoopReduceOp op, int64_t n, const E* x, void* out) {
  if (op == LOOP_MAX || op == LOOP_ARGMAX) return reduce_columns(op, n, 1, 1, x, out);
  double chain[8] = {};
  int64_t j = 0;
  for (; j + 8 <= n; j += 8)
    for (int c = 0; c < 8; c++) chain[c] += double(number(x[j + c]));
  for (; j < n; j++) chain[0] += double(number(x[j]));
  const double total = ((chain[0] + chain[1]) + (chain[2] + chain[3])) + ((chain[4] + chain[5]) + (chain[6] + chain[7]));
  put(*static_cast<E*>(out), op == LOOP_MEAN ? total / double(n) : total);
}

}  // namespace

int binary(void* context, LoopDType type, LoopBinaryOp op, int32_t rank, const int64_t* shape, const void* a,
           const int64_t* a_strides, const void* b, const int64_t* b_strides, void* out) {
  auto& ctx = *static_cast<Context*>(context);
  if (rank < 0 || rank > LOOP_MAX_RANK) return fail(ctx, "binary: more dimensions than LOOP_MAX_RANK");
  const Walk walk(rank, shape, a_strides, b_strides);
  const int64_t a_step = walk.a[walk.rank - 1], b_step = walk.b[walk.rank - 1];
  return with_type(type, [&](auto element) {
    using E = decltype(element);
    walk.run(ctx, [&](int64_t i, int64_t from_a, int64_t from_b, int64_t n) {
      (op == LOOP_ADD ? combine_run<LOOP_ADD, E> : combine_run<LOOP_MULTIPLY, E>)(n, static_cast<const E*>(a) + from_a, a_step,
                                                                                  static_cast<const E*>(b) + from_b, b_step,
                                                                                  static_cast<E*>(out) + i);
    });
    return 0;
  });
}

int copy_strided(void* context, LoopDType from, LoopDType to, int32_t rank, const int64_t* shape, const void* src,
                 const int64_t* src_strides, void* dst, const int64_t* dst_strides) {
  auto& ctx = *static_cast<Context*>(context);
  if (rank < 0 || rank > LOOP_MAX_RANK) return fail(ctx, "copy_strided: more dimensions than LOOP_MAX_RANK");
  const Walk walk(rank, shape, src_strides, dst_strides);
  const int64_t src_step = walk.a[walk.rank - 1], dst_step = walk.b[walk.rank - 1];
  return with_type(from, [&](auto from_element) {
    return with_type(to, [&](auto to_element) {
      using From = decltype(from_element);
      using To = decltype(to_element);
      walk.run(ctx, [&](int64_t, int64_t from_offset, int64_t to_offset, int64_t n) {
        convert_run(n, static_cast<const From*>(src) + from_offset, src_step, static_cast<To*>(dst) + to_offset, dst_step);
      });
      return 0;
    });
  });
}

int softmax(void* context, LoopDType type, int64_t rows, int64_t n, int logarithm, const void* x, void* out) {
  auto& ctx = *static_cast<Context*>(context);
  if (type == LOOP_I32) return fail(ctx, "softmax: not defined for int32; convert to float32 first");
  if (n <= 0) return 0;
  return with_type(type, [&](auto element) {
    using E = decltype(element);
    const auto* from = static_cast<const E*>(x);
    auto* to = static_cast<E*>(out);
    for_rows(ctx, rows, 4 * n, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t i = begin; i < end; i++)
        if constexpr (std::is_same_v<E, double>) softmax_row(n, logarithm != 0, from + i * n, to + i * n);
        else if constexpr (in_vectors<E>)
          softmax_row(n, logarithm != 0, from + i * n, to + i * n,
                      static_cast<float*>(ctx.pool.scratch(thread, size_t(n) * sizeof(float))));
    });
    return 0;
  });
}

// x [outer, n, inner] → out [outer, inner]
int reduce(void* context, LoopDType type, LoopReduceOp op, int64_t outer, int64_t n, int64_t inner, const void* x, void* out) {
  auto& ctx = *static_cast<Context*>(context);
  if (type == LOOP_I32 && op == LOOP_MEAN)
    return fail(ctx, "reduce: the mean is not defined for int32; convert to float32 first");
  if (n == 0 && (op == LOOP_MAX || op == LOOP_ARGMAX)) return fail(ctx, "reduce: the largest of no elements is not defined");
  return with_type(type, [&](auto element) {
    using E = decltype(element);
    const auto* from = static_cast<const E*>(x);
    auto* to = static_cast<char*>(out);
    const int64_t size = op == LOOP_ARGMAX ? int64_t(sizeof(int32_t)) : int64_t(sizeof(E)),
                  tiles = (inner + COLUMNS - 1) / COLUMNS;
    for_rows(ctx, outer * tiles, n * (inner < COLUMNS ? inner : COLUMNS), [&](int64_t begin, int64_t end, int) {
      for (int64_t unit = begin; unit < end; unit++) {
        const int64_t o = unit / tiles, first = unit % tiles * COLUMNS,
                      columns = first + COLUMNS < inner ? COLUMNS : inner - first;
        const E* start = from + o * n * inner + first;
        void* result = to + (o * inner + first) * size;
        if (inner == 1) reduce_row(op, n, start, result);
        else reduce_columns(op, n, columns, inner, start, result);
      }
    });
    return 0;
  });
}

}  // namespace looplm::cpu::LOOPLM_ISA

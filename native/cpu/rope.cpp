// Rotary positions (math.md §1): (u, v) = (x[j], x[j + head_dim/2]) or (x[2j], x[2j + 1]) → (u cos - v sin, v cos + u sin).
// The inverse rotates in the other direction.
#include "rows.h"

namespace looplm::cpu::LOOPLM_ISA {

namespace {

// Rotates one row of heads. cosine and sine: [half].
template <class E>
inline void rotate_row(E* row, int32_t heads, int32_t half, const float* cosine, const float* sine, float direction) {
  for_vectors(
      half, LOOPLM_VECTORS(j, part, chain) {
        const vf c = load(cosine + j, part), s = load(sine + j, part) * direction;
        E* x = row + j;
        for (int32_t head = 0; head < heads; head++, x += 2 * half) {
          const vf u = load(x, part), v = load(x + half, part);
          store(x, u * c - v * s, part);
          store(x + half, v * c + u * s, part);
        }
      });
}

// The same for heads of exactly one vector: the partner of lane j is half a vector away.
template <class E>
inline void rotate_row_of_vectors(E* row, int32_t heads, const float* cosine, const float* sine, float direction) {
  float c[W], s[W];
  for (int j = 0; j < W / 2; j++) {
    c[j] = c[j + W / 2] = cosine[j];
    s[j + W / 2] = sine[j] * direction;
    s[j] = -s[j + W / 2];
  }
  const vf cosines = load(c), sines = load(s);
  for (int32_t head = 0; head < heads; head++, row += W) {
    const vf x = load(row);
    store(row, x * cosines + rotate<W / 2>(x, Lanes()) * sines);
  }
}

// Pairs (2j, 2j + 1): scalar code, because both elements of a pair are in the same vector.
template <class E>
inline void rotate_neighbours(E* row, int32_t heads, int32_t half, const float* cosine, const float* sine, float direction) {
  for (int32_t head = 0; head < heads; head++, row += 2 * half)
    for (int32_t j = 0; j < half; j++) {
      const float u = to_float(row[2 * j]), v = to_float(row[2 * j + 1]), c = cosine[j], s = sine[j] * direction;
      set(row[2 * j], u * c - v * s);
      set(row[2 * j + 1], v * c + u * s);
    }
}

template <class E>
int rotate_rows(Context& ctx, LoopRotaryPairs pairs, int64_t n, int32_t heads, int32_t head_dim, int64_t row_stride,
                const int32_t* positions, const float* cos_sin, bool inverse, E* qkv) {
  const float direction = inverse ? -1.0f : 1.0f;
  const int32_t half = head_dim / 2;
  for_rows(ctx, n, int64_t(heads) * head_dim, [=](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++) {
      const float* cosine = cos_sin + int64_t(positions[i]) * head_dim;
      if (pairs == LOOP_NEIGHBOURS) rotate_neighbours(qkv + i * row_stride, heads, half, cosine, cosine + half, direction);
      else if (head_dim == W) rotate_row_of_vectors(qkv + i * row_stride, heads, cosine, cosine + half, direction);
      else rotate_row(qkv + i * row_stride, heads, half, cosine, cosine + half, direction);
    }
  });
  return 0;
}

}  // namespace

int rope(void* context, LoopDType dt, LoopRotaryPairs pairs, int64_t n, int32_t heads, int32_t head_dim, int64_t row_stride,
         const int32_t* positions, const void* cos_sin, int inverse, void* qkv) {
  auto& ctx = *static_cast<Context*>(context);
  const auto* table = static_cast<const float*>(cos_sin);
  return dt == LOOP_BF16
             ? rotate_rows(ctx, pairs, n, heads, head_dim, row_stride, positions, table, inverse != 0, static_cast<bf16*>(qkv))
             : rotate_rows(ctx, pairs, n, heads, head_dim, row_stride, positions, table, inverse != 0, static_cast<float*>(qkv));
}

}  // namespace looplm::cpu::LOOPLM_ISA

#include "context.h"

namespace looplm::reference {
namespace {

// (u, v) = (x[j], x[j + head_dim/2]) or (x[2j], x[2j + 1])  →  (u cos - v sin, v cos + u sin). The inverse rotates by the
// opposite angle. (math.md §1)
int rope(void* ctx, LoopDType dt, LoopRotaryPairs pairs, int64_t n, int32_t heads, int32_t head_dim, int64_t row_stride,
         const int32_t* positions, const void* cos_sin, int inverse, void* qkv) {
  if (int status = require_float64(ctx, dt, "rope")) return status;
  const int32_t half = head_dim / 2;
  const bool neighbours = pairs == LOOP_NEIGHBOURS;
  for (int64_t i = 0; i < n; ++i) {
    const double* cosine = static_cast<const double*>(cos_sin) + int64_t(positions[i]) * head_dim;
    const double* sine = cosine + half;
    for (int32_t head = 0; head < heads; ++head) {
      double* x = static_cast<double*>(qkv) + i * row_stride + int64_t(head) * head_dim;
      for (int32_t j = 0; j < half; ++j) {
        double &first = x[neighbours ? 2 * j : j], &second = x[neighbours ? 2 * j + 1 : j + half];
        const double u = first, v = second, c = cosine[j], s = inverse ? -sine[j] : sine[j];
        first = u * c - v * s;
        second = v * c + u * s;
      }
    }
  }
  return 0;
}

}  // namespace

void add_rope(LoopBackend& table) { table.rope = rope; }

}  // namespace looplm::reference

// Rotates a row of q, k and v heads in place (math.md §1): the pairs (u, v) = (x[j], x[j + head_dim/2]) or (x[2j], x[2j + 1])
// turn by the angle of the position. A thread rotates W pairs.
#include "context.h"
#include "elementwise.h"
#include "vector.h"

namespace looplm::cuda {
namespace {

template <class T, int W, LoopRotaryPairs Pairs>
__global__ void rope_kernel(int64_t count, int heads, int head_dim, int64_t row_stride, const int32_t* positions,
                            const float* cos_sin, float direction, T* qkv) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const int half = head_dim / 2, per_head = half / W, per_row = heads * per_head;
  const int64_t row = i / per_row;
  const int rest = int(i - row * per_row), head = rest / per_head, j = (rest - head * per_head) * W;
  const float* angle = cos_sin + int64_t(positions[row]) * head_dim + j;
  constexpr bool neighbours = Pairs == LOOP_NEIGHBOURS;  // then W is 1
  T* x = qkv + row * row_stride + int64_t(head) * head_dim + (neighbours ? 2 * j : j);
  T* y = neighbours ? x + 1 : x + half;
  float u[W], v[W], cosine[W], sine[W];
  read<W>(x, u);
  read<W>(y, v);
  read<W>(angle, cosine);
  read<W>(angle + half, sine);
#pragma unroll
  for (int k = 0; k < W; k++) rotate(u[k], v[k], cosine[k], direction * sine[k]);
  write<W>(x, u);
  write<W>(y, v);
}

int rope(void* ctx, LoopDType dt, LoopRotaryPairs pairs, int64_t n, int32_t heads, int32_t head_dim, int64_t row_stride,
         const int32_t* positions, const void* cos_sin, int inverse, void* qkv) {
  return with_dtype(ctx, "rope", dt, [&]<class T>(Context& c, T) {
    const auto go = [&](auto kernel, int width) {
      const int64_t count = n * heads * (head_dim / 2 / width);
      return check(
          c,
          launch(kernel, dim3(unsigned(ceil_div(count, 256))), dim3(256), 0, c.stream, count, heads, head_dim, row_stride,
                 positions, static_cast<const float*>(cos_sin), inverse ? -1.0f : 1.0f, static_cast<T*>(qkv)),
          "rope");
    };
    if (pairs == LOOP_NEIGHBOURS) return go(rope_kernel<T, 1, LOOP_NEIGHBOURS>, 1);
    return vectorizable(head_dim / 2, wide<T>, {cos_sin, qkv}) && row_stride % wide<T> == 0
               ? go(rope_kernel<T, wide<T>, LOOP_HALVES>, wide<T>)
               : go(rope_kernel<T, 1, LOOP_HALVES>, 1);
  });
}

}  // namespace

void add_rope(LoopBackend& table) { table.rope = guarded<rope>; }

}  // namespace looplm::cuda

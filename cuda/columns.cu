#include "columns.h"

namespace looplm::cuda {
namespace {

// out[j] += Σ_b partial[b · stride + j] for j < count. A block handles 32 columns; each of its 8 warps sums every eighth
// partial row.
constexpr int warps = 8;
__global__ void __launch_bounds__(32 * warps)
    add_partials_kernel(int blocks, int64_t stride, int64_t count, const float* partial, float* out) {
  SHARED_ARRAY(float, sums, 32 * warps);
  const int64_t j = int64_t(blockIdx.x) * 32 + lane_id();
  float sum = 0;
  if (j < count)
#pragma unroll 8
    for (int b = warp_id(); b < blocks; b += warps) sum += partial[b * stride + j];
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (warp_id() > 0 || j >= count) return;
  for (int w = 1; w < warps; w++) sum += float(sums[w * 32 + lane_id()]);
  out[j] += sum;
}

}  // namespace

int add_partials(Context& c, int blocks, int64_t stride, int64_t count, const float* partial, void* out) {
  return check(c,
               launch(add_partials_kernel, dim3(unsigned(ceil_div(count, 32))), dim3(32 * warps), 0, c.stream, blocks, stride,
                      count, partial, static_cast<float*>(out)),
               "the sum over rows");
}

}  // namespace looplm::cuda

// Latent noise for LoopRPT (math.md §5).
#include "context.h"
#include "philox.h"

namespace looplm::cuda {
namespace {

// x[i][k] += sigma · N(0, 1). A thread handles four consecutive elements: one block of the random generator.
template <class T>
__global__ void add_noise_kernel(int64_t n, int64_t d, float sigma, uint64_t seed, uint32_t loop, const int32_t* streams,
                                 const int32_t* positions, T* x) {
  const int64_t blocks = (d + 3) / 4, i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, row = i / blocks,
                block = i - row * blocks;
  if (row >= n) return;
  float noise[4];
  latent_noise(seed, uint32_t(streams[row]), uint32_t(positions[row]), loop, uint32_t(block), noise);
#pragma unroll
  for (int k = 0; k < 4; k++)
    if (4 * block + k < d) {
      T& element = x[row * d + 4 * block + k];
      element = from_float<T>(to_float(element) + sigma * noise[k]);
    }
}

int add_noise(void* ctx, LoopDType dt, int64_t n, int64_t d, double sigma, uint64_t seed, uint32_t loop, const int32_t* streams,
              const int32_t* positions, void* x) {
  return with_dtype(ctx, "add_noise", dt, [&]<class T>(Context& c, T) {
    return check(c,
                 launch(add_noise_kernel<T>, dim3(unsigned(ceil_div(n * ceil_div(d, 4), 256))), dim3(256), 0, c.stream, n, d,
                        float(sigma), seed, loop, streams, positions, static_cast<T*>(x)),
                 "add_noise");
  });
}

}  // namespace

void add_noise_kernels(LoopBackend& table) { table.add_noise = guarded<add_noise>; }

}  // namespace looplm::cuda

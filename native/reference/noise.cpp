// Latent noise (math.md §5): h_k <- h_k + ε, ε ~ N(0, σ²).
#include "../numeric/philox.h"
#include "context.h"

namespace looplm::reference {
namespace {

int add_noise_to(void* ctx, LoopDType dt, int64_t n, int64_t d, double sigma, uint64_t seed, uint32_t loop,
                 const int32_t* streams, const int32_t* positions, void* x_) {
  if (int status = require_float64(ctx, dt, "add_noise")) return status;
  auto* x = static_cast<double*>(x_);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t k = 0; k < d; ++k)
      x[i * d + k] +=
          sigma * latent_noise(seed, uint32_t(streams[i]), uint32_t(positions[i]), loop, uint32_t(k / 4))[size_t(k % 4)];
  return 0;
}

}  // namespace

void add_noise(LoopBackend& table) { table.add_noise = add_noise_to; }

}  // namespace looplm::reference

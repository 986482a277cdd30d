// The two passes of a softmax over a row of floats. The head, the sampler and the tensor operation share them. So the
// log-probability of a sampled token has exactly the bits that training computes from the same logits.
#pragma once
#include "rows.h"

namespace looplm::cpu::LOOPLM_ISA {

static inline float row_maximum(const float* x, int64_t n) {
  const vf lowest = splat(-__builtin_inff());
  vf m[4] = {lowest, lowest, lowest, lowest};
  for_vectors(
      n, LOOPLM_VECTORS(j, part, chain) { m[chain] = vmax(m[chain], keep(load(x + j, part), lowest, part)); });
  return maximum(vmax(vmax(m[0], m[1]), vmax(m[2], m[3])));
}

struct ExpSums {
  float sum;       // Σ e^y, y = (x - largest) / temperature
  float weighted;  // Σ y e^y; 0 unless Entropy
};

// With Store, writes weights[i] = e^y; weights may alias x. Blocks are added in double: next to a term of 1, a long float sum
// would lose the many small terms of a peaked row.
template <bool Store, bool Entropy>
static inline ExpSums exp_sums(const float* x, int64_t n, float largest, float inverse_temperature, float* weights) {
  constexpr int64_t BLOCK = 1024;
  double sum = 0, weighted_sum = 0;
  for (int64_t begin = 0; begin < n; begin += BLOCK) {
    Sums total, weighted;
    for_batches(
        n - begin < BLOCK ? n - begin : BLOCK, LOOPLM_BATCHES(offset, part, count) {
          constexpr int N = count;
          const int64_t j = begin + offset;
          vf y[N], e[N];
          for (int i = 0; i < N; i++) e[i] = y[i] = (load(x + j + i * W, part) - largest) * inverse_temperature;
          vexp(e);
          for (int i = 0; i < N; i++) {
            e[i] = keep(e[i], vf{}, part);
            total.chain[i] += e[i];
            if constexpr (Entropy) weighted.chain[i] += e[i] * y[i];
            if constexpr (Store) store(weights + j + i * W, e[i], part);
          }
        });
    sum += double(total.total());
    if constexpr (Entropy) weighted_sum += double(weighted.total());
  }
  return {float(sum), float(weighted_sum)};
}

}  // namespace looplm::cpu::LOOPLM_ISA

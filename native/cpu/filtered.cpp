#include "filtered.h"

#include <algorithm>

#include "../numeric/philox.h"

namespace looplm::cpu {

double draw_number(uint64_t seed, int32_t sequence, int32_t position) {
  return uniform(seed, uint32_t(sequence), uint32_t(position));
}

NucleusEnd end_of_nucleus(const float* weights, int32_t* candidates, int64_t count, double mass, double wanted) {
  const auto more_likely = [&](int32_t a, int32_t b) { return weights[a] > weights[b] || (weights[a] == weights[b] && a < b); };
  if (!std::is_sorted(candidates, candidates + count, more_likely)) std::sort(candidates, candidates + count, more_likely);
  int64_t taken = 0;
  do mass += double(weights[candidates[taken++]]);
  while (mass < wanted && taken < count);
  const int32_t last = candidates[taken - 1];
  return {weights[last], last};
}

}  // namespace looplm::cpu

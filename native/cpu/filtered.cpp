#include "filtered.h"

#include "../engine/philox.h"
#include "../engine/sampling.h"

namespace looplm::cpu {

double draw_number(uint64_t seed, int32_t sequence, int32_t position) {
  return uniform(seed, uint32_t(sequence), uint32_t(position));
}

int32_t draw_filtered(const LoopSample& options, const float* logits, const float* weights, double number) {
  thread_local SampleScratch<float> scratch;
  scratch.weights.assign(weights, weights + options.vocabulary);
  return draw_kept(logits, {options.temperature, options.top_k, options.top_p, options.min_p}, number, scratch);
}

}  // namespace looplm::cpu

// The part of sampling that no instruction set changes: the random numbers and the filters, which stand on the standard library's
// inline functions and are therefore compiled once, for every processor.
#pragma once
#include "../backend.h"

namespace looplm::cpu {

// The uniform number of a draw, from (seed, sequence, position) alone.
double draw_number(uint64_t seed, int32_t sequence, int32_t position);

// The token that `number` draws from a row of logits under top-k, top-p and min-p. weights: exp((logit - largest) / temperature).
int32_t draw_filtered(const LoopSample& options, const float* logits, const float* weights, double number);

}  // namespace looplm::cpu

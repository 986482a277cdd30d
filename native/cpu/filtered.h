// The parts of sampling that use inline functions of the standard library. Compiled once, not per instruction set: the linker
// could otherwise keep an AVX version of such a function for every processor.
#pragma once
#include "../backend.h"

namespace looplm::cpu {

int edit_logits(void* ctx, LoopDType dt, const LoopLogitEdits* e);

// The uniform random number of a draw, a function of (seed, sequence, position).
double draw_number(uint64_t seed, int32_t sequence, int32_t position);

// The cut of top-p: weights above `least` are kept, and of those equal to `least` the ones up to token `last`.
struct NucleusEnd {
  float least;
  int32_t last;
};
// Takes candidates in descending order of weight (the lower token first in a tie) until `mass` plus their weights reaches
// `wanted`; at least one. candidates [count]: tokens in ascending order; reordered on return.
NucleusEnd end_of_nucleus(const float* weights, int32_t* candidates, int64_t count, double mass, double wanted);

}  // namespace looplm::cpu

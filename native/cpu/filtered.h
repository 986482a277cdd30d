// The part of sampling that stands on the standard library's inline functions and is therefore compiled once, for every
// processor.
#pragma once
#include "../backend.h"

namespace looplm::cpu {

int edit_logits(void* ctx, LoopDType dt, const LoopLogitEdits* e);

// The uniform number of a draw, from (seed, sequence, position) alone.
double draw_number(uint64_t seed, int32_t sequence, int32_t position);

// Where top-p cuts: it keeps the weights above `least`, and those that equal it up to the token `last`.
struct NucleusEnd {
  float least;
  int32_t last;
};
// Takes candidates, the most probable first (the lower token in a tie), until `mass` with their weights reaches `wanted`, at
// least one. candidates [count]: tokens in increasing order; they are put into another one.
NucleusEnd end_of_nucleus(const float* weights, int32_t* candidates, int64_t count, double mass, double wanted);

}  // namespace looplm::cpu

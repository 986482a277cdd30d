// How the loops that are read weigh in the loss of a token: w_1..w_K, Σ w = 1. A weighting is an entry of
// LoopWeighting and a case of loop_weights.
#pragma once
#include <vector>

#include "objective.h"

namespace looplm {

struct ExitTable;

// The loops that are read, 0-based numbers, and which of them are scored: positions in `read`.
struct ReadLoops {
  std::vector<int> read, scored;
  int count() const { return int(read.size()); }
};

// Whether a loop, counted among those that are read, has any weight.
bool weighs(const LoopWeights& weights, const ReadLoops& loops, int k);
// Whether weights name loops that are read.
bool names_loops(const LoopWeights& weights, const ReadLoops& loops);
// [scored, R], loop by loop; what is not scored has no weight. left: [R], of exit_loop: the loop that each row was read from,
// counted from 0 among those that are read.
std::vector<double> loop_weights(const LoopWeights& weights, const ReadLoops& loops, const ExitTable& exits,
                                 const std::vector<int32_t>& left = {});

}  // namespace looplm

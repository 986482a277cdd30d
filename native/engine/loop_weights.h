// The weights w_1..w_K of the loops in the loss of a token, over the loops that are read, with Σ w = 1. To add a weighting,
// add an entry to LoopWeighting and a case to loop_weights.
#pragma once
#include <vector>

#include "objective.h"

namespace looplm {

struct ExitTable;

// The loops that are read (0-based numbers), and those that are scored (indices into `read`).
struct ReadLoops {
  std::vector<int> read, scored;
  int count() const { return int(read.size()); }
};

// Whether the k-th loop that is read has any weight.
bool weighs(const LoopWeights& weights, const ReadLoops& loops, int k);
// Whether the weights fit the loops that are read: `given` has one weight for each, and the loop of `one_hot` is read.
bool names_loops(const LoopWeights& weights, const ReadLoops& loops);
// Weights of the scored loops, [scored, R], loop by loop. exit_loops: only for exit_loop, [R]: the exit loop of each row, as an
// index into `read`.
std::vector<double> loop_weights(const LoopWeights& weights, const ReadLoops& loops, const ExitTable& exits,
                                 const std::vector<int32_t>& exit_loops = {});

}  // namespace looplm

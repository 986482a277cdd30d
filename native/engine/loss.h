// Accumulates the gradient of an objective on packed sequences (math.md §2–§4, §6). All trainers use this function.
#pragma once
#include <vector>

#include "model.h"
#include "objective.h"

namespace looplm {

struct LossMetrics {
  double loss = 0, policy_loss = 0;
  double kl = 0;                                  // mean k3 estimate over the rows that have a reference value; 0 if none have
  double lazy_loss = 0;                           // LLDS term, weighted
  double entropy = 0;                             // mean token entropy at the last scored loop
  double ratio = 0, clip_low = 0, clip_high = 0;  // mean ratio, and shares of the rows clipped below and above
  double response_tokens = 0;
  double exit_loop = 0;  // mean of Σ t p_t
  double exit_entropy = 0;
  std::vector<double> loops;  // loops that were read, 1-based
  // Per loop that was read: means over response tokens. NaN for loops that were not scored.
  std::vector<double> loop_logprob, loop_weight, loop_exit;
  std::vector<double> d_vectors;  // ∂L/∂ the batch's input vectors, [vectors, D]
};

// Adds ∂L/∂θ to the model's gradients. L is a sum over all sequences of the batch, so it does not depend on the
// micro-batches.
LossMetrics accumulate_loss(Model& model, const LossBatch& batch, const Objective& objective);

}  // namespace looplm

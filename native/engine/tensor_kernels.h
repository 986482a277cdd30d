// The kernels that training looped models needs, on tensors (src/kernels.ts).
#pragma once
#include "model.h"
#include "tensor_ops.h"

namespace looplm {

struct LoopedStates {
  Tensor hidden, gate_logits;  // act [T, N, D], real [T, N]
};
// hidden: act [N, D], packed sequences that begin at offsets 0, …, N. weights: every parameter except the embedding, in
// order. names: the parameters' names for error messages.
LoopedStates looped_block_forward(const Tensor& hidden, const Architecture& architecture, const std::vector<Tensor>& weights,
                                  const std::vector<std::string>& names, const std::vector<int32_t>& offsets);

struct TokenScores {
  Tensor logprobs, entropy;  // real [T, N]
};
// hidden act [T, N, D], head act [V, D], targets int32 [N]. Runs in chunks of rows, so [T, N, V] logits never exist at once.
TokenScores per_loop_log_softmax(const Tensor& hidden, const Tensor& head, const Tensor& targets, double temperature);

struct PolicyGradientTensors {
  Tensor logprobs, weights;            // real [T, N]
  Tensor advantages, mask;             // real [N]
  std::optional<Tensor> old_logprobs;  // real [T, N]
};
struct PolicyGradient {
  Tensor coefficients;  // real [T, N]
  LoopLossSums sums;
};
// loss: the surrogate and its bounds; this function fills in its arrays.
PolicyGradient policy_gradient_reduction(const PolicyGradientTensors& in, LoopLoss loss);

}  // namespace looplm

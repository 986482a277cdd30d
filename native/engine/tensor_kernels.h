// The kernels that looped models are trained with, on tensors (src/kernels.ts).
#pragma once
#include "model.h"
#include "tensor_ops.h"

namespace looplm {

struct LoopedStates {
  Tensor hidden, gate_logits;  // act [T, N, D], real [T, N]
};
// hidden act [N, D], packed sequences that begin at offsets 0, …, N. weights: of every parameter but the embedding, in order;
// names: how errors call them.
LoopedStates looped_block_forward(const Tensor& hidden, const Architecture& architecture, const std::vector<Tensor>& weights,
                                  const std::vector<std::string>& names, const std::vector<int32_t>& offsets);

struct TokenScores {
  Tensor logprobs, entropy;  // real [T, N]
};
// hidden act [T, N, D], head act [V, D], targets int32 [N]. In chunks of rows: [T, N, V] never exists.
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
// `loss` gives the surrogate and its bounds; its arrays are filled in here.
PolicyGradient policy_gradient_reduction(const PolicyGradientTensors& in, LoopLoss loss);

}  // namespace looplm

// The kernels that looped models are trained with, on tensors (src/kernels.ts).
#pragma once
#include "model.h"
#include "tensor_ops.h"

namespace looplm {

struct LoopedLayerTensors {  // matrices [out, in], norms [D]
  Tensor q, k, v, output, gate, up, down;
  Tensor attention_norm, attention_norm_2, mlp_norm, mlp_norm_2;
};
struct LoopedStackTensors {
  std::vector<LoopedLayerTensors> layers;
  Tensor norm, gate_weight, gate_bias;
  int32_t heads;
};
struct LoopedStackOptions {
  int loops;
  std::vector<int32_t> offsets;  // of the packed sequences: 0, ..., N
  double rope_theta, norm_eps;
};
struct LoopedStates {
  Tensor hidden, gate_logits;  // act [T, N, D], real [T, N]
};
// hidden act [N, D].
LoopedStates looped_block_forward(const Tensor& hidden, const LoopedStackTensors& weights, const LoopedStackOptions& options);

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

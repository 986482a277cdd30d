#include <algorithm>
#include <cmath>

#include "looprpt.h"
#include "micro_batch.h"
#include "pass.h"

namespace looplm {

namespace {

constexpr double SLOPE = 50, MARGIN = 0.005;  // Ouro's, of the label σ(SLOPE (gain - MARGIN)); math.md §6

// Binary cross-entropy of 1 - λ (the probability to continue) against the target, and its derivative by the gate's logit.
struct Stay {
  double loss, slope;
};
Stay stay(double gate, double target) {
  const double softplus = std::log1p(std::exp(-std::abs(gate))), log_leave = std::min(gate, 0.0) - softplus,
               log_stay = std::min(-gate, 0.0) - softplus;
  return {-(target * log_stay + (1 - target) * log_leave), target - std::exp(log_stay)};  // λ - (1 - target)
}

}  // namespace

double accumulate_stage2(Model& model, const Sequences& sequences, const std::vector<int32_t>& mask, double tokens,
                         int64_t tokens_per_micro_batch) {
  const Remedy remedy(*model.device, training_remedy(Recompute::layer));
  check_sequences(model, sequences, "stage 2");
  check_mask(sequences, mask, "stage 2");
  const int loops = model.config.loops;
  if (model.adapter())
    throw Error("INVALID_ARGUMENT", "stage 2",
                "Stage II trains the exit gate, which is frozen while the model has an adapter: merge or remove the adapter");
  require_exit_gate(model, "stage 2", "Stage II");
  if (loops < 2)
    throw Error("INVALID_ARGUMENT", "stage 2", "Stage II needs at least 2 loops: the exit gate chooses between them");
  double total = 0;
  model.gradients();
  const int64_t budget = tokens_per_micro_batch > 0 ? tokens_per_micro_batch : default_budget(model, loops, Stack::Keep::nothing);
  const PackOptions options{budget, true, true, false, model.config.prefix_sees_itself, &mask};
  for_micro_batches(sequences, options, [&](const PackedBatch& packed) {
    const size_t R = packed.rows.size(), N = size_t(packed.tokens()), T = size_t(loops);
    if (R == 0) return;
    MicroBatch batch(model, model.weights(), sequences, packed, {loops, Stack::Keep::nothing});
    batch.stack.forward_tokens();
    const std::vector<double> gates = batch.token_exits().gate_logits,
                              logprobs = batch.values(batch.rows(all_loops(loops), 1), true, false).logprobs;
    std::vector<double> d_gates(T * N, 0.0);
    const double share = 1 / (double(loops) * tokens);
    for (size_t t = 1; t < T; t++)
      for (size_t r = 0; r < R; r++) {
        const size_t at = t * N + size_t(packed.rows[r].token);
        const double gain = std::max(0.0, logprobs[t * R + r] - logprobs[(t - 1) * R + r]);
        const Stay s = stay(gates[at], 1 / (1 + std::exp(-SLOPE * (gain - MARGIN))));
        total += share * s.loss;
        d_gates[at] += share * s.slope;
      }
    batch.backward_gates(d_gates);  // no further than the gate: the rest of the model is frozen
  });
  return total;
}

}  // namespace looplm

// Objectives on packed sequences: score them, or accumulate the gradient of a loss (math.md §2–§4, §6). One core for every
// trainer: GRPO is `last` weights, RLTT any weights, Stage I attached exit-pdf weights with advantage 1 and an exit entropy
// bonus.
#pragma once
#include <cstdint>
#include <vector>

#include "model.h"

namespace looplm {

enum class Recompute { none, loop, layer };
enum class LoopCredit { exit_pdf, uniform, progressive, last };

struct Objective {
  LoopCredit weights = LoopCredit::exit_pdf;
  double alpha = 1;            // of `progressive`
  bool detach_weights = true;  // false: exit-pdf weights carry gradient into the gate
  LoopSurrogate surrogate = LOOP_REINFORCE;
  double epsilon_low = 0.2, epsilon_high = 0.2, dual_clip = 0, cap = 5;
  double beta = 0;          // k3 to the reference on the last loop
  double exit_entropy = 0;  // Stage I: - exit_entropy · H(p)
  double temperature = 1;
  int loops = 0;  // 0: the model's
  Recompute recompute = Recompute::none;
  int64_t tokens_per_micro_batch = 0;  // 0: chosen from the model's size; never changes the loss
  bool share_prompts = true;           // equal prompts of neighbouring sequences run once
};

// Sequences back to back. Response tokens are those from prompt_lengths[i] on (at least 1: the first token has no prediction).
struct Sequences {
  std::vector<int32_t> tokens;
  std::vector<int64_t> offsets;         // count + 1
  std::vector<int32_t> prompt_lengths;  // empty: 1 each
  size_t count() const { return offsets.empty() ? 0 : offsets.size() - 1; }
  int64_t length(size_t i) const { return offsets[i + 1] - offsets[i]; }
  int64_t prompt(size_t i) const { return prompt_lengths.empty() ? 1 : prompt_lengths[i]; }
};

struct LossBatch {
  Sequences sequences;
  std::vector<double> advantages;  // one per sequence
  std::vector<double> norms;       // one per sequence: the length normaliser n of each of its response tokens
  // Per sequence, concatenated: len-1 entries (last loop) or loops × (len-1), row-major by loop. Empty when the objective needs
  // none; without old ones every ratio is 1.
  std::vector<double> old_logprobs, reference_logprobs;
};

struct LossMetrics {
  double loss = 0, policy_loss = 0;
  double kl = 0;                                  // mean k3 over response tokens (0 without a reference)
  double entropy = 0;                             // mean token entropy at the last scored loop
  double ratio = 0, clip_low = 0, clip_high = 0;  // mean ratio, shares of clipped rows
  double response_tokens = 0;
  double exit_loop = 0;  // mean of Σ t p_t
  double exit_entropy = 0;
  std::vector<double> loop_logprob, loop_weight,
      loop_exit;  // per loop, means over response tokens; NaN where a loop was not scored
};

// Adds ∂L/∂θ to the model's gradients. L is Σ over all sequences of the batch, whatever the micro-batches.
LossMetrics accumulate_loss(Model& model, const LossBatch& batch, const Objective& objective);

struct ScoreOptions {
  double temperature = 1;
  int loops = 0;                // 0: the model's
  bool last_loop = false;       // logprobs and entropy of the last loop alone: 1 × (len-1) per sequence
  bool responses_only = false;  // rows before a response read as 0 and cost nothing in the head
};
struct Scores {  // per sequence, concatenated; logprobs and entropy loops × (len-1), gates and pdf loops × len, row-major by loop
  int loops = 0;
  std::vector<double> logprobs, entropy, gate_logits, exit_pdf;
};
Scores score(Model& model, const Sequences& sequences, const ScoreOptions& options);

// Accumulates the gradient of any L given ∂L/∂ℓ (loops × (len-1) per sequence) and, when not empty, ∂L/∂gate logits (loops ×
// len).
void backward(Model& model, const Sequences& sequences, const std::vector<double>& coefficients,
              const std::vector<double>& gate_coefficients, const ScoreOptions& options, Recompute recompute);

}  // namespace looplm

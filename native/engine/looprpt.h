// LoopRPT: reinforcement pre-training of the latent steps (math.md §5; arXiv 2603.19714), and Stage II, which trains the exit
// gate alone (§6).
#pragma once
#include "sequences.h"
#include "stack.h"

namespace looplm {

// How the loops are weighted: equally, by the rollout's exit distribution, or only the last loop.
enum class KlReduction { mean, weighted, last };

struct LoopRptOptions {
  double rho = 0.2;  // share of each sequence's predictions that are trained on: those of highest teacher entropy
  double tau = 0.5;  // the reference loop is the first at which the teacher's exit CDF reaches tau
  double lambda_base = 0.02, lambda_scale = 0.5;                     // cost of a loop
  double policy = 1, representation = 1, entropy = 0.01, kl = 1e-4;  // weights of the four terms (α, β, γ, δ)
  int rollouts = 8;                                                  // G
  double sigma = 0.1;                                                // standard deviation of the latent noise
  NoiseSite noise_site = NoiseSite::state;
  bool antithetic = false;     // rollouts 2m and 2m + 1 use opposite noise (not with given noise)
  bool clean_rewards = false;  // rewards use ℓ of the clean pass instead of the rollout's own
  KlReduction kl_reduction = KlReduction::mean;
  uint64_t seed = 0;  // of noise and exits; a draw depends only on (seed, sequence id, rollout, position)
  int loops = 0;      // 0: as in the model's configuration
  Recompute recompute = Recompute::none;
  int64_t tokens_per_micro_batch = 0;  // 0: chosen from the model's size
};

struct LoopRptBatch {
  Sequences sequences;
  std::vector<uint32_t> ids;  // one per sequence: its number in the random draws
  // Number of response tokens of every sequence in the logical batch, of which these sequences may be a part. Losses are
  // means over the hard tokens of the logical batch. Empty: these sequences are the whole logical batch.
  std::vector<int32_t> responses;
  std::vector<int32_t> mask;  // len-1 per sequence; 0: the prediction is never a hard token. Empty: all response tokens may
                              // be
  // Given draws, per sequence, concatenated: noise G × T × len × D, exits G × (len-1) as 0-based loops. Empty: drawn from the
  // seed.
  std::vector<double> noise;
  std::vector<int32_t> exits;
};

struct LoopRptMetrics {
  double loss = 0, policy_loss = 0, representation_loss = 0, entropy_loss = 0, kl = 0;
  double reward = 0, reward_std = 0;                         // over the noisy rollouts of the hard tokens
  double reference_loop = 0;                                 // mean t_ref, 1-based
  double exit_loop = 0;                                      // mean sampled exit, 1-based
  double mean_loop = 0;                                      // mean Σ t p_t of the clean pass
  double tokens = 0;                                         // number of hard tokens
  std::vector<double> loop_logprob, loop_weight, loop_exit;  // of the clean pass, means over hard tokens, per loop
};

// Adds ∂L/∂θ to the student's gradients. The teacher must have the same configuration and is not changed.
LoopRptMetrics accumulate_looprpt(Model& student, Model& teacher, const LoopRptBatch& batch, const LoopRptOptions& options);

// Stage II, per response token: loop t >= 2 has the label σ(50 (gain - 0.005)) with gain = max(0, CE_{t-1} - CE_t), that is
// whether the loop helped. The loss is the binary cross-entropy between the label and 1 - λ_t (the probability to continue),
// times 1/T, averaged over `tokens`, the response tokens of the logical batch. Adds only to the gate's gradients. mask: len-1
// per sequence, 0: the prediction does not count; empty: all response tokens count. Returns the loss.
double accumulate_stage2(Model& model, const Sequences& sequences, const std::vector<int32_t>& mask, double tokens,
                         int64_t tokens_per_micro_batch);

}  // namespace looplm

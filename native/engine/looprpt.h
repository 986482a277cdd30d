// LoopRPT: reinforcement pre-training of the latent steps (math.md §5; arXiv 2603.19714), and Stage II, the gate alone (§6).
#pragma once
#include "sequences.h"
#include "stack.h"

namespace looplm {

enum class KlReduction { mean, weighted, last };  // over the loops: equally, by the rollout's exit distribution, the last alone

struct LoopRptOptions {
  double rho = 0.2;  // share of each sequence's predictions that count, those of highest teacher entropy
  double tau = 0.5;  // the reference step is the first whose teacher exit CDF reaches it
  double lambda_base = 0.02, lambda_scale = 0.5;                     // price of a loop
  double policy = 1, representation = 1, entropy = 0.01, kl = 1e-4;  // weights of the four terms (α, β, γ, δ)
  int rollouts = 8;                                                  // G
  double sigma = 0.1;                                                // of the latent noise
  NoiseSite noise_site = NoiseSite::state;
  bool antithetic = false;     // rollouts 2m and 2m + 1 have opposite noise (own draws only)
  bool clean_rewards = false;  // ℓ of the clean pass in the rewards of rollouts, in place of the rollout's own
  KlReduction kl_reduction = KlReduction::mean;
  uint64_t seed = 0;  // of noise and exits; a draw depends on (seed, sequence id, rollout, position) alone
  int loops = 0;      // 0: the model's
  Recompute recompute = Recompute::none;
  int64_t tokens_per_micro_batch = 0;  // 0: chosen from the model's size
};

struct LoopRptBatch {
  Sequences sequences;
  std::vector<uint32_t> ids;  // one per sequence: its number in the random draws
  // Response tokens of every sequence of the logical batch, of which these sequences may be a share: means are over its hard
  // tokens. Empty: those of the sequences.
  std::vector<int32_t> responses;
  std::vector<int32_t> mask;  // per sequence len-1; 0: the prediction is never a hard token. Empty: all responses may be
  // In place of own draws, per sequence, concatenated: noise G × T × len × D, exits G × (len-1) with 0-based loops. Empty: drawn.
  std::vector<double> noise;
  std::vector<int32_t> exits;
};

struct LoopRptMetrics {
  double loss = 0, policy_loss = 0, representation_loss = 0, entropy_loss = 0, kl = 0;
  double reward = 0, reward_std = 0;                         // of the noisy rollouts, over selected tokens
  double reference_loop = 0;                                 // mean t_ref, 1-based
  double exit_loop = 0;                                      // mean sampled exit, 1-based
  double mean_loop = 0;                                      // mean Σ t p_t of the clean pass
  double tokens = 0;                                         // selected
  std::vector<double> loop_logprob, loop_weight, loop_exit;  // of the clean pass, means over selected tokens
};

// Adds ∂L/∂θ of the student to its gradients. The teacher, of the same configuration, is only read.
LoopRptMetrics accumulate_looprpt(Model& student, Model& teacher, const LoopRptBatch& batch, const LoopRptOptions& options);

// Stage II: the label of loop t >= 2 is whether it helped, σ(50 (gain - 0.005)), gain = max(0, CE_{t-1} - CE_t); binary
// cross-entropy with 1 - λ_t, mean over `tokens` response tokens, those of the logical batch, 1/T. Adds to the gate's gradients
// alone. mask: len-1 per sequence, 0: the prediction does not count; empty: all responses do. Returns the loss.
double accumulate_stage2(Model& model, const Sequences& sequences, const std::vector<int32_t>& mask, double tokens,
                         int64_t tokens_per_micro_batch);

}  // namespace looplm

// The specification of an objective: a sum of terms, each a policy gradient through the tokens or through the exits, plus
// regularisers. Trainers differ only in this specification. GRPO is one token term on the last loop, RLTT one with any loop
// weights, Stage I one with attached exit-pdf weights and advantage 1.
#pragma once
#include <cstdint>
#include <optional>
#include <vector>

#include "belief.h"
#include "sequences.h"

namespace looplm {

// exit_loop: one-hot at the exit loop of each token, which the batch gives.
enum class LoopWeighting { exit_pdf, uniform, progressive, one_hot, given, exit_loop };

// Weights of the loops that are read in the loss of a token: w_1..w_T, Σ w = 1.
struct LoopWeights {
  LoopWeighting kind = LoopWeighting::exit_pdf;
  double temperature = 1;     // exit_pdf: w ∝ p^(1/temperature)
  double alpha = 1;           // progressive: w ∝ t^alpha
  int loop = 0;               // one_hot: 1-based; 0: the last loop
  std::vector<double> given;  // given: one weight per loop that is read
  bool detach = true;         // false: the gradient of exit-pdf weights flows into the gate
};

// What a term differentiates: the log-probability of the token at every loop, or log p_{t*} of the exit loop.
enum class Channel { token, exit };
enum class Surrogate { reinforce, ppo, cispo, gspo, k15 };
// Normalisation of the belief's returns over the loops of a token: none, the z-score, or the positive part of the z-score.
enum class BeliefNorm { none, loops, gain };

struct LossTerm {
  Channel channel = Channel::token;
  LoopWeights weights;
  Surrogate surrogate = Surrogate::reinforce;
  bool inner = false;  // true: one surrogate of the weighted sum of log ratios; false: the weighted sum of one surrogate per
                       // loop
  double epsilon_low = 0.2, epsilon_high = 0.2, dual_clip = 0, cap = 5;
  double tau = 0;  // k15
  // The model's belief in the sampled token adds belief_scale · norm(G_t) to the advantage of loop t.
  std::optional<BeliefRewards> belief;
  BeliefNorm belief_norm = BeliefNorm::none;
  double belief_scale = 1;
  double reference_threshold = 0.5;  // base `teacher`: the reference loop is the first at which the teacher's exit CDF
                                     // reaches this
  double cost_scale = 0;  // base `teacher`: the cost grows by up to this share where the teacher is certain (LoopRPT's λ)
  // Exit channel. draws: exits per token, drawn from p, if the batch gives none. With a belief, advantages are z-scores over
  // these exits.
  int draws = 0;
  uint64_t seed = 0;
  std::vector<double> advantages;          // one per sequence, or one per sequence and loop that is read
  std::vector<double> token_advantages;    // one per prediction (len-1 per sequence), added to the sequence's advantage. Empty:
                                           // none
  std::vector<double> length_normalizers;  // one per sequence: the factor n of each of its response tokens
};

// The loops of a regulariser: the last one, all with equal weight, or weighted as in the first token term.
enum class LoopSet { last, uniform, weights };

// LLDS (2512.04220): λ Σ max(0, -ρ) over segments whose likelihood fell, only for sequences that should stay likely.
struct LazyLikelihood {
  enum class Gate { token, segment, response, loop };  // what is judged as one segment; loop: the response, per loop
  Gate gate = Gate::response;
  LoopSet loops = LoopSet::last;
  std::vector<double> length_normalizers;  // one per sequence: λ / number of tokens; 0: the term skips this sequence
};

struct Objective {
  std::vector<LossTerm> terms;
  double beta = 0;  // weight of the k3 estimate of the KL to the reference
  LoopSet beta_loops = LoopSet::last;
  double token_entropy = 0;  // adds -token_entropy · H of the token distributions, at the loops of the first token term
  double exit_entropy = 0;   // adds -exit_entropy · H(p)
  std::optional<LazyLikelihood> lazy;
  double temperature = 1;
  LoopOptions loops;
  Recompute recompute = Recompute::none;
  int64_t tokens_per_micro_batch = 0;  // 0: chosen from the model's size; does not change the loss
  bool share_prompts = true;           // equal prompts of neighbouring sequences run once
};

// Values per prediction are concatenated over the sequences: len-1 entries each, or loops × (len-1), row-major by loop, where
// only the loops that are read count. len-1 is for values without a loop, or of a single weighted loop.
struct LossBatch {
  Sequences sequences;
  std::vector<double> length_normalizers;  // of the regularisers, one per sequence like those of a term
  // May be empty if the objective does not use them. Without old_logprobs every ratio is 1. Without lazy_logprobs, LLDS uses
  // old_logprobs.
  std::vector<double> old_logprobs, reference_logprobs, lazy_logprobs;
  std::vector<double> reference_entropy, reference_exit_pdf;  // base `teacher`: len-1 (last loop), and loops × (len-1)
  std::vector<uint32_t> numbers;                              // number of each sequence in the draws of exits; empty: its index
  std::vector<int32_t> exits;                                 // exit channel: 0-based loops, len-1; empty: drawn
  std::vector<int32_t> segments;                              // LLDS: action ids, len-1; empty: each response is one segment
  std::vector<int32_t> mask;  // len-1; 0: the prediction does not count. Empty: all response tokens count
};

}  // namespace looplm

// The specification of an objective: a sum of terms, each a policy gradient through the tokens or
// through the exits, and regularisers. Trainers differ in nothing else: GRPO is one token term on the last loop, RLTT one with
// any weights, Stage I one with attached exit-pdf weights and advantage 1.
#pragma once
#include <cstdint>
#include <optional>
#include <vector>

#include "belief.h"
#include "sequences.h"

namespace looplm {

enum class LoopWeighting { exit_pdf, uniform, progressive, one_hot, given, exit_loop };  // exit_loop: the batch's exits, one-hot

// How the loops that are read weigh in the loss of a token: w_1..w_T, Σ w = 1.
struct LoopWeights {
  LoopWeighting kind = LoopWeighting::exit_pdf;
  double temperature = 1;     // exit_pdf: w ∝ p^(1/temperature)
  double alpha = 1;           // progressive: w ∝ t^alpha
  int loop = 0;               // one_hot: 1-based; 0: the last
  std::vector<double> given;  // given: one per loop that is read
  bool detach = true;         // false: the exit-pdf weights carry gradient into the gate
};

enum class Channel { token, exit };  // the log-probability of the token at every loop, or of the exit log p_{t*}
enum class Surrogate { reinforce, ppo, cispo, gspo, k15 };
enum class BeliefNorm { none, loops, gain };  // of the returns over a token's loops: as they are, z-score, its positive part

struct LossTerm {
  Channel channel = Channel::token;
  LoopWeights weights;
  Surrogate surrogate = Surrogate::reinforce;
  bool inner = false;  // the surrogate of the weighted sum of the loops' log ratios, instead of the weighted sum of surrogates
  double epsilon_low = 0.2, epsilon_high = 0.2, dual_clip = 0, cap = 5;
  double tau = 0;  // k15
  // The belief in the sampled token adds belief_scale · norm(G_t) to the advantage of loop t.
  std::optional<BeliefRewards> belief;
  BeliefNorm belief_norm = BeliefNorm::none;
  double belief_scale = 1;
  double reference_threshold = 0.5;  // base `teacher`: its reference loop is the first whose exit CDF reaches this
  double cost_scale = 0;             // and the cost rises by this share where the teacher is certain (LoopRPT's λ)
  // Exit channel: exits per token drawn from p when the batch brings none; with a belief, advantages are z-scores over them.
  int draws = 0;
  uint64_t seed = 0;
  std::vector<double> advantages;          // one per sequence, or one per sequence and loop that is read
  std::vector<double> token_advantages;    // of predictions, len-1 each: added to those of the sequence. Empty: none
  std::vector<double> length_normalizers;  // one per sequence: n of each of its response tokens
};

enum class LoopSet { last, uniform, weights };  // of a regulariser: one loop, all alike, or by the first token term's weights

// λ Σ max(0, -ρ) over segments whose likelihood fell, of sequences that should be kept (LLDS, 2512.04220).
struct LazyLikelihood {
  enum class Gate { token, segment, response, loop };  // loop: the response, each loop by itself
  Gate gate = Gate::response;
  LoopSet loops = LoopSet::last;
  std::vector<double> length_normalizers;  // one per sequence: λ / the token count; 0 where the sequence is not to be kept
};

struct Objective {
  std::vector<LossTerm> terms;
  double beta = 0;  // k3 to the reference
  LoopSet beta_loops = LoopSet::last;
  double token_entropy = 0;  // - token_entropy · H of the tokens' distributions, at the loops of the first token term's weights
  double exit_entropy = 0;   // - exit_entropy · H(p)
  std::optional<LazyLikelihood> lazy;
  double temperature = 1;
  LoopOptions loops;
  Recompute recompute = Recompute::none;
  int64_t tokens_per_micro_batch = 0;  // 0: chosen from the model's size; never changes the loss
  bool share_prompts = true;           // equal prompts of neighbouring sequences run once
};

// Per prediction: per sequence, concatenated, len-1 entries (the one weighted loop, or what has no loops) or loops × (len-1),
// row-major by loop. Only loops that are read count.
struct LossBatch {
  Sequences sequences;
  std::vector<double> length_normalizers;  // of the regularisers, as those of a term
  // Empty when the objective needs none; without old ones every ratio is 1. `lazy` empty: LLDS compares with the old ones.
  std::vector<double> old_logprobs, reference_logprobs, lazy_logprobs;
  std::vector<double> reference_entropy, reference_exit_pdf;  // base `teacher`: len-1 (last loop), and loops × (len-1)
  std::vector<uint32_t> numbers;                              // of the sequences, in the draws of exits; empty: their indices
  std::vector<int32_t> exits;                                 // 0-based loops, len-1 (exit channel); empty: drawn
  std::vector<int32_t> segments;                              // action ids, len-1 (LLDS); empty: the response is one
  std::vector<int32_t> mask;                                  // len-1; 0: the prediction does not count. Empty: all responses
};

}  // namespace looplm

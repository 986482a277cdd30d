// Rewards per loop from a belief curve b_0..b_T: b_t is the probability of the right answer if the model stops after loop t
// (IGPO 2510.14967, MRT 2503.07572, PAV 2410.08146, Clip and Delta 2410.15115, LoopRPT 2603.19714).
#pragma once
#include <vector>

namespace looplm {

enum class BeliefValue { probability, log, best_of };  // φ(b): b, log b, 1 - (1 - b)^attempts
enum class BeliefBase { none, previous, teacher };

struct BeliefRewards {
  BeliefValue value = BeliefValue::log;
  double attempts = 4;
  // What is subtracted: r_t = φ(b_t) - base. base: 0, φ(b_{t-1}), or the teacher's φ at its reference loop
  BeliefBase base = BeliefBase::previous;
  double cost = 0;      // cost of a loop: r_t is reduced by cost · (t - origin); origin: 1, or the teacher's reference loop
  bool clip = false;    // r_t <- min(r_t - clip_at, 0)
  double clip_at = 0;   // η
  bool delta = false;   // after clipping, r_t <- r_t - r_{t+1} for t < T-1, r_{T-1} unchanged, r_T <- 0
  double discount = 0;  // γ of G_t = Σ_{k>=t} γ^{k-t} r_k
};

// Returns G_1..G_T. log_belief holds log b_0..log b_T; only base `previous` reads b_0, the belief before the first loop. With
// base `teacher`, reference_log is the teacher's log b at reference_loop (1-based).
std::vector<double> belief_returns(const BeliefRewards& rewards, const std::vector<double>& log_belief, double reference_log,
                                   int reference_loop);

}  // namespace looplm

// How a row's log-probability ℓ becomes its coefficient c = ∂L/∂ℓ, and its contribution to the sums (math.md §2; LoopLoss of
// backend.h). One function per surrogate, used by the kernels of all backends. Computed in double, because it runs only once
// per row of logits. Kernels call it where they compute the log-probability, so that one pass over the logits gives values
// and gradient. Otherwise every row would go through memory, or through the head's product, a second time.
#pragma once
#include <math.h>

#include "backend.h"

#if defined(__CUDACC__)
#define LOOPLM_TOKEN_LOSS __host__ __device__ static inline
#else
#define LOOPLM_TOKEN_LOSS static inline
#endif

namespace looplm {

// The values of one row; 0 if the loss has no such array.
struct TokenLossRow {
  double scale, advantage, old_logprob, reference_logprob, kl_scale;
};
// The surrogate and its bounds.
struct TokenLossForm {
  int surrogate;
  double epsilon_low, epsilon_high, dual_clip, cap;
  bool has_old;  // false: every ratio is 1
};
template <class Real>
LOOPLM_TOKEN_LOSS TokenLossRow token_loss_row(const LoopLoss& l, int64_t row) {
  const auto at = [row](const void* reals) -> double { return reals ? double(static_cast<const Real*>(reals)[row]) : 0.0; };
  return {at(l.scale), at(l.advantage), at(l.old_logprob), at(l.reference_logprob), at(l.kl_scale)};
}
LOOPLM_TOKEN_LOSS TokenLossForm token_loss_form(const LoopLoss& l) {
  return {l.surrogate, l.epsilon_low, l.epsilon_high, l.dual_clip, l.cap, l.old_logprob != nullptr};
}

// A surrogate at ℓ and ratio r: its derivative by ℓ and its value, both before the weight of the row.
struct SurrogateValue {
  double slope, value;
  bool cut_low, cut_high;  // the ratio was cut at a bound: no gradient (PPO), or a constant weight (CISPO)
};

// GIVEN and REINFORCE: the log-probability itself.
LOOPLM_TOKEN_LOSS SurrogateValue log_likelihood(double logprob) { return {1, logprob, false, false}; }

// PPO (1707.06347) with clip-higher and dual clip: the ratio, kept within its bounds.
LOOPLM_TOKEN_LOSS SurrogateValue clipped_ratio(double ratio, bool gain, const TokenLossForm& form) {
  const double low = 1 - form.epsilon_low, high = gain ? 1 + form.epsilon_high : form.dual_clip;
  const bool cut_low = !gain && ratio <= low, cut_high = (gain || form.dual_clip > 0) && ratio >= high;
  return {cut_low || cut_high ? 0 : ratio, cut_low ? low : cut_high ? high : ratio, cut_low, cut_high};
}

// CISPO (2506.13585): the log-probability times the capped ratio, which carries no gradient.
LOOPLM_TOKEN_LOSS SurrogateValue capped_weight(double ratio, double logprob, const TokenLossForm& form) {
  const bool cut = ratio > form.cap;
  const double weight = cut ? form.cap : ratio;
  return {weight, weight * logprob, false, cut};
}

// Adds the row's contribution to the sums, and returns its coefficient.
LOOPLM_TOKEN_LOSS double token_loss(const TokenLossForm& form, const TokenLossRow& row, double logprob, LoopLossSums& sums) {
  double coefficient = 0;
  if (row.scale != 0) {
    const bool has_ratio = form.surrogate == LOOP_PPO || form.surrogate == LOOP_CISPO;
    const double ratio = has_ratio && form.has_old ? exp(logprob - row.old_logprob) : 1;
    const double weight = form.surrogate == LOOP_GIVEN ? row.scale : -row.scale * row.advantage;
    const SurrogateValue s = form.surrogate == LOOP_PPO     ? clipped_ratio(ratio, row.advantage >= 0, form)
                             : form.surrogate == LOOP_CISPO ? capped_weight(ratio, logprob, form)
                                                            : log_likelihood(logprob);
    coefficient = weight * s.slope;
    sums.policy_loss += weight * s.value;
    sums.loss += weight * s.value;
    sums.ratio += ratio;
    sums.rows += 1;
    sums.clipped_low += s.cut_low;
    sums.clipped_high += s.cut_high && weight != 0;
  }
  if (row.kl_scale != 0) {  // + kl_scale (e^d - d - 1), d = ℓ_ref - ℓ
    const double d = row.reference_logprob - logprob, growth = expm1(d);
    coefficient -= row.kl_scale * growth;
    sums.loss += row.kl_scale * (growth - d);
    sums.kl += growth - d;
    sums.kl_rows += 1;
  }
  return coefficient;
}

}  // namespace looplm

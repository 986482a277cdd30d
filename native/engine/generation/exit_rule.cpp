#include "exit_rule.h"

#include <algorithm>
#include <cmath>

#include "../error.h"

namespace looplm {

namespace {

using Options = const ExitOptions&;
using Measures = const ExitMeasures&;

// The probability Σ_(s<=t) p_s to have exited by loop t.
double exit_probability(Measures m, ExitState& s) {
  s.survival *= 1 / (1 + std::exp(m.gate_logit));
  return 1 - s.survival;
}

// The rules, in the order of ExitRule.
//
// gate           Σ_(s<=t) p_s >= threshold, p_s = λ_s Π_(r<s) (1 - λ_r)    Ouro, arXiv 2510.25741, §3; math.md §1
// sampled        Σ_(s<=t) p_s >= u, u uniform for every token: t is drawn from p
// hidden-delta   |h_t - h_(t-1)| <= threshold · |h_t|                      Raven's latent difference, arXiv 2502.05171
// cosine         1 - cos(h_t, h_(t-1)) <= threshold
// entropy        H(P_t) <= threshold
// entropy-change |H(P_t) - H(P_(t-1))| <= threshold
// kl             KL(P_t || P_(t-1)) <= threshold
// kl-previous    KL(P_(t-1) || P_t) <= threshold, P_0 uniform              Raven, arXiv 2502.05171, §6.1
// argmax-stable  argmax P_t is the same as in the loop before, `patience` times in a row
const ExitRuleEntry rules[] = {
    {ExitRule::fixed, "fixed", 0, 1, [](Options, Measures, ExitState&) { return false; }},
    {ExitRule::gate, "gate", exit_needs::gate, 1,
     [](Options o, Measures m, ExitState& s) { return exit_probability(m, s) >= o.threshold; }},
    {ExitRule::sampled, "sampled", exit_needs::gate, 1,
     [](Options, Measures m, ExitState& s) { return exit_probability(m, s) >= m.draw; }},
    {ExitRule::hidden_delta, "hidden-delta", exit_needs::states, 2,
     [](Options o, Measures m, ExitState&) { return m.difference <= o.threshold * m.norm; }},
    {ExitRule::cosine, "cosine", exit_needs::states, 2,
     [](Options o, Measures m, ExitState&) { return 1 - m.product / (m.norm * m.previous_norm) <= o.threshold; }},
    {ExitRule::entropy, "entropy", exit_needs::entropy, 1,
     [](Options o, Measures m, ExitState&) { return m.entropy <= o.threshold; }},
    {ExitRule::entropy_change, "entropy-change", exit_needs::entropy, 2,
     [](Options o, Measures m, ExitState& s) { return std::abs(m.entropy - s.entropy) <= o.threshold; }},
    {ExitRule::kl, "kl", exit_needs::divergence, 2,
     [](Options o, Measures m, ExitState&) { return m.divergence <= o.threshold; }},
    {ExitRule::kl_previous, "kl-previous", exit_needs::reverse_divergence, 1,
     [](Options o, Measures m, ExitState&) { return m.reverse_divergence <= o.threshold; }},
    {ExitRule::argmax_stable, "argmax-stable", exit_needs::argmax, 2,
     [](Options o, Measures m, ExitState& s) {
       s.agreements = m.argmax == s.argmax ? s.agreements + 1 : 0;
       s.argmax = m.argmax;
       return s.agreements >= o.patience;
     }},
};

}  // namespace

const ExitRuleEntry& entry_of(ExitRule rule) { return rules[size_t(rule)]; }

ExitRule exit_rule_named(const std::string& name) {
  std::string names;
  for (const ExitRuleEntry& entry : rules) {
    if (entry.name == name) return entry.rule;
    names += std::string(names.empty() ? "" : ", ") + entry.name;
  }
  throw Error("INVALID_ARGUMENT", "generate", "exit rule \"" + name + "\" is unknown; there are " + names);
}

int first_exit(const ExitOptions& options) { return std::max(options.min_loops, entry_of(options.rule).first_loop); }

bool exits(const ExitOptions& options, int loop, const ExitMeasures& measures, ExitState& state) {
  const bool holds = entry_of(options.rule).holds(options, measures, state);
  state.entropy = measures.entropy;
  return holds && loop >= first_exit(options);
}

}  // namespace looplm

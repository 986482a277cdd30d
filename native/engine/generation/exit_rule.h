// When a token leaves the loops. A rule is one entry of the table in exit_rule.cpp: its name, what it needs measured, and its
// decision.
#pragma once
#include <cstdint>
#include <string>

namespace looplm {

enum class ExitRule { fixed, gate, sampled, hidden_delta, cosine, entropy, entropy_change, kl, kl_previous, argmax_stable };

// A token leaves after the first loop t, min_loops <= t < max_loops, at which the rule holds, and after max_loops in any case.
struct ExitOptions {
  ExitRule rule = ExitRule::fixed;
  double threshold = 0;
  int min_loops = 1;
  int max_loops = 0;  // 0: the scheduler's
  int patience = 1;   // argmax_stable: agreements in a row
};

// What a rule looks at after a loop. Only what it needs is measured.
namespace exit_needs {
enum : unsigned {
  gate = 1,                 // the exit gate's logit
  states = 2,               // register 0 after this loop and after the one before, t >= 2
  argmax = 4,               // of the logits
  entropy = 8,              // of P_t = softmax(logits_t)
  divergence = 16,          // KL(P_t || P_(t-1)), t >= 2
  reverse_divergence = 32,  // KL(P_(t-1) || P_t); P_0 is uniform
  hidden = ~states,         // what the head reads
  distribution = ~(states | gate),
};
}
struct ExitMeasures {
  double gate_logit = 0;
  double draw = 0;                                                  // of the token: uniform in [0, 1), the same at every loop
  double difference = 0, norm = 0, product = 0, previous_norm = 0;  // of h_t and h_(t-1): |h_t - h_(t-1)|, |h_t|, h_t · h_(t-1)
  int32_t argmax = -1;
  double entropy = 0, divergence = 0, reverse_divergence = 0;  // nats
};

// What a rule keeps of a token from loop to loop.
struct ExitState {
  double survival = 1;  // gate, sampled: Π (1 - λ_s)
  double entropy = -1;  // of P_(t-1); below 0 before the first loop
  int32_t argmax = -1;
  int agreements = 0;  // of the argmax, in a row
};

struct ExitRuleEntry {
  ExitRule rule;
  const char* name;
  unsigned needs;
  int first_loop;  // that a token may leave after
  bool (*holds)(const ExitOptions&, const ExitMeasures&, ExitState&);
};
const ExitRuleEntry& entry_of(ExitRule rule);
// Throws INVALID_ARGUMENT with the names that there are.
ExitRule exit_rule_named(const std::string& name);

// Whether the token leaves after loop t (1-based); the state goes on to the next loop.
bool exits(const ExitOptions& options, int loop, const ExitMeasures& measures, ExitState& state);
// The first loop that the rule may let a token go after.
int first_exit(const ExitOptions& options);

}  // namespace looplm

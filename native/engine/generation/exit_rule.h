// When a token exits the loops. Each rule is one entry of the table in exit_rule.cpp: its name, the values that it needs, and
// its decision.
#pragma once
#include <cstdint>
#include <string>

namespace looplm {

enum class ExitRule { fixed, gate, sampled, hidden_delta, cosine, entropy, entropy_change, kl, kl_previous, argmax_stable };

// A token exits after the first loop t, min_loops <= t < max_loops, at which the rule holds, and after max_loops at the
// latest.
struct ExitOptions {
  ExitRule rule = ExitRule::fixed;
  double threshold = 0;
  int min_loops = 1;
  int max_loops = 0;  // 0: the scheduler's number of loops
  int patience = 1;   // argmax_stable: how many times in a row the argmax must agree
};

// The values that a rule needs after a loop. Only these are computed.
namespace exit_needs {
enum : unsigned {
  gate = 1,                 // the exit gate's logit
  states = 2,               // register 0 after this loop and the one before; only for t >= 2
  argmax = 4,               // of the logits
  entropy = 8,              // of P_t = softmax(logits_t)
  divergence = 16,          // KL(P_t || P_(t-1)); only for t >= 2
  reverse_divergence = 32,  // KL(P_(t-1) || P_t); P_0 is uniform
  hidden = ~states,         // anything computed from the head's input
  distribution = ~(states | gate),
};
}
struct ExitMeasures {
  double gate_logit = 0;
  double draw = 0;                                                  // uniform in [0, 1), one per token, the same at every loop
  double difference = 0, norm = 0, product = 0, previous_norm = 0;  // norms and dot product: |h_t - h_(t-1)|, |h_t|, h_t ·
                                                                    // h_(t-1), |h_(t-1)|
  int32_t argmax = -1;
  double entropy = 0, divergence = 0, reverse_divergence = 0;  // nats
};

// What a rule remembers of a token from loop to loop.
struct ExitState {
  double survival = 1;  // gate, sampled: Π (1 - λ_s)
  double entropy = -1;  // of P_(t-1); negative before the first loop
  int32_t argmax = -1;
  int agreements = 0;  // how many times in a row the argmax was the same
};

struct ExitRuleEntry {
  ExitRule rule;
  const char* name;
  unsigned needs;
  int first_loop;  // first loop after which a token may exit
  bool (*holds)(const ExitOptions&, const ExitMeasures&, ExitState&);
};
const ExitRuleEntry& entry_of(ExitRule rule);
// Throws INVALID_ARGUMENT with the list of valid names.
ExitRule exit_rule_named(const std::string& name);

// Whether the token exits after `loop` (1-based). Updates the state for the next loop.
bool exits(const ExitOptions& options, int loop, const ExitMeasures& measures, ExitState& state);
// The first loop after which the rule may let a token exit.
int first_exit(const ExitOptions& options);

}  // namespace looplm

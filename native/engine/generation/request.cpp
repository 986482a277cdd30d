#include "request.h"

#include <cmath>

#include "../model.h"
#include "../pass.h"

namespace looplm {

namespace {

void require_argument(bool ok, const std::string& what) {
  if (!ok) throw Error("INVALID_ARGUMENT", "generate", what);
}

void check_sampling(const Sampling& s) {
  require_argument(s.temperature == 0 || (s.temperature >= 1e-6 && s.temperature <= 1e30),
                   "temperature must be 0 (greedy) or at least 1e-6 and at most 1e30");
  require_argument(s.top_k >= 0 && s.top_p > 0 && s.top_p <= 1 && s.min_p >= 0 && s.min_p < 1,
                   "topK must be >= 0, topP in (0, 1], minP in [0, 1)");
}

void check_logits(const Model& model, const GenerateRequest& r) {
  const LogitOptions& o = r.logits;
  const int64_t V = model.config.vocabulary;
  int64_t banned = 0;
  for (auto [token, bias] : o.biases) {
    require_argument(token >= 0 && token < V, "logitBias and bannedTokens: token id " + std::to_string(token) +
                                                  " is outside the vocabulary of " + std::to_string(V));
    banned += std::isinf(bias);
  }
  require_argument(banned < V, "bannedTokens: every token is banned, and none is left to draw");
  require_argument(o.repetition > 0 && std::isfinite(o.repetition + o.frequency + o.presence),
                   "repetitionPenalty must be more than 0, frequencyPenalty and presencePenalty must be finite");
  require_argument(o.host == LogitOptions::Host::none || r.draft_loops == 0,
                   "speculate does not work with grammar or logitsProcessor, which answer one token at a time: omit one of them");
}

void check_exit(const Model& model, const ExitOptions& exit, int loops, int most) {
  require_argument(!(entry_of(exit.rule).needs & exit_needs::gate) || model.config.exit_gate,
                   std::string("exit rule ") + entry_of(exit.rule).name + " needs an exit gate, and this model of family " +
                       model.config.family + " has none: create or load the model with exitGate: true, and train it");
  require_argument(exit.max_loops <= loops,
                   "loops " + std::to_string(exit.max_loops) + " are more than the scheduler's " + std::to_string(loops));
  require_argument(exit.min_loops >= 1 && exit.min_loops <= most,
                   "minLoops must be between 1 and the " + std::to_string(most) + " loops that a token may take");
  require_argument(!std::isnan(exit.threshold), "the exit threshold is not a number");
  require_argument(exit.patience >= 1, "patience must be at least 1");
}

}  // namespace

void check_request(const Model& model, const GenerateRequest& r, int loops, bool shared) {
  require_argument(!r.prompt.empty(), "the prompt is empty: give at least one token (a beginning-of-text token, say)");
  for (int32_t id : r.prompt)
    require_argument(
        id >= 0 && id < model.config.vocabulary,
        "token id " + std::to_string(id) + " is outside the vocabulary of " + std::to_string(model.config.vocabulary));
  require_argument(r.max_new_tokens >= 1, "maxNewTokens must be at least 1");
  const size_t positions = r.prompt.size() + size_t(r.max_new_tokens);
  if (!r.states.given.empty() && r.states.given.size() != positions * size_t(model.config.hidden))
    throw Error("INVALID_SHAPE", "generate",
                "initialStates must hold (prompt + maxNewTokens) × " + std::to_string(model.config.hidden) + " values a prompt");
  require_argument(
      !r.keep || !shared,
      "keep: continuing a sequence needs the keys and values of every loop, and kv 'shared' keeps only those of the last: "
      "use kv 'per-loop'");
  require_argument(r.prefix >= 0 && r.prefix <= int64_t(r.prompt.size()), "prefix must be at most the prompt's tokens");
  check_vectors(r.vectors, r.prompt.size(), model.config.hidden, "generate");
  check_sampling(r.sampling);
  check_logits(model, r);
  require_argument(r.alternatives >= 0, "the number of alternatives must be at least 0");
  const int most = r.exit.max_loops > 0 ? r.exit.max_loops : loops;
  check_exit(model, r.exit, loops, most);
  const int adapted = model.weights().adapter_loops;
  require_argument(adapted == 0 || most <= adapted,
                   "the adapter has matrices for " + std::to_string(adapted) + " loops, not for " + std::to_string(most));
  require_argument(!r.wavefront || r.draft_loops == 0, "a request can use wavefront or drafts, not both");
  if (r.draft_loops == 0) return;
  require_argument(
      r.draft_loops >= 1 && r.draft_loops < most && r.draft_tokens >= 2,
      "a draft needs at least 1 loop, fewer than the " + std::to_string(most) + " loops of full depth, and at least 2 tokens");
  require_argument(r.exit.rule == ExitRule::fixed && !shared,
                   "speculation needs exit rule fixed and kv per-loop: it gives full depth's tokens");
}

}  // namespace looplm

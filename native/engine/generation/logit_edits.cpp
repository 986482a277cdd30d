#include "logit_edits.h"

namespace looplm {

// The repetition penalty counts the prompt, as in transformers. Frequency and presence penalties count only drawn tokens, as
// in OpenAI's API.
LogitEdits::LogitEdits(const LogitOptions& o, const std::vector<int32_t>& prompt)
    : penalise_(o.penalise()), repetition_(o.repetition), frequency_(o.frequency), presence_(o.presence) {
  for (auto [token, bias] : o.biases) tokens_[token].bias += bias;
  if (repetition_ != 1)
    for (int32_t token : prompt) tokens_[token].in_text = true;
}

void LogitEdits::add_drawn(int32_t token) {
  if (!penalise_) return;
  Token& entry = tokens_[token];
  entry.in_text = true;
  entry.drawn++;
}

void LogitEdits::append_to(std::vector<LoopLogitEdit>& edits, int64_t first) const {
  for (const auto& [token, entry] : tokens_)
    edits.push_back({first + token, entry.bias, entry.in_text ? repetition_ : 1,
                     frequency_ * entry.drawn + (entry.drawn > 0 ? presence_ : 0)});
}

}  // namespace looplm

// What LogitOptions make of a row's logits at its next draw: one entry per token that is biased, banned or penalised.
#pragma once
#include <map>

#include "../../backend.h"
#include "request.h"

namespace looplm {

class LogitEdits {
 public:
  LogitEdits() = default;
  LogitEdits(const LogitOptions& options, const std::vector<int32_t>& prompt);
  bool empty() const { return tokens_.empty() && !penalise_; }
  void add_drawn(int32_t token);
  // Of a row whose logits begin at element `first`.
  void append_to(std::vector<LoopLogitEdit>& edits, int64_t first) const;

 private:
  struct Token {
    double bias = 0;
    bool in_text = false;  // of the prompt or drawn
    int32_t drawn = 0;     // times
  };
  bool penalise_ = false;
  double repetition_ = 1, frequency_ = 0, presence_ = 0;
  std::map<int32_t, Token> tokens_;
};

}  // namespace looplm

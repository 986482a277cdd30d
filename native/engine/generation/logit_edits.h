// The changes that LogitOptions make to a row's logits before its next draw: one entry per token with a bias or a penalty.
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
  // first: index of the first logit of the row.
  void append_to(std::vector<LoopLogitEdit>& edits, int64_t first) const;

 private:
  struct Token {
    double bias = 0;
    bool in_text = false;  // in the prompt or drawn
    int32_t drawn = 0;     // how many times
  };
  bool penalise_ = false;
  double repetition_ = 1, frequency_ = 0, presence_ = 0;
  std::map<int32_t, Token> tokens_;
};

}  // namespace looplm

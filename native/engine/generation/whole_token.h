// Decoding a single token with all its loops in one call of the backend.
#pragma once
#include <optional>

#include "rows.h"

namespace looplm {

class WholeToken {
 public:
  explicit WholeToken(Generation& generation) : g_(generation) {}

  // Returns the number of loops that the token took; state() then holds its register. Returns nothing, and changes nothing,
  // if the backend cannot do it for this token.
  std::optional<int> run(const ActiveToken& token);
  void* state() { return state_.as<>(); }  // act [D]

 private:
  bool allows(const ActiveToken& token, std::vector<LoopDecodeLayer>& layers) const;

  Generation& g_;
  Buffer state_, exit_loop_;  // act [D], int32
};

}  // namespace looplm

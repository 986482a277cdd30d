// One token alone: all its loops in one call of the backend.
#pragma once
#include <optional>

#include "rows.h"

namespace looplm {

class WholeToken {
 public:
  explicit WholeToken(Generation& generation) : g_(generation) {}

  // The loops that a fresh token took, behind which `state` holds its register. Nothing when the backend has no such call for it:
  // then nothing has happened.
  std::optional<int> run(const ActiveToken& token);
  void* state() { return state_.as<>(); }  // act [D]

 private:
  bool allows(const ActiveToken& token, std::vector<LoopDecodeLayer>& layers) const;

  Generation& g_;
  Buffer state_, exit_loop_;  // act [D], int32
};

}  // namespace looplm

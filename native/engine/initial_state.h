// Initial states of architectures whose program has `state` steps (docs/families.md, "States"). A state depends on the seed, the
// tokens up to its position, and the channel, but never on the batch. Scoring, training and generation all draw them here.
#pragma once
#include <cstdint>

#include "architecture.h"

namespace looplm {

bool begins_with_state(const Architecture& architecture);

// A hash of the tokens of a sequence up to a position.
class StateKey {
 public:
  void append(int32_t token);
  // The state at the position of the last appended token, [hidden].
  void draw(const Architecture& architecture, uint64_t seed, double* out) const;

 private:
  uint64_t key_ = 0;
};

}  // namespace looplm

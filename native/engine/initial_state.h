// Initial states of architectures whose program has `state` steps (families.md §8): of every position a function of the seed, the
// tokens up to it and the channel, never of the batch. Scores, training and generation draw them by this one rule.
#pragma once
#include <cstdint>

#include "architecture.h"

namespace looplm {

bool begins_with_state(const Architecture& architecture);

// Stands for the tokens of a sequence up to a position.
class StateKey {
 public:
  void append(int32_t token);
  // The state of the position of the last token, [hidden].
  void draw(const Architecture& architecture, uint64_t seed, double* out) const;

 private:
  uint64_t key_ = 0;
};

}  // namespace looplm

// Token sequences as callers pass them.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace looplm {

// Vectors that replace the embeddings of some tokens.
struct InputVectors {
  std::vector<int64_t> tokens;  // token indices over all sequences; ascending
  std::vector<double> values;   // [tokens, D]
  int64_t count() const { return int64_t(tokens.size()); }
  bool operator==(const InputVectors&) const = default;
  // The number of leading tokens for which both have the same vectors at the same places.
  int64_t common(const InputVectors& other) const;
};

// Sequences one after the other. The response of sequence i starts at token prompt_lengths[i], at least 1, because nothing
// predicts the first token.
struct Sequences {
  std::vector<int32_t> tokens;
  std::vector<int64_t> offsets;         // count + 1
  std::vector<int32_t> prompt_lengths;  // empty: 1 each
  // Initial states, for architectures that start from one: given as [tokens, D], or drawn from (seed, the tokens up to this
  // one, channel), so they are the same in every batch.
  std::vector<double> states;
  uint64_t state_seed = 0;
  bool zero_states = false;
  InputVectors vectors;
  // len-1 per sequence: the loop, counted from 0, after which the token's prediction was read. Deeper loops keep the keys and
  // values of response tokens that exited early (exit_replay.h). Empty: every token runs all loops.
  std::vector<int32_t> exits;
  size_t count() const { return offsets.empty() ? 0 : offsets.size() - 1; }
  int64_t length(size_t i) const { return offsets[i + 1] - offsets[i]; }
  int64_t prompt(size_t i) const { return prompt_lengths.empty() ? 1 : prompt_lengths[i]; }
};

// The loops of an operation, counted from 1 (see LoopPlan in stack_layout.h).
struct LoopOptions {
  int run = 0;                          // 0: as many as the model's configuration
  std::vector<int32_t> read;            // ascending; empty: every loop. Loops after the last one that is read do not run
  int backward = 0;                     // how many of the last loops carry gradient; 0: all
  std::vector<int32_t> constant_steps;  // per loop: how many of its first steps carry no gradient; empty: 0
};

// What training keeps of its forward pass: everything, the state after each loop, or the state before each layer. The
// backward pass recomputes the rest.
enum class Recompute { none, loop, layer };

}  // namespace looplm

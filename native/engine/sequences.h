// Token sequences as callers hand them over.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace looplm {

// Vectors that stand in place of embedded tokens.
struct InputVectors {
  std::vector<int64_t> tokens;  // which, of all sequences' tokens; ascending
  std::vector<double> values;   // [tokens, D]
  int64_t count() const { return int64_t(tokens.size()); }
  bool operator==(const InputVectors&) const = default;
  // So many tokens have the same vectors, or none, in both.
  int64_t common(const InputVectors& other) const;
};

// Sequences back to back. Response tokens are those from prompt_lengths[i] on (at least 1: the first token has no prediction).
struct Sequences {
  std::vector<int32_t> tokens;
  std::vector<int64_t> offsets;         // count + 1
  std::vector<int32_t> prompt_lengths;  // empty: 1 each
  // Of architectures that begin with a state: given, [tokens, D], or drawn from (seed, the tokens up to its own, channel), which
  // is the same in every batch.
  std::vector<double> states;
  uint64_t state_seed = 0;
  bool zero_states = false;
  InputVectors vectors;
  // The loop, counted from 0, at which each token was read that predicts the next one: len-1 per sequence. Tokens of a response
  // that left early stay so for deeper loops (exit_replay.h). Empty: all loops run for every token.
  std::vector<int32_t> exits;
  size_t count() const { return offsets.empty() ? 0 : offsets.size() - 1; }
  int64_t length(size_t i) const { return offsets[i + 1] - offsets[i]; }
  int64_t prompt(size_t i) const { return prompt_lengths.empty() ? 1 : prompt_lengths[i]; }
};

// The loops of an operation, counted from 1 (stack.h, LoopPlan).
struct LoopOptions {
  int run = 0;                          // 0: the model's
  std::vector<int32_t> read;            // ascending; empty: every loop. Nothing runs behind the last of them
  int backward = 0;                     // how many of the last loops carry a gradient; 0: all
  std::vector<int32_t> constant_steps;  // per loop that runs: how many of its first steps carry no gradient; empty: 0
};

// What a training pass keeps of its forward pass: everything, the state after each loop, or the state before each layer.
enum class Recompute { none, loop, layer };

}  // namespace looplm

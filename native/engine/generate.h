// Batched decoding over a key/value cache per (loop, layer). Finished sequences leave the batch; rows that exit early leave the
// loop.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "model.h"

namespace looplm {

struct GenerateOptions {
  int max_new_tokens = 16;
  double temperature = 1;
  int top_k = 0;
  double top_p = 1, min_p = 0;
  uint64_t seed = 0;
  int loops = 0;              // 0: the model's
  double exit_threshold = 1;  // gate CDF at which a row leaves the loops; >= 1: full depth, the gate is not read
  bool shared_cache = false;  // one plane per layer instead of one per (loop, layer)
  std::vector<int32_t> stop_tokens;
};

enum class Finish { none, length, stop };

struct Generated {
  std::vector<int32_t> tokens;
  std::vector<double> logprobs;  // full vocabulary, at the sampling temperature
  std::vector<int32_t> loops;    // 1-based, the loop each token was read from
  Finish finish = Finish::none;
};

// A batch under way. Equal prompts run once and share their cache.
class Generation {
 public:
  Generation(Model& model, const std::vector<std::vector<int32_t>>& prompts, const GenerateOptions& options);
  ~Generation();
  // Makes up to `tokens` new tokens for every unfinished sequence (the first call runs the prompts). Returns false when all are
  // finished.
  bool step(int tokens);
  // Ends one sequence (a stop string was found); its last `drop` tokens are removed.
  void finish(size_t sequence, int drop);
  const std::vector<Generated>& results() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace looplm

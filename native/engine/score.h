// What a model says of given sequences, and the gradient of any function of it.
#pragma once
#include "model.h"
#include "sequences.h"

namespace looplm {

struct ScoreOptions {
  double temperature = 1;
  LoopOptions loops;
  bool last_loop = false;       // logprobs and entropy of the last loop alone: 1 × (len-1) per sequence
  bool responses_only = false;  // rows before a response read as 0 and cost nothing in the head
  bool predictions = false;     // also the most probable token of each row
  int top = 0;                  // also this many of the most probable tokens of each row of the last loop
};
struct Scores {  // per sequence, concatenated; logprobs and entropy reads × (len-1), gates and pdf reads × len, row-major by loop
  int loops = 0, reads = 0;  // that ran, and that are read
  std::vector<double> logprobs, entropy, gate_logits, exit_pdf;
  std::vector<double> predicted;  // token ids in the form of logprobs; empty unless asked for
  // (len-1) × top per sequence, concatenated, best first; token -1 where a row was not scored
  std::vector<int32_t> top_tokens;
  std::vector<double> top_logprobs;
};
Scores score(Model& model, const Sequences& sequences, const ScoreOptions& options);

// Means over the response tokens of each sequence; 0 for a sequence without.
struct ResponseMeans {
  int loops = 0;
  std::vector<double> logprobs;   // loops per sequence
  std::vector<double> exit_loop;  // one per sequence: Σ_t t p_t, 1-based
};
ResponseMeans response_means(Model& model, const Sequences& sequences, const ScoreOptions& options);

// The mean of the last loop's states over each sequence's response tokens (over all of a sequence that is prompt alone):
// hidden_size values per sequence.
std::vector<double> embed_sequences(Model& model, const Sequences& sequences, int loops);

// Accumulates the gradient of any L given ∂L/∂ℓ (reads × (len-1) per sequence) and, when not empty, ∂L/∂gate logits (reads ×
// len). Returns ∂L/∂ the sequences' input vectors, [vectors, D].
std::vector<double> backward(Model& model, const Sequences& sequences, const std::vector<double>& coefficients,
                             const std::vector<double>& gate_coefficients, const ScoreOptions& options, Recompute recompute);

}  // namespace looplm

// Log-probabilities, entropies and exit distributions of given sequences, and the gradient of any function of them.
#pragma once
#include "model.h"
#include "sequences.h"

namespace looplm {

struct ScoreOptions {
  double temperature = 1;
  LoopOptions loops;
  bool last_loop = false;       // logprobs and entropy of the last loop only: 1 × (len-1) per sequence
  bool responses_only = false;  // skips the head for rows before a response; their results are 0
  bool predictions = false;     // also returns the most probable token of each row
  int top = 0;                  // also returns this many of the most probable tokens of each row of the last loop
};
// Per sequence, concatenated: logprobs and entropy reads × (len-1), gates and pdf reads × len, row-major by loop.
struct Scores {
  int loops = 0, reads = 0;  // number of loops that ran, and that were read
  std::vector<double> logprobs, entropy, gate_logits, exit_pdf;
  std::vector<double> predicted;  // token ids in the layout of logprobs; empty unless requested
  // (len-1) × top per sequence, concatenated, most probable first; token -1 in rows that were not scored
  std::vector<int32_t> top_tokens;
  std::vector<double> top_logprobs;
};
Scores score(Model& model, const Sequences& sequences, const ScoreOptions& options);

// Means over the response tokens of each sequence; 0 if it has none.
struct ResponseMeans {
  int loops = 0;
  std::vector<double> logprobs;   // loops per sequence
  std::vector<double> exit_loop;  // one per sequence: Σ_t t p_t, 1-based
};
ResponseMeans response_means(Model& model, const Sequences& sequences, const ScoreOptions& options);

// The mean of the last loop's states over each sequence's response tokens (over all tokens if the sequence has no response):
// hidden_size values per sequence.
std::vector<double> embed_sequences(Model& model, const Sequences& sequences, int loops);

// Accumulates the parameters' gradient of any L. Pass ∂L/∂ℓ (reads × (len-1) per sequence) and optionally ∂L/∂gate logits
// (reads × len). Returns ∂L/∂ the sequences' input vectors, [vectors, D].
std::vector<double> backward(Model& model, const Sequences& sequences, const std::vector<double>& coefficients,
                             const std::vector<double>& gate_coefficients, const ScoreOptions& options, Recompute recompute);

}  // namespace looplm

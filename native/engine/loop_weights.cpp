#include "loop_weights.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "micro_batch.h"

namespace looplm {

namespace {

// Index of the one-hot loop among the loops that are read; count() if it is not read.
int one_hot(const LoopWeights& weights, const ReadLoops& loops) {
  if (weights.loop == 0) return loops.count() - 1;
  return int(std::find(loops.read.begin(), loops.read.end(), weights.loop - 1) - loops.read.begin());
}

// w ∝ p^(1/temperature), computed from log p to avoid underflow.
double tempered(const ExitTable& exits, double temperature, int k, size_t r) {
  const size_t R = size_t(exits.rows);
  if (temperature == 1) return exits.pdf[size_t(k) * R + r];
  double largest = -std::numeric_limits<double>::infinity(), total = 0;
  const auto log_p = [&](int t) { return exits.log_pdf[size_t(t) * R + r] / temperature; };
  for (int t = 0; t < exits.loops; t++) largest = std::max(largest, log_p(t));
  for (int t = 0; t < exits.loops; t++) total += std::exp(log_p(t) - largest);
  return std::exp(log_p(k) - largest) / total;
}

}  // namespace

bool weighs(const LoopWeights& weights, const ReadLoops& loops, int k) {
  if (weights.kind == LoopWeighting::given) return weights.given[size_t(k)] != 0;
  return weights.kind != LoopWeighting::one_hot || one_hot(weights, loops) == k;
}

bool names_loops(const LoopWeights& weights, const ReadLoops& loops) {
  if (weights.kind == LoopWeighting::given) return int(weights.given.size()) == loops.count();
  return weights.kind != LoopWeighting::one_hot || one_hot(weights, loops) < loops.count();
}

std::vector<double> loop_weights(const LoopWeights& weights, const ReadLoops& loops, const ExitTable& exits,
                                 const std::vector<int32_t>& exit_loops) {
  const size_t R = size_t(exits.rows);
  double powers = 0;
  for (int t : loops.read) powers += std::pow(double(t + 1), weights.alpha);
  std::vector<double> w;
  for (int k : loops.scored)
    for (size_t r = 0; r < R; r++) switch (weights.kind) {
        case LoopWeighting::exit_pdf:
          w.push_back(tempered(exits, weights.temperature, k, r));
          break;
        case LoopWeighting::uniform:
          w.push_back(1.0 / loops.count());
          break;
        case LoopWeighting::progressive:
          w.push_back(std::pow(double(loops.read[size_t(k)] + 1), weights.alpha) / powers);
          break;
        case LoopWeighting::one_hot:
          w.push_back(one_hot(weights, loops) == k);
          break;
        case LoopWeighting::given:
          w.push_back(weights.given[size_t(k)]);
          break;
        case LoopWeighting::exit_loop:
          w.push_back(exit_loops[r] == k);
          break;
      }
  return w;
}

}  // namespace looplm

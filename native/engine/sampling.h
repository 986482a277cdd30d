// Draws one token from a row of logits. Shared by the backends that run on the host.
//
// Filters apply in the order of Hugging Face transformers: temperature, top-k, top-p, min-p.
//   top-k  keeps the k largest logits, and what ties with the k-th
//   top-p  keeps the smallest set of the most probable survivors whose share of them reaches p (the lower index first in a tie),
//   at least one min-p  keeps probabilities of at least min_p times the largest
// The draw is by inverse CDF over the kept tokens in index order. The log-probability is that of the whole vocabulary at the
// temperature (at temperature 1 when greedy), so that it can be compared with what training computes.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

namespace looplm {

struct SampleOptions {
  double temperature = 1;  // 0: greedy, the lowest index wins a tie
  int64_t top_k = 0;       // 0: off
  double top_p = 1;        // 1: off
  double min_p = 0;        // 0: off
};

template <class Real>
struct SampledToken {
  int32_t token;
  Real logprob;
};

// Memory that is reused from row to row.
template <class Real>
struct SampleScratch {
  std::vector<Real> weights;   // exp((logit - largest) / temperature), 0 when filtered out
  std::vector<Real> selected;  // top-k's copy of the logits
  std::vector<int32_t> heap;   // top-p's candidates
};

template <class Real>
void keep_top_k(const Real* logits, int64_t k, SampleScratch<Real>& scratch) {
  const int64_t vocabulary = int64_t(scratch.weights.size());
  if (k <= 0 || k >= vocabulary) return;
  auto& selected = scratch.selected;
  selected.assign(logits, logits + vocabulary);
  std::nth_element(selected.begin(), selected.begin() + (k - 1), selected.end(), std::greater<Real>());
  const Real smallest = selected[size_t(k - 1)];
  for (int64_t v = 0; v < vocabulary; ++v)
    if (logits[v] < smallest) scratch.weights[size_t(v)] = 0;
}

template <class Real>
void keep_top_p(double p, SampleScratch<Real>& scratch) {
  if (p >= 1) return;
  auto& weights = scratch.weights;
  auto& heap = scratch.heap;
  heap.clear();
  double total = 0;
  for (size_t v = 0; v < weights.size(); ++v)
    if (weights[v] > 0) {
      heap.push_back(int32_t(v));
      total += weights[v];
    }
  const auto less_likely = [&](int32_t a, int32_t b) {
    return weights[size_t(a)] < weights[size_t(b)] || (weights[size_t(a)] == weights[size_t(b)] && a > b);
  };
  std::make_heap(heap.begin(), heap.end(), less_likely);
  double cumulative = 0;
  do {  // the nucleus is usually small: popping it costs less than sorting the vocabulary
    if (heap.empty()) return;
    cumulative += weights[size_t(heap.front())];
    std::pop_heap(heap.begin(), heap.end(), less_likely);
    heap.pop_back();
  } while (cumulative < p * total);
  for (int32_t v : heap) weights[size_t(v)] = 0;
}

template <class Real>
void keep_min_p(double min_p, SampleScratch<Real>& scratch) {
  if (min_p <= 0) return;
  for (Real& weight : scratch.weights)  // the largest weight is exp(0) = 1 and always survives
    if (weight < std::min(min_p, 1.0)) weight = 0;
}

// The first token whose cumulative weight exceeds uniform · Σ weights.
template <class Real>
int32_t draw(const std::vector<Real>& weights, double uniform) {
  double total = 0;
  for (Real weight : weights) total += weight;
  double cumulative = 0;
  int32_t last = 0;
  for (size_t v = 0; v < weights.size(); ++v) {
    if (!(weights[v] > 0)) continue;
    cumulative += weights[v];
    last = int32_t(v);
    if (cumulative > uniform * total) break;
  }
  return last;
}

template <class Real>
SampledToken<Real> sample_row(const Real* logits, int64_t vocabulary, const SampleOptions& options, double uniform,
                              SampleScratch<Real>& scratch) {
  const int64_t best = std::max_element(logits, logits + vocabulary) - logits;
  const Real largest = logits[best];
  const bool greedy = options.temperature == 0;
  const Real temperature = greedy ? Real(1) : Real(options.temperature);

  auto& weights = scratch.weights;
  weights.resize(size_t(vocabulary));
  for (int64_t v = 0; v < vocabulary; ++v) weights[size_t(v)] = std::exp((logits[v] - largest) / temperature);
  double total = 0;
  for (Real weight : weights) total += weight;

  int32_t token = int32_t(best);
  if (!greedy) {
    keep_top_k(logits, options.top_k, scratch);
    keep_top_p(options.top_p, scratch);
    keep_min_p(options.min_p, scratch);
    token = draw(weights, uniform);
  }
  return {token, Real(double((logits[token] - largest) / temperature) - std::log(total))};
}

}  // namespace looplm

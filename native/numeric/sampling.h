// Draws one token from a row of logits, as the reference does. cpu/sample.cpp and cuda/sample.cu follow the same rules with other
// algorithms.
//
// Filters apply in the order of Hugging Face transformers: temperature, top-k, top-p, min-p.
//   top-k  keeps the k largest logits, and any that tie with the k-th
//   top-p  keeps the smallest set of most probable remaining tokens with at least p of their total probability; at least one
//          token, and the lower index first in a tie
//   min-p  keeps tokens with at least min_p times the largest probability
// The draw is by inverse CDF over the kept tokens in index order. The log-probability is over the full vocabulary at the
// temperature (at temperature 1 if greedy), so it can be compared with the one in training.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

namespace looplm {

// The edit of LoopLogitEdit in backend.h.
template <class Real>
Real edited_logit(Real logit, double bias, double repetition, double penalty) {
  const double biased = double(logit) + bias;
  return Real((biased > 0 ? biased / repetition : biased * repetition) - penalty);
}

struct SampleOptions {
  double temperature = 1;  // 0: greedy, where the lowest index wins a tie
  int64_t top_k = 0;       // 0: off
  double top_p = 1;        // 1: off
  double min_p = 0;        // 0: off
};

template <class Real>
struct SampledToken {
  int32_t token;
  Real logprob;
};

// Scratch memory, reused from row to row.
template <class Real>
struct SampleScratch {
  std::vector<Real> weights;   // exp((logit - largest) / temperature); 0 if filtered out
  std::vector<Real> selected;  // copy of the logits for top-k
  std::vector<int32_t> heap;   // candidates of top-p
  std::vector<int32_t> kept;   // tokens that top-p kept, in index order; empty: all with a positive weight
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
double sum_of(const std::vector<Real>& values) {
  double part[8] = {};  // independent sums, so that no addition waits for the one before
  size_t v = 0;
  for (; v + 8 <= values.size(); v += 8)
    for (size_t i = 0; i < 8; ++i) part[i] += values[v + i];
  for (; v < values.size(); ++v) part[0] += values[v];
  return ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
}

// The nucleus is usually small. Collects the tokens above some weight in a heap, and lowers that weight until the heap
// certainly contains the nucleus.
template <class Real>
void keep_top_p(double p, SampleScratch<Real>& scratch) {
  if (p >= 1) return;
  auto& weights = scratch.weights;
  auto& heap = scratch.heap;
  const double wanted = p * sum_of(weights);
  for (const double least : {0x1p-6, 0x1p-12, 0x1p-20, 0.0}) {  // relative to the largest weight, which is 1
    heap.clear();
    double mass = 0;
    for (size_t v = 0; v < weights.size(); ++v)
      if (weights[v] >= Real(least) && weights[v] > 0) {
        heap.push_back(int32_t(v));
        mass += weights[v];
      }
    if (mass > wanted * (1 + 1e-9)) break;  // with a margin above rounding errors
  }
  const auto less_likely = [&](int32_t a, int32_t b) {
    return weights[size_t(a)] < weights[size_t(b)] || (weights[size_t(a)] == weights[size_t(b)] && a > b);
  };
  std::make_heap(heap.begin(), heap.end(), less_likely);
  double cumulative = 0;
  do {
    cumulative += weights[size_t(heap.front())];
    scratch.kept.push_back(heap.front());
    std::pop_heap(heap.begin(), heap.end(), less_likely);
    heap.pop_back();
  } while (cumulative < wanted && !heap.empty());
  std::sort(scratch.kept.begin(), scratch.kept.end());
}

template <class Real>
void keep_min_p(double min_p, SampleScratch<Real>& scratch) {
  if (min_p <= 0) return;
  for (Real& weight : scratch.weights)  // the largest weight is exp(0) = 1, so it always survives
    if (weight < std::min(min_p, 1.0)) weight = 0;
}

// The first kept token at which the cumulative weight exceeds uniform · Σ kept weights.
template <class Real>
int32_t draw(const SampleScratch<Real>& scratch, double uniform) {
  const std::vector<Real>& weights = scratch.weights;
  const bool few = !scratch.kept.empty();
  const size_t count = few ? scratch.kept.size() : weights.size();
  const auto token = [&](size_t i) { return few ? scratch.kept[i] : int32_t(i); };
  double total = 0;
  for (size_t i = 0; i < count; ++i) total += weights[size_t(token(i))];
  double cumulative = 0;
  int32_t last = 0;
  for (size_t i = 0; i < count; ++i) {
    const Real weight = weights[size_t(token(i))];
    if (!(weight > 0)) continue;
    cumulative += weight;
    last = token(i);
    if (cumulative > uniform * total) break;
  }
  return last;
}

// Applies the filters and draws; scratch.weights must be filled in.
template <class Real>
int32_t draw_kept(const Real* logits, const SampleOptions& options, double uniform, SampleScratch<Real>& scratch) {
  scratch.kept.clear();
  keep_top_k(logits, options.top_k, scratch);
  keep_top_p(options.top_p, scratch);
  keep_min_p(options.min_p, scratch);
  return draw(scratch, uniform);
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
  if (!greedy && total == total)  // NaN: nothing can be drawn
    token = draw_kept(logits, options, uniform, scratch);
  return {token, Real(double((logits[token] - largest) / temperature) - std::log(total))};
}

}  // namespace looplm

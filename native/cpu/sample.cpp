// Draws one token from each row of logits (rules: numeric/sampling.h). The filters search for the threshold that keeps the
// right tokens. A pass over a row, which is in cache, costs less than sorting even a small part of it.
#include <math.h>

#include "filtered.h"
#include "softmax.h"

namespace looplm::cpu::LOOPLM_ISA {

namespace {

// The first token at which the cumulative weight exceeds number · total. Searches by spans, then within one. weights [n].
int32_t draw(const float* weights, int64_t n, double total, double number) {
  constexpr int64_t SPAN = 4 * W;
  const double threshold = number * total;
  double below = 0;
  for (int64_t begin = 0; begin < n; begin += SPAN) {
    const int64_t end = begin + SPAN < n ? begin + SPAN : n;
    Sums span;
    for_vectors(
        end - begin, LOOPLM_VECTORS(j, part, chain) { span.chain[chain] += load(weights + begin + j, part); });
    const double through = below + double(span.total());
    if (through > threshold)
      for (int64_t i = begin; i < end; i++) {
        below += double(weights[i]);
        if (weights[i] > 0 && below > threshold) return int32_t(i);
      }
    below = through;
  }
  while (n > 1 && !(weights[n - 1] > 0))
    n--;  // the sum was rounded below the threshold: take the last token with a positive
          // weight
  return int32_t(n - 1);
}

// The lowest index of `value`, which must occur in x.
int32_t find_first(const float* x, int64_t n, float value) {
  int64_t i = 0;
  for (; i + W <= n; i += W)
    if (maximum((vf)((load(x + i) == splat(value)) & (vi)splat(1.0f))) > 0) break;
  while (i < n - 1 && x[i] != value) i++;
  return int32_t(i);
}

// Maps floats to integers in the same order. Bisecting these finds any threshold in at most 32 steps.
inline int32_t order_of(float x) {
  int32_t bits;
  memcpy(&bits, &x, 4);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}
inline float float_at(int32_t order) {
  order ^= (order >> 31) & 0x7fffffff;
  float x;
  memcpy(&x, &order, 4);
  return x;
}

struct Above {
  float mass;
  int64_t count;
};
// Sum and number of the elements >= least. The sum is in float32, so it is approximate.
template <bool Mass>
Above above(const float* x, int64_t n, float least) {
  const vf bound = splat(least), lowest = splat(-__builtin_inff());
  Sums mass;
  vi counts[4] = {};
  for_vectors(
      n, LOOPLM_VECTORS(j, part, chain) {
        const vf value = keep(load(x + j, part), lowest, part);
        const vi there = value >= bound;
        if constexpr (Mass) mass.chain[chain] += (vf)((vi)value & there);
        counts[chain] -= there;
      });
  const vi lanes = (counts[0] + counts[1]) + (counts[2] + counts[3]);
  int64_t count = 0;
  for (int i = 0; i < W; i++) count += lanes[i];
  return {Mass ? mass.total() : 0, count};
}

// Σ of the weights >= least, with double precision.
double mass_above(const float* weights, int64_t n, float least) {
  constexpr int HALF = W / 2, CHAINS = 4;
  typedef float halves __attribute__((vector_size(HALF * 4)));
  typedef int32_t masks __attribute__((vector_size(HALF * 4)));
  typedef double doubles __attribute__((vector_size(HALF * 8)));
  const halves bound = least - halves{};
  doubles part[CHAINS] = {};
  int64_t j = 0;
  for (; j + CHAINS * HALF <= n; j += CHAINS * HALF)
    for (int i = 0; i < CHAINS; i++) {
      halves x;
      memcpy(&x, weights + j + i * HALF, sizeof x);
      part[i] += __builtin_convertvector((halves)((masks)x & (x >= bound)), doubles);
    }
  const doubles lanes = (part[0] + part[1]) + (part[2] + part[3]);
  double total = 0;
  for (int i = 0; i < HALF; i++) total += lanes[i];
  for (; j < n; j++) total += double(weights[j] >= least ? weights[j] : 0.0f);
  return total;
}

// A threshold that exactly the k largest elements reach, plus those that tie with the k-th.
float least_of_top_k(const float* x, int64_t n, int64_t k, float largest) {
  // at least k elements reach `low`, fewer reach `high`
  int64_t low = order_of(-__builtin_inff()), high = int64_t(order_of(largest)) + 1;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2, count = above<false>(x, n, float_at(int32_t(middle))).count;
    (count >= k ? low : high) = middle;
    if (count == k) break;
  }
  return float_at(int32_t(low));
}

// weights: in (0, 1] or 0; one of them is 1.
NucleusEnd nucleus(const float* weights, int64_t n, double p, int32_t* candidates) {
  constexpr int64_t FEW = 256;
  const int32_t lowest = 1, highest = order_of(1.0f) + 1;
  const double wanted = p * mass_above(weights, n, 0);
  int32_t low = lowest, high = highest;  // weights >= low have enough mass, weights >= high do not
  int64_t reach_low = n, reach_high = 0;
  while (high - low > 1 && reach_low - reach_high > FEW) {
    const int32_t middle = low + (high - low) / 2;
    const Above all = above<true>(weights, n, float_at(middle));
    const bool enough = double(all.mass) >= wanted;
    (enough ? low : high) = middle;
    (enough ? reach_low : reach_high) = all.count;
  }
  // The bisection used approximate sums; check its result with precise ones.
  double certain = mass_above(weights, n, float_at(high));
  if (!(certain < wanted)) high = highest, certain = 0;
  if (mass_above(weights, n, float_at(low)) < wanted) low = lowest;
  const float from = float_at(low), to = float_at(high);
  int64_t count = 0;
  for (int64_t begin = 0; begin < n; begin += 4 * W) {
    const int64_t end = begin + 4 * W < n ? begin + 4 * W : n;
    vf found = {};
    for_vectors(
        end - begin, LOOPLM_VECTORS(j, part, chain) {
          const vf weight = load(weights + begin + j, part);
          found = vmax(found, (vf)((weight >= splat(from)) & (weight < splat(to)) & (vi)splat(1.0f)));
        });
    if (!(maximum(found) > 0)) continue;
    for (int64_t i = begin; i < end; i++)
      if (weights[i] >= from && weights[i] < to) candidates[count++] = int32_t(i);
  }
  return end_of_nucleus(weights, candidates, count, certain, wanted);
}

// Sets the weights of dropped tokens to 0.
void filter(const LoopSample& s, const float* logits, float largest, float* weights, int32_t* candidates) {
  const int64_t n = s.vocabulary;
  if (s.top_k > 0 && s.top_k < n) {
    const vf least = splat(least_of_top_k(logits, n, s.top_k, largest));
    for_vectors(
        n, LOOPLM_VECTORS(j, part, chain) {
          store(weights + j, (vf)((vi)load(weights + j, part) & (load(logits + j, part) >= least)), part);
        });
  }
  NucleusEnd end = {0, int32_t(n) - 1};
  if (s.top_p < 1) end = nucleus(weights, n, s.top_p, candidates);
  const vf least = splat(end.least), smallest = splat(s.min_p < 1 ? float(s.min_p) : 1.0f);
  const auto drop = [&](int64_t begin, int64_t count, vi equal) {
    for_vectors(
        count, LOOPLM_VECTORS(j, part, chain) {
          const vf weight = load(weights + begin + j, part);
          const vi kept = ((weight > least) | ((weight == least) & equal)) & (weight >= smallest);
          store(weights + begin + j, (vf)((vi)weight & kept), part);
        });
  };
  drop(0, end.last + 1, vi{} - 1);
  drop(end.last + 1, n - end.last - 1, vi{});
}

void sample_row(const LoopSample& s, int64_t row, float* weights, int32_t* candidates) {
  const int64_t n = s.vocabulary;
  const float* logits = static_cast<const float*>(s.logits) + row * n;
  const bool greedy = s.temperature == 0, filtered = s.top_k > 0 || s.top_p < 1 || s.min_p > 0;
  const double temperature = greedy ? 1 : s.temperature;
  const float largest = row_maximum(logits, n), inverse_temperature = float(1 / temperature);
  float total;
  int32_t token;
  if (greedy) {
    total = exp_sums<false, false>(logits, n, largest, inverse_temperature, nullptr).sum;
    token = find_first(logits, n, largest);
  } else {
    total = exp_sums<true, false>(logits, n, largest, inverse_temperature, weights).sum;
    const double number = draw_number(s.seed, s.sequences[row], s.positions[row]);
    if (filtered && total == total) filter(s, logits, largest, weights, candidates);  // NaN: no weight is the largest
    token = draw(weights, n, filtered ? mass_above(weights, n, 0) : double(total), number);
  }
  s.tokens[row] = token;
  static_cast<float*>(s.logprobs)[row] = float((double(logits[token]) - double(largest)) / temperature - log(double(total)));
}

}  // namespace

int sample(void* context, LoopDType, const LoopSample* s) {
  auto& ctx = *static_cast<Context*>(context);
  for_rows(ctx, s->rows, 2 * s->vocabulary, [&](int64_t begin, int64_t end, int thread) {
    auto* weights = static_cast<float*>(ctx.pool.scratch(thread, size_t(s->vocabulary) * (sizeof(float) + sizeof(int32_t))));
    for (int64_t i = begin; i < end; i++) sample_row(*s, i, weights, reinterpret_cast<int32_t*>(weights + s->vocabulary));
  });
  return 0;
}

}  // namespace looplm::cpu::LOOPLM_ISA

// Draws one token per row as native/engine/sampling.h describes it, without sorting: the filters' thresholds are searched for bit
// by bit, the draw by halving the range of indices. A block per row; a thread reads and writes the same elements throughout, so
// that only sums need barriers. Counts and sums have a fixed order: a draw does not depend on the batch.
#include "context.h"
#include "philox.h"
#include "vector.h"

namespace looplm::cuda {
namespace {

struct Sample {
  int64_t vocabulary;
  float* logits;
  float temperature;
  int32_t top_k;
  double top_p, min_p;
  uint64_t seed;
  const int32_t *sequences, *positions;
  int32_t* tokens;
  float* logprobs;
};

// f(v) for this thread's indices in [begin, end).
template <class F>
__device__ __forceinline__ void for_range(int64_t begin, int64_t end, F f) {
  const int64_t threads = blockDim.x, first = begin / threads * threads + threadIdx.x;
  for (int64_t v = first < begin ? first + threads : first; v < end; v += threads) f(v);
}
// Σ f(v) over [begin, end), the same for all threads.
template <class Sum, class F>
__device__ __forceinline__ Sum sum_range(int64_t begin, int64_t end, Shared<Sum> scratch, F f) {
  Sum sum = 0;
  for_range(begin, end, [&](int64_t v) { sum += f(v); });
  return block_sum(sum, scratch);
}

// Floats as integers of the same order; both zeros are one number.
__device__ __forceinline__ uint32_t order_of(float x) {
  const uint32_t bits = __float_as_uint(x + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The largest threshold whose measure reaches `least`; measure(threshold) falls as the threshold rises, and that of 0 reaches it.
template <class Measure, class Sum>
__device__ __forceinline__ uint32_t largest_threshold(Sum least, Measure measure) {
  uint32_t threshold = 0;
  for (uint32_t bit = 0x80000000u; bit; bit >>= 1)
    if (measure(threshold | bit) >= least) threshold |= bit;
  return threshold;
}

// The first index at which the running sum of f exceeds `least`, or `count`.
template <class Sum, class F>
__device__ __forceinline__ int64_t first_above(Sum least, int64_t count, Shared<Sum> scratch, F f) {
  if (!(sum_range<Sum>(0, count, scratch, f) > least)) return count;
  int64_t begin = 0, end = count;
  for (Sum before = 0; end - begin > 1;) {
    const int64_t middle = begin + (end - begin) / 2;
    const Sum sum = before + sum_range<Sum>(begin, middle, scratch, f);
    if (sum > least) {
      end = middle;
    } else {
      begin = middle;
      before = sum;
    }
  }
  return begin;
}

__global__ void sample_kernel(Sample s) {
  SHARED_ARRAY(double, sums, 32);
  SHARED_ARRAY(int, counts, 32);
  SHARED_ARRAY(float, largest_of, 32);
  const int64_t row = blockIdx.x, V = s.vocabulary;
  float* x = s.logits + row * V;
  float largest = -INFINITY;
  for_range(0, V, [&](int64_t v) { largest = fmaxf(largest, x[v]); });
  largest = block_max(largest, largest_of);
  int from_end = 0;  // of the first index that has it
  for_range(0, V, [&](int64_t v) {
    if (x[v] == largest && int(V - v) > from_end) from_end = int(V - v);
  });
  int64_t token = V - block_max(from_end, counts);
  if (token == V) token = 0;  // only NaN

  const bool greedy = s.temperature == 0;
  const float temperature = greedy ? 1.0f : s.temperature, chosen_logit = x[token];
  const auto weight_of = [&](float logit) { return expf((logit - largest) / temperature); };
  const double total = sum_range<double>(0, V, sums, [&](int64_t v) { return double(weight_of(x[v])); });
  if (greedy) {
    if (threadIdx.x == 0) {
      s.tokens[row] = int32_t(token);
      s.logprobs[row] = float(double((chosen_logit - largest) / temperature) - log(total));
    }
    return;
  }

  uint32_t lowest = 0;
  if (s.top_k > 0 && s.top_k < V)
    lowest = largest_threshold(int(s.top_k), [&](uint32_t threshold) {
      return sum_range<int>(0, V, counts, [&](int64_t v) { return int(order_of(x[v]) >= threshold); });
    });
  for_range(0, V, [&](int64_t v) { x[v] = order_of(x[v]) >= lowest ? weight_of(x[v]) : 0.0f; });
  const auto weight = [&](int64_t v) { return double(x[v]); };

  if (s.top_p < 1) {  // weights are not negative: their bits have their order
    const double reach = s.top_p * sum_range<double>(0, V, sums, weight), least = reach > 0 ? reach : 1e-300;
    const auto at_least = [&](uint32_t bits) {
      return sum_range<double>(0, V, sums, [&](int64_t v) { return __float_as_uint(x[v]) >= bits ? double(x[v]) : 0.0; });
    };
    const uint32_t edge = largest_threshold(least, at_least);
    // Of the weights at the edge, only as many as are needed, the lower indices first.
    const auto is_edge = [&](int64_t v) { return int(__float_as_uint(x[v]) == edge); };
    const double missing = (least - at_least(edge + 1)) / double(__uint_as_float(edge));
    const int needed = missing > 1 ? int(ceil(missing < double(V) ? missing : double(V))) : 1;
    const int64_t last = first_above<int>(needed - 1, V, counts, is_edge);
    for_range(0, V, [&](int64_t v) {
      if (__float_as_uint(x[v]) < edge || (is_edge(v) && v > last)) x[v] = 0;
    });
  }
  if (s.min_p > 0) {  // the largest weight is 1
    const double least = s.min_p < 1 ? s.min_p : 1;
    for_range(0, V, [&](int64_t v) {
      if (double(x[v]) < least) x[v] = 0;
    });
  }

  const double u = philox_uniform(s.seed, uint32_t(s.sequences[row]), uint32_t(s.positions[row]));
  const double kept = sum_range<double>(0, V, sums, weight);
  token = first_above<double>(u * kept, V, sums, weight);
  if (token == V) {  // u is so close to 1 that rounding passed the end: the last one kept
    int last = 0;
    for_range(0, V, [&](int64_t v) {
      if (x[v] > 0) last = int(v);
    });
    token = block_max(last, counts);
  }
  if (token % blockDim.x == threadIdx.x) {
    s.tokens[row] = int32_t(token);
    s.logprobs[row] = float(log(double(x[token])) - log(total));
  }
}

int sample(void* ctx, LoopDType dt, const LoopSample* s) {
  return with_dtype(ctx, "sample", dt, [&](Context& c, auto) {
    const Sample a{s->vocabulary,
                   static_cast<float*>(const_cast<void*>(s->logits)),
                   float(s->temperature),
                   s->top_k,
                   s->top_p,
                   s->min_p,
                   s->seed,
                   s->sequences,
                   s->positions,
                   s->tokens,
                   static_cast<float*>(s->logprobs)};
    return check(
        c, launch(sample_kernel, dim3(unsigned(s->rows)), dim3(unsigned(row_threads(s->vocabulary, 1, 1024))), 0, c.stream, a),
        "sample");
  });
}

}  // namespace

void add_sample(LoopBackend& table) { table.sample = sample; }

}  // namespace looplm::cuda

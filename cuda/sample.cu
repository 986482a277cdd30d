// Draws one token per row as native/numeric/sampling.h describes it, without sorting. The filters find their thresholds by
// bisecting the range of bit patterns. The draw descends from warps to lanes to elements. One block per row, in shared memory
// if the row fits. A warp has consecutive elements, and a thread always accesses the same ones, so only sums need barriers.
// Counts and sums have a fixed order, so a draw does not depend on the batch.
#include "context.h"
#include "philox.h"
#include "vector.h"

namespace looplm::cuda {
namespace {

struct Sample {
  int vocabulary;
  int chunk;     // elements per warp, a multiple of 128
  bool aligned;  // rows can be read 16 bytes at a time
  float* logits;
  float temperature;
  int32_t top_k;
  double top_p, min_p;
  uint64_t seed;
  const int32_t *sequences, *positions;
  int32_t* tokens;
  float* logprobs;
};

// A row, read four elements at a time. After its end it is padded with `outside` up to the end of the last warp.
template <bool in_shared>
struct Row;
template <>
struct Row<true> {
  Shared<float> x;
  __device__ void get(int j, float (&v)[4]) const { read_shared<float>(x + j, v); }
  __device__ void put(int j, const float (&v)[4]) const { write_shared<float>(x + j, v); }
  __device__ float at(int j) const { return x[j]; }
};
template <>
struct Row<false> {
  float* x;
  int vocabulary;
  bool aligned;
  float outside;
  __device__ void get(int j, float (&v)[4]) const {
    if (aligned && j < vocabulary) return read<4>(x + j, v);
#pragma unroll
    for (int k = 0; k < 4; k++) v[k] = j + k < vocabulary ? x[j + k] : outside;
  }
  __device__ void put(int j, const float (&v)[4]) const {
#pragma unroll
    for (int k = 0; k < 4; k++)
      if (j + k < vocabulary) x[j + k] = v[k];
  }
  __device__ float at(int j) const { return x[j]; }
};

// Calls f(j, v) with this thread's elements v = [j, j + 4).
template <class R, class F>
__device__ __forceinline__ void for_own(const R& row, int chunk, F f) {
  const int begin = warp_id() * chunk, end = begin + chunk;
  float v[4];
  for (int j = begin + lane_id() * 4; j < end; j += 128) {
    row.get(j, v);
    f(j, v);
  }
}

// Shared memory for values that the warps of a block exchange: one entry per warp.
struct Exchange {
  Shared<double> sums, totals;
  Shared<unsigned> counts;
  Shared<int> chosen;  // [1]
};

// Writes each warp's sum of `own` to `sums`, visible to all threads.
__device__ __forceinline__ void share_sums(double own, Shared<double> sums) {
  own = warp_sum(own);
  __syncthreads();  // the old values have been read
  if (lane_id() == 0) sums[warp_id()] = own;
  __syncthreads();
}
template <class T>
__device__ __forceinline__ T sum_of(Shared<T> entries) {
  T entry = 0;
  if (lane_id() < int(blockDim.x / 32)) entry = entries[lane_id()];
  return warp_sum(entry);
}

// Maps floats to integers in the same order; both zeros map to the same number.
__device__ __forceinline__ uint32_t order_of(float x) {
  const uint32_t bits = __float_as_uint(x + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Descending from the largest element, where the sum of weights reaches `least`: the order of that element, the sum of the
// weights above it, and the number of elements with its order.
struct Edge {
  uint32_t order;
  double above;
  unsigned count;
};
// All orders are below `end`. Bisects the range that contains the edge until one element or one order is left. For tens of
// thousands of elements that takes less than twenty passes.
template <class R, class Order, class Weight>
__device__ __forceinline__ Edge edge_of(const R& row, int chunk, uint32_t end, double least, const Exchange& e, Order order,
                                        Weight weight) {
  uint32_t low = 0, high = end;
  double above = 0;
  unsigned inside = unsigned(chunk) * (blockDim.x / 32);
  while (high - low > 1 && inside > 1) {
    const uint32_t middle = low + (high - low) / 2, width = high - middle;
    double sum = 0;
    unsigned count = 0;
    for_own(row, chunk, [&](int, const float(&v)[4]) {
#pragma unroll
      for (int k = 0; k < 4; k++)
        if (order(v[k]) - middle < width) sum += weight(v[k]), count++;
    });
    sum = warp_sum(sum), count = warp_sum(count);
    __syncthreads();  // the values of the last pass have been read
    if (lane_id() == 0) e.sums[warp_id()] = sum, e.counts[warp_id()] = count;
    __syncthreads();
    sum = sum_of(e.sums);
    count = sum_of(e.counts);
    if (above + sum >= least) {
      low = middle;
      inside = count;
    } else {
      high = middle;
      above += sum;
      inside -= count;
    }
  }
  if (high - low > 1) {
    uint32_t only = low;
    for_own(row, chunk, [&](int, const float(&v)[4]) {
#pragma unroll
      for (int k = 0; k < 4; k++)
        if (const uint32_t o = order(v[k]); o - low < high - low) only = o;
    });
    __syncthreads();  // the counts have been read
    low = block_max(only, e.counts);
  }
  return {low, above, inside};
}

// The first index at which the running sum of f exceeds `least` >= 0. If rounding keeps the sum below, the last index with a
// positive f; 0 if there is none. f must not be negative, and `sums` must hold its sum for each warp.
template <class R, class F>
__device__ __forceinline__ int first_above(const R& row, int chunk, double least, const Exchange& e, F f) {
  const int warps = int(blockDim.x / 32), lane = lane_id();
  int warp = 0;
  double before = 0, running = 0;
  for (int w = 0; w < warps && !(running > least); w++) {
    const double sum = e.sums[w];
    if (sum > 0) warp = w, before = running;
    running += sum;
  }
  if (warp_id() == warp) {
    const int part = chunk / 32, begin = warp * chunk + lane * part;  // consecutive elements per lane
    float v[4];
    double own = 0;
    for (int j = 0; j < part; j += 4) {
      row.get(begin + j, v);
#pragma unroll
      for (int k = 0; k < 4; k++) own += f(v[k]);
    }
    double through = own;  // sum up to and including this lane
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const double other = __shfl_up_sync(full_warp, through, unsigned(distance));
      if (lane >= distance) through += other;
    }
    const double earlier = __shfl_up_sync(full_warp, through, 1u);
    const unsigned some = __ballot_sync(full_warp, own > 0), over = __ballot_sync(full_warp, own > 0 && before + through > least);
    if (lane == (over ? __ffs(int(over)) - 1 : some ? 31 - __clz(int(some)) : 0)) {
      double sum = lane == 0 ? before : before + earlier;
      int last = some ? begin : 0;
      for (int j = 0; j < part && !(sum > least); j += 4) {
        row.get(begin + j, v);
#pragma unroll
        for (int k = 0; k < 4; k++)
          if (const double w = f(v[k]); w > 0 && !(sum > least)) last = begin + j + k, sum += w;
      }
      e.chosen[0] = last;
    }
  }
  __syncthreads();
  return e.chosen[0];
}

// The largest value of a row, and its first index in `first`; `vocabulary` if all values are NaN or -∞.
template <class R>
__device__ __forceinline__ float first_largest(const R& row, const Sample& s, Shared<float> largest_of, Shared<int> first_of,
                                               int& first) {
  float largest = -INFINITY;
  first = s.vocabulary;
  const auto merge = [&](float x, int at) {
    if (x > largest || (x == largest && at < first)) largest = x, first = at;
  };
  const auto over_warp = [&] {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
      const float x = __shfl_xor_sync(full_warp, largest, distance);
      merge(x, __shfl_xor_sync(full_warp, first, distance));
    }
  };
  for_own(row, s.chunk, [&](int j, const float(&v)[4]) {
#pragma unroll
    for (int k = 0; k < 4; k++)
      if (v[k] > largest) largest = v[k], first = j + k;
  });
  over_warp();
  if (lane_id() == 0) largest_of[warp_id()] = largest, first_of[warp_id()] = first;
  __syncthreads();
  if (lane_id() < int(blockDim.x / 32)) largest = largest_of[lane_id()], first = first_of[lane_id()];
  over_warp();
  return largest;
}

// The row of this block, copied by the threads that will read it.
template <bool in_shared>
__device__ __forceinline__ Row<in_shared> open_row(const Sample& s) {
  float* from = s.logits + int64_t(blockIdx.x) * s.vocabulary;
  if constexpr (!in_shared) return {from, s.vocabulary, s.aligned, -INFINITY};
  else {
    const size_t count = size_t(s.chunk) * (blockDim.x / 32);
    const Shared<float> x = dynamic_shared<float>(0, count);
    const int begin = warp_id() * s.chunk, end = begin + s.chunk;
    for (int j = begin + lane_id() * 4; j < end; j += 128) {
      if (s.aligned && j < s.vocabulary) {
        copy_async(x + j, from + j);
      } else {
#pragma unroll
        for (int k = 0; k < 4; k++) {
          if (j + k < s.vocabulary) copy_async<4>(x + (j + k), from + j + k);
          else x[j + k] = -INFINITY;
        }
      }
    }
    copy_async_commit();
    copy_async_wait<0>();
    return {x};
  }
}

template <bool in_shared>
__global__ void __launch_bounds__(1024) sample_kernel(Sample s) {
  SHARED_ARRAY(double, sums, 32);
  SHARED_ARRAY(double, totals, 32);
  SHARED_ARRAY(unsigned, counts, 32);
  SHARED_ARRAY(float, largest_of, 32);
  SHARED_ARRAY(int, first_of, 32);
  SHARED_ARRAY(int, chosen, 1);
  const Exchange e{sums, totals, counts, chosen};
  const int chunk = s.chunk;
  Row<in_shared> row = open_row<in_shared>(s);
  int token = 0;
  const float largest = first_largest(row, s, largest_of, first_of, token);
  if (token == s.vocabulary) token = 0;

  const bool greedy = s.temperature == 0;
  uint32_t lowest = 0;
  if (!greedy && s.top_k > 0 && s.top_k < s.vocabulary)
    lowest = edge_of(row, chunk, order_of(largest) + 1, double(s.top_k), e, order_of, [](float) { return 1.0; }).order;

  const float inverse_temperature = greedy ? 1.0f : 1 / s.temperature;
  double total_part = 0, kept_part = 0;
  for_own(row, chunk, [&](int j, float(&v)[4]) {
#pragma unroll
    for (int k = 0; k < 4; k++) {
      const float weight = expf((v[k] - largest) * inverse_temperature);
      total_part += double(weight);
      v[k] = order_of(v[k]) >= lowest ? weight : 0.0f;
      kept_part += double(v[k]);
    }
    if (!greedy) row.put(j, v);
  });
  if constexpr (!in_shared) row.outside = 0;
  total_part = warp_sum(total_part);
  if (lane_id() == 0) e.totals[warp_id()] = total_part;
  share_sums(kept_part, e.sums);
  const double total = sum_of(e.totals);
  if (greedy) {
    if (threadIdx.x == 0) {
      s.tokens[blockIdx.x] = token;
      s.logprobs[blockIdx.x] = float(-log(total));  // the largest weight is 1
    }
    return;
  }

  const auto weight_of = [](float weight) { return double(weight); };
  if (s.top_p < 1 || s.min_p > 0) {
    uint32_t edge = 0;
    int last = s.vocabulary;  // the last index of a weight at the edge that is kept
    if (s.top_p < 1) {        // weights are not negative, so their bits have the same order
      const auto bits_of = [](float weight) { return __float_as_uint(weight); };
      const double reach = s.top_p * sum_of(e.sums), least = reach > 0 ? reach : 1e-300;
      const Edge found = edge_of(row, chunk, __float_as_uint(1.0f) + 1, least, e, bits_of, weight_of);
      edge = found.order;
      // Of the weights equal to the edge, keep only as many as needed, the lower indices first.
      const double missing = (least - found.above) / double(__uint_as_float(edge));
      const unsigned needed = missing > 1 ? unsigned(ceil(missing < double(found.count) ? missing : double(found.count))) : 1;
      if (needed < found.count) {
        const auto is_edge = [&](float weight) { return __float_as_uint(weight) == edge ? 1.0 : 0.0; };
        double part = 0;
        for_own(row, chunk,
                [&](int, const float(&v)[4]) { part += is_edge(v[0]) + is_edge(v[1]) + is_edge(v[2]) + is_edge(v[3]); });
        share_sums(part, e.sums);
        last = first_above(row, chunk, double(needed - 1), e, is_edge);
      }
    }
    const double least = s.min_p < 1 ? s.min_p : 1;  // relative to the largest weight, which is 1
    kept_part = 0;
    for_own(row, chunk, [&](int j, float(&v)[4]) {
#pragma unroll
      for (int k = 0; k < 4; k++) {
        const uint32_t bits = __float_as_uint(v[k]);
        if (bits < edge || (bits == edge && j + k > last) || double(v[k]) < least) v[k] = 0;
        kept_part += double(v[k]);
      }
      row.put(j, v);
    });
    share_sums(kept_part, e.sums);
  }

  const double u = philox_uniform(s.seed, uint32_t(s.sequences[blockIdx.x]), uint32_t(s.positions[blockIdx.x]));
  token = first_above(row, chunk, u * sum_of(e.sums), e, weight_of);
  if (threadIdx.x == 0) {
    s.tokens[blockIdx.x] = token;
    s.logprobs[blockIdx.x] = float(log(double(row.at(token))) - log(total));
  }
}

int sample(void* ctx, LoopDType dt, const LoopSample* s) {
  return with_dtype(ctx, "sample", dt, [&](Context& c, auto) {
    const int threads = row_threads(s->vocabulary, 4, 1024);
    const int64_t chunk = ceil_div(s->vocabulary, int64_t(threads) * 4) * 128;
    const Sample a{int(s->vocabulary),
                   int(chunk),
                   vectorizable(s->vocabulary, 4, {s->logits}),
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
    const size_t bytes = size_t(chunk) * size_t(threads / 32) * sizeof(float);
    const bool fits = bytes <= dynamic_limit(c.device);
    return check(c,
                 launch(fits ? sample_kernel<true> : sample_kernel<false>, dim3(unsigned(s->rows)), dim3(unsigned(threads)),
                        fits ? bytes : 0, c.stream, a),
                 "sample");
  });
}

__global__ void edit_logits_kernel(int64_t count, const LoopLogitEdit* edits, float* logits) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const LoopLogitEdit edit = edits[i];
  const double biased = double(logits[edit.place]) + edit.bias;
  logits[edit.place] = float((biased > 0 ? biased / edit.repetition : biased * edit.repetition) - edit.penalty);
}

// One row per blockIdx.x.
__global__ void mask_logits_kernel(int64_t vocabulary, int64_t words, const uint32_t* allowed, float* logits) {
  const int64_t row = blockIdx.x, v = int64_t(blockIdx.y) * blockDim.x + threadIdx.x;
  if (v < vocabulary && !(allowed[row * words + v / 32] >> (v % 32) & 1)) logits[row * vocabulary + v] = -INFINITY;
}

int edit_logits(void* ctx, LoopDType dt, const LoopLogitEdits* e) {
  return with_dtype(ctx, "edit_logits", dt, [&](Context& c, auto) {
    auto* logits = static_cast<float*>(e->logits);
    int status = 0;
    if (e->count > 0)
      status = check(c,
                     launch(edit_logits_kernel, dim3(unsigned(ceil_div(e->count, int64_t(256)))), dim3(256), 0, c.stream,
                            e->count, e->edits, logits),
                     "edit_logits");
    if (status || !e->allowed || e->rows == 0) return status;
    const int64_t words = ceil_div(e->vocabulary, int64_t(32));
    return check(c,
                 launch(mask_logits_kernel, dim3(unsigned(e->rows), unsigned(ceil_div(e->vocabulary, int64_t(256)))), dim3(256),
                        0, c.stream, e->vocabulary, words, e->allowed, logits),
                 "edit_logits");
  });
}

}  // namespace

void add_sample(LoopBackend& table) {
  table.sample = guarded<sample>;
  table.edit_logits = guarded<edit_logits>;
}

}  // namespace looplm::cuda

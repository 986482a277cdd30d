// From logits to log-probabilities, and from a log-probability to its coefficient c = ∂L/∂ℓ (math.md §2).
#include <cmath>

#include "context.h"
#include "vector.h"

namespace looplm::cuda {
namespace {

// LoopLoss with its arrays in float32, as kernels take it.
struct Loss {
  int surrogate;
  double epsilon_low, epsilon_high, dual_clip, cap;
  const float *scale, *advantage, *old_logprob, *reference_logprob, *kl_scale, *entropy_scale;
};

Loss device_loss(const LoopLoss& l) {
  const auto reals = [](const void* p) { return static_cast<const float*>(p); };
  return {l.surrogate,
          l.epsilon_low,
          l.epsilon_high,
          l.dual_clip,
          l.cap,
          reals(l.scale),
          reals(l.advantage),
          reals(l.old_logprob),
          reals(l.reference_logprob),
          reals(l.kl_scale),
          reals(l.entropy_scale)};
}

// The sums of LoopLossSums, in its order.
constexpr int sum_count = 8;
enum { total_loss, policy_loss, kl, kl_rows, ratio, clipped_low, clipped_high, rows_counted };

// The coefficient of a row, and what it adds to the sums. In double: there is one of these for a whole row of logits.
__device__ double row_loss(const Loss& l, int64_t row, double logprob, double (&add)[sum_count]) {
#pragma unroll
  for (int s = 0; s < sum_count; s++) add[s] = 0;
  double coefficient = 0;
  if (const double scale = l.scale[row]; scale != 0) {
    const double advantage = l.surrogate == LOOP_GIVEN ? 0 : double(l.advantage[row]);
    const bool has_ratio = l.surrogate == LOOP_PPO || l.surrogate == LOOP_CISPO;
    const double r = has_ratio && l.old_logprob ? exp(logprob - double(l.old_logprob[row])) : 1;
    add[rows_counted] = 1;
    add[ratio] = r;
    if (l.surrogate == LOOP_GIVEN) {
      coefficient = scale;
      add[policy_loss] = scale * logprob;
    } else if (l.surrogate == LOOP_REINFORCE) {
      coefficient = -scale * advantage;
      add[policy_loss] = coefficient * logprob;
    } else if (l.surrogate == LOOP_PPO) {
      const double low = 1 - l.epsilon_low, high = advantage >= 0 ? 1 + l.epsilon_high : l.dual_clip;
      const bool cut_low = advantage < 0 && r <= low, cut_high = (advantage >= 0 || l.dual_clip > 0) && r >= high;
      coefficient = cut_low || cut_high ? 0 : -scale * advantage * r;
      add[policy_loss] = -scale * advantage * (cut_low ? low : cut_high ? high : r);
      add[clipped_low] = cut_low;
      add[clipped_high] = cut_high && advantage != 0;
    } else {
      const double capped = r < l.cap ? r : l.cap;
      coefficient = -scale * advantage * capped;
      add[policy_loss] = coefficient * logprob;
      add[clipped_high] = r > l.cap && advantage != 0;
    }
  }
  add[total_loss] = add[policy_loss];
  if (const double scale = l.kl_scale ? double(l.kl_scale[row]) : 0; scale != 0) {
    const double d = double(l.reference_logprob[row]) - logprob, change = expm1(d);
    coefficient -= scale * change;
    add[kl] = change - d;
    add[kl_rows] = 1;
    add[total_loss] += scale * (change - d);
  }
  return coefficient;
}

// A row of logits per block, online: m the largest y = x/τ so far, s = Σ e^(y-m), t = Σ e^(y-m) (y-m) of a thread's own elements.
// A thread adds few terms in float32; the block adds the threads in double, so that a peaked row keeps its many small terms.
// With a loss the row becomes ∂L/∂logits. Its elements are of act, packed from the row's beginning, and may lie on logits that
// were not read yet: a step writes only after all threads have read it, and what it writes lies at or before what it read.
template <class T, int W>
__global__ void head_rows_kernel(int64_t vocabulary, float inverse_temperature, float* logits, const int32_t* targets, Loss loss,
                                 bool with_loss, float* logprobs, float* entropies, Complaint* complaint) {
  SHARED_ARRAY(double, scratch, 32);
  SHARED_ARRAY(float, result, 4);  // log Σ e^y, H, c, entropy bonus
  const int64_t row = blockIdx.x;
  float* x = logits + row * vocabulary;
  const int64_t begin = int64_t(threadIdx.x) * W, step = int64_t(blockDim.x) * W;
  float m = -INFINITY, s = 0, t = 0, y[W];
  for (int64_t j = begin; j < vocabulary; j += step) {
    read<W>(x + j, y);
    float largest = m;
#pragma unroll
    for (int k = 0; k < W; k++) largest = fmaxf(largest, y[k] *= inverse_temperature);
    if (largest > m) {
      const float shift = m - largest, shrink = expf(shift);  // 0 at first, when s and t are 0 as well
      t = s > 0 ? shrink * (t + shift * s) : 0;
      s *= shrink;
      m = largest;
    }
#pragma unroll
    for (int k = 0; k < W; k++) {
      const float e = expf(y[k] - m);
      s += e;
      t += e > 0 ? e * (y[k] - m) : 0;
    }
  }
  const float largest = float(block_max(double(m), scratch));
  const double shift = s > 0 ? double(m) - double(largest) : 0, shrink = exp(shift);
  const double sum = block_sum(shrink * s, scratch), weighted = block_sum(shrink * (t + shift * s), scratch);

  const bool needs_target = with_loss || logprobs;
  int32_t target = needs_target ? targets[row] : 0;
  if (target < 0 || target >= vocabulary) {
    if (threadIdx.x == 0) *complaint = {1, target, int32_t(vocabulary)};
    target = 0;
  }
  if (threadIdx.x == 0) {
    const double log_sum = log(sum), entropy = log_sum - weighted / sum;
    const double logprob = double(x[target] * inverse_temperature) - double(largest) - log_sum;
    if (logprobs) logprobs[row] = float(logprob);
    if (entropies) entropies[row] = float(entropy);
    double unused[sum_count];
    result[0] = float(log_sum);
    result[1] = float(entropy);
    result[2] = with_loss ? float(row_loss(loss, row, double(float(logprob)), unused)) : 0;
    result[3] = with_loss && loss.entropy_scale ? loss.entropy_scale[row] : 0;
  }
  if (!with_loss) return;
  __syncthreads();
  const float log_sum = result[0], entropy = result[1], c = result[2], bonus = result[3];
  auto* out = reinterpret_cast<T*>(x);
  for (int64_t base = 0; base < vocabulary; base += step) {
    const int64_t j = base + begin;
    if (j < vocabulary) {
      read<W>(x + j, y);
#pragma unroll
      for (int k = 0; k < W; k++) {
        const float log_p = y[k] * inverse_temperature - largest - log_sum, p = expf(log_p);
        const float pull = bonus != 0 && p > 0 ? bonus * p * (log_p + entropy) : 0;
        y[k] = (c * ((j + k == target ? 1.0f : 0.0f) - p) + pull) * inverse_temperature;
      }
    }
    if constexpr (sizeof(T) < sizeof(float)) __syncthreads();
    if (j < vocabulary) write<W>(out + j, y);
  }
}

int head_rows(void* ctx, LoopDType dt, int64_t rows, int64_t vocabulary, double temperature, void* logits, const int32_t* targets,
              const LoopLoss* loss, void* logprobs, void* entropies) {
  return with_dtype(ctx, "head_rows", dt, [&]<class T>(Context& c, T) {
    const auto go = [&](auto kernel, int width) {
      return check(
          c,
          launch(kernel, dim3(unsigned(rows)), dim3(unsigned(row_threads(vocabulary, width, 512))), 0, c.stream, vocabulary,
                 float(1 / temperature), static_cast<float*>(logits), targets, loss ? device_loss(*loss) : Loss{},
                 loss != nullptr, static_cast<float*>(logprobs), static_cast<float*>(entropies), c.complaint),
          "head_rows");
    };
    return vectorizable(vocabulary, 4, {logits}) ? go(head_rows_kernel<T, 4>, 4) : go(head_rows_kernel<T, 1>, 1);
  });
}

// A row per thread; each block leaves its eight sums in partial[block][8].
__global__ void __launch_bounds__(256)
    policy_gradient_kernel(int64_t rows, const float* logprobs, Loss loss, float* coefficients, double* partial) {
  SHARED_ARRAY(double, scratch, 8);
  const int64_t row = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  double add[sum_count] = {};
  if (row < rows) {
    const double c = row_loss(loss, row, logprobs[row], add);
    if (coefficients) coefficients[row] = float(c);
  }
#pragma unroll
  for (int s = 0; s < sum_count; s++) {
    const double sum = block_sum(add[s], scratch);
    if (threadIdx.x == 0) partial[int64_t(blockIdx.x) * sum_count + s] = sum;
  }
}

// One block: warp s adds the s-th sum of all blocks, over partial[0].
__global__ void policy_gradient_sums_kernel(int64_t blocks, const double* partial, double* sums) {
  double sum = 0;
  for (int64_t b = lane_id(); b < blocks; b += 32) sum += partial[b * sum_count + warp_id()];
  sum = warp_sum(sum);
  if (lane_id() == 0) sums[warp_id()] = sum;
}

int policy_gradient(void* ctx, LoopDType dt, int64_t rows, const void* logprobs, const LoopLoss* loss, void* coefficients,
                    LoopLossSums* host_sums) {
  return with_dtype(ctx, "policy_gradient", dt, [&](Context& c, auto) {
    *host_sums = {};
    if (rows == 0) return 0;
    const int64_t blocks = ceil_div(rows, 256);
    auto* sums = static_cast<double*>(scratch(c, size_t(blocks + 1) * sum_count * 8));
    if (!sums) return int(LOOP_OUT_OF_MEMORY);
    int status = check(
        c,
        launch(policy_gradient_kernel, dim3(unsigned(blocks)), dim3(256), 0, c.stream, rows, static_cast<const float*>(logprobs),
               device_loss(*loss), static_cast<float*>(coefficients), sums + sum_count),
        "policy_gradient");
    if (!status)
      status = check(c,
                     launch(policy_gradient_sums_kernel, dim3(1), dim3(32 * sum_count), 0, c.stream, blocks,
                            static_cast<const double*>(sums + sum_count), sums),
                     "policy_gradient");
    static_assert(sizeof(LoopLossSums) == sum_count * sizeof(double));
    return status ? status : read_back(c, host_sums, sums, sizeof *host_sums);
  });
}

}  // namespace

void add_head(LoopBackend& table) {
  table.head_rows = head_rows;
  table.policy_gradient = policy_gradient;
}

}  // namespace looplm::cuda

// From logits to log-probabilities, and from each log-probability to its coefficient c = ∂L/∂ℓ (math.md §2).
#include <cmath>

#include "../native/token_loss.h"
#include "context.h"
#include "vector.h"

namespace looplm::cuda {
namespace {

// LoopLoss with float32 arrays, as a kernel argument.
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

constexpr int sum_count = 8;  // number of doubles in LoopLossSums
static_assert(sizeof(LoopLossSums) == sum_count * sizeof(double));

// The values of one row; 0 if the loss has no such array. All are read together, so that the kernel waits for memory once.
struct RowTerms {
  float scale, advantage, old_logprob, reference_logprob, kl_scale, entropy_scale;
};
__device__ __forceinline__ RowTerms row_terms(const Loss& l, int64_t row) {
  const auto at = [&](const float* reals) { return reals ? reals[row] : 0.0f; };
  return {at(l.scale), at(l.advantage), at(l.old_logprob), at(l.reference_logprob), at(l.kl_scale), at(l.entropy_scale)};
}

__device__ __forceinline__ double row_loss(const Loss& l, const RowTerms& row, double logprob, LoopLossSums& sums) {
  const TokenLossForm form{l.surrogate, l.epsilon_low, l.epsilon_high, l.dual_clip, l.cap, l.old_logprob != nullptr};
  return token_loss(form, {row.scale, row.advantage, row.old_logprob, row.reference_logprob, row.kl_scale}, logprob, sums);
}

// e^x for x <= 0 in three instructions; 0 below about -87 and for x = -∞ or NaN. Also makes x finite, so that 0 · x is 0.
__device__ __forceinline__ float exp_below(float& x) {
  x = fmaxf(x, -1e30f);
  return fast_exp2(x * 1.44269504f);
}

// Waits for all of this thread's copies except at most the last `groups`.
__device__ __forceinline__ void wait_for_all_but(int groups) {
  if (groups >= 24) copy_async_wait<24>();
  else if (groups >= 16) copy_async_wait<16>();
  else if (groups >= 8) copy_async_wait<8>();
  else if (groups >= 4) copy_async_wait<4>();
  else copy_async_wait<0>();
}

// The logits of a block's rows pass through a ring in shared memory, of `slots` steps with blockDim.x · W logits each. Each
// thread copies W logits of a step and is the only one to read them, so the ring needs no barrier. When a thread has finished
// with a slot, it starts the copy of the step that comes `slots` later, possibly of the next row. So memory never waits for
// arithmetic.
struct Ring {
  int slots;
  bool keeps;  // a row's steps stay in the ring until its gradient is written; otherwise the row is read a second time for it
};

// One row of logits at a time, online. For its own elements, a thread keeps m = the largest y = x/τ so far, s = Σ e^(y-m),
// and t = Σ e^(y-m) (y-m). A thread adds few terms in float32, and the block adds the threads in double, so that a peaked row
// keeps its many small terms.
// With a loss, the row is replaced by ∂L/∂logits in act, packed from the start of the row. If the ring does not keep the row,
// this could overwrite logits that are still to be read. So a step is only written after all threads have read it, and a
// write never goes beyond what has been read.
template <class T, int W>
__global__ void __launch_bounds__(512)
    head_rows_kernel(int64_t rows, int vocabulary, Ring ring, float inverse_temperature, float* logits, const int32_t* targets,
                     Loss loss, bool with_loss, float* logprobs, float* entropies, KernelFault* fault) {
  SHARED_ARRAY(double, sums, 64);
  SHARED_ARRAY(float, maxima, 32);
  SHARED_ARRAY(float, result, 5);  // log Σ e^y, H, c, 1 - P[target], entropy bonus
  const int begin = int(threadIdx.x) * W, step = int(blockDim.x) * W;
  const Shared<float> own = dynamic_shared<float>(0, size_t(ring.slots) * size_t(step)) + begin;

  const int sweeps = with_loss && !ring.keeps ? 2 : 1;  // passes over a row
  int64_t next_row = blockIdx.x;
  int next_base = 0, next_sweep = 0, next_slot = 0, slot = 0;
  const auto after = [&](int s) { return s + 1 < ring.slots ? s + 1 : 0; };
  const auto fetch = [&] {
    const int j = next_base + begin;
    if (next_row < rows && j < vocabulary) copy_async<4 * W>(own + int64_t(next_slot) * step, logits + next_row * vocabulary + j);
    copy_async_commit();
    next_slot = after(next_slot);
    next_base += step;
    if (next_base < vocabulary) return;
    next_base = 0;
    if (++next_sweep == sweeps) next_sweep = 0, next_row += gridDim.x;
  };
  const auto take = [&](int at, float(&y)[W]) {
    if constexpr (W == 4) read_shared<float>(own + int64_t(at) * step, y);
    else y[0] = own[int64_t(at) * step];
  };
  for (int s = 0; s < ring.slots; s++) fetch();

  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    float* x = logits + row * vocabulary;
    int32_t target = with_loss || logprobs ? targets[row] : 0;
    const RowTerms terms = with_loss ? row_terms(loss, row) : RowTerms{};
    float m = -INFINITY, s = 0, t = 0, y[W];
    const bool stays = with_loss && ring.keeps;
    int at = slot, newer = ring.slots - 1;  // newer: copies that may still be under way when a step is read
    for (int base = 0; base < vocabulary; base += step) {
      const bool inside = base + begin < vocabulary;
      wait_for_all_but(newer);
      if (inside) take(at, y);
      at = after(at);
      if (stays) newer--;
      else fetch();
      if (!inside) continue;
      float largest = m;
#pragma unroll
      for (int k = 0; k < W; k++) largest = fmaxf(largest, y[k] *= inverse_temperature);
      if (largest > m) {
        const float shift = m - largest, shrink = expf(shift);  // 0 for the first elements, when s and t are 0 as well
        t = s > 0 ? shrink * (t + shift * s) : 0;
        s *= shrink;
        m = largest;
      }
#pragma unroll
      for (int k = 0; k < W; k++) {
        float d = y[k] - m;
        const float e = exp_below(d);
        s += e;
        t += e * d;
      }
    }
    if (!stays) slot = at;

    const bool valid = target >= 0 && target < vocabulary;
    if (!valid) {
      if (threadIdx.x == 0) *fault = {1, target, vocabulary};
      target = 0;
    }
    const float chosen = threadIdx.x == 0 ? x[target] : 0;
    const float largest = block_max(m, maxima);
    const double shift = s > 0 ? double(m) - double(largest) : 0, shrink = exp(shift);
    double sum = shrink * double(s), weighted = shrink * (double(t) + shift * double(s));
    block_sums(sum, weighted, sums);
    if (threadIdx.x == 0) {
      const double log_sum = log(sum), entropy = log_sum - weighted / sum;
      const double logprob = double(chosen * inverse_temperature) - double(largest) - log_sum;
      if (logprobs) logprobs[row] = float(logprob);
      if (entropies) entropies[row] = float(entropy);
      if (with_loss) {
        LoopLossSums unused{};
        result[0] = float(log_sum);
        result[1] = float(entropy);
        result[2] = float(row_loss(loss, terms, double(float(logprob)), unused));
        result[3] = float(-expm1(logprob));
        result[4] = terms.entropy_scale;
      }
    }
    if (!with_loss) continue;
    __syncthreads();  // the result is ready
    const float log_sum = result[0], entropy = result[1], rest = result[3];
    const float c = float(result[2]) * inverse_temperature, bonus = float(result[4]) * inverse_temperature;
    auto* out = reinterpret_cast<T*>(x);
    for (int base = 0; base < vocabulary; base += step) {
      const int j = base + begin;
      if (!ring.keeps) wait_for_all_but(ring.slots - 1);
      if (j < vocabulary) take(slot, y);
      slot = after(slot);
      fetch();
      if (sizeof(T) < sizeof(float) && !ring.keeps) __syncthreads();
      if (j >= vocabulary) continue;
#pragma unroll
      for (int k = 0; k < W; k++) {
        float log_p = y[k] * inverse_temperature - largest - log_sum;
        const float p = exp_below(log_p);
        y[k] = c * (j + k == target ? rest : -p);
        if (bonus != 0) y[k] += bonus * p * (log_p + entropy);
      }
      write<W>(out + j, y);
    }
  }
}

int head_rows(void* ctx, LoopDType dt, int64_t rows, int64_t vocabulary, double temperature, void* logits, const int32_t* targets,
              const LoopLoss* loss, void* logprobs, void* entropies) {
  return with_dtype(ctx, "head_rows", dt, [&]<class T>(Context& c, T) {
    const auto go = [&](auto kernel, int width) {
      const int threads = row_threads(vocabulary, width, 512);
      const int64_t step = int64_t(threads) * width, steps = ceil_div(vocabulary, step);
      const int64_t fit = int64_t(dynamic_limit(c.device)) / (4 * step);
      const Ring ring{int(std::min(2 * steps, fit)), steps <= fit};
      const size_t shared = size_t(ring.slots) * size_t(step) * 4;
      return check(c,
                   launch(kernel, dim3(unsigned(row_blocks(c.device, kernel, rows, threads, shared))), dim3(unsigned(threads)),
                          shared, c.stream, rows, int(vocabulary), ring, float(1 / temperature), static_cast<float*>(logits),
                          targets, loss ? device_loss(*loss) : Loss{}, loss != nullptr, static_cast<float*>(logprobs),
                          static_cast<float*>(entropies), c.kernel_fault),
                   "head_rows");
    };
    return vectorizable(vocabulary, 4, {logits}) ? go(head_rows_kernel<T, 4>, 4) : go(head_rows_kernel<T, 1>, 1);
  });
}

// One thread per row. Each block writes its eight sums to partial[block][8].
__global__ void __launch_bounds__(256)
    policy_gradient_kernel(int64_t rows, const float* logprobs, Loss loss, float* coefficients, double* partial) {
  SHARED_ARRAY(double, scratch, 8);
  const int64_t row = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  LoopLossSums sums{};
  if (row < rows) {
    const double c = row_loss(loss, row_terms(loss, row), logprobs[row], sums);
    if (coefficients) coefficients[row] = float(c);
  }
  const double add[sum_count] = {sums.loss,  sums.policy_loss, sums.kl,           sums.kl_rows,
                                 sums.ratio, sums.clipped_low, sums.clipped_high, sums.rows};
#pragma unroll
  for (int s = 0; s < sum_count; s++) {
    const double sum = block_sum(add[s], scratch);
    if (threadIdx.x == 0) partial[int64_t(blockIdx.x) * sum_count + s] = sum;
  }
}

// One block: warp s adds the s-th sum of all blocks.
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
    return status ? status : read_back(c, host_sums, sums, sizeof *host_sums);
  });
}

}  // namespace

void add_head(LoopBackend& table) {
  table.head_rows = guarded<head_rows>;
  table.policy_gradient = guarded<policy_gradient>;
}

}  // namespace looplm::cuda

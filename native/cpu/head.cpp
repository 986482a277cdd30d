// From logits to log-probabilities, and from each log-probability to its coefficient c = ∂L/∂ℓ (math.md §2).
#include <math.h>
#include <stdio.h>

#include "../token_loss.h"
#include "softmax.h"

namespace looplm::cpu::LOOPLM_ISA {

namespace {

inline double entry(const void* array, int64_t row) { return static_cast<const float*>(array)[row]; }

inline double row_coefficient(const LoopLoss& loss, int64_t row, float logprob, LoopLossSums& sums) {
  return token_loss(token_loss_form(loss), token_loss_row<float>(loss, row), double(logprob), sums);
}

inline double entropy_scale(const LoopLoss& loss, int64_t row) { return loss.entropy_scale ? entry(loss.entropy_scale, row) : 0; }

inline bool has_gradient(const LoopLoss& loss, int64_t row) {
  return entry(loss.scale, row) != 0 || (loss.kl_scale && entry(loss.kl_scale, row) != 0) || entropy_scale(loss, row) != 0;
}

struct Head {
  int64_t vocabulary;
  double temperature;
  float* logits;           // [rows, vocabulary]
  const int32_t* targets;  // [rows]; NULL if only entropies are needed
  const LoopLoss* loss;
  float *logprobs, *entropies;
};

constexpr int GROUP = 16;  // rows that run through each pass together, so that the short dependent steps between passes
                           // overlap

// Replaces the exponentials e of a row (with sum `total`) by c (onehot - e / total) / temperature, stored as E in place. This
// is safe because an E is no larger than a float, so no store overwrites a float that is read later.
template <class E>
void write_gradient(const Head& head, float* e, int32_t target, float total, double coefficient) {
  E* out = reinterpret_cast<E*>(e);
  if (coefficient == 0) {
    memset(static_cast<void*>(out), 0, size_t(head.vocabulary) * sizeof(E));
    return;
  }
  const double c = coefficient / head.temperature;
  const float at_target = float(c * (1 - double(e[target]) / double(total))), factor = float(-c / double(total));
  for_vectors(
      head.vocabulary, LOOPLM_VECTORS(j, part, chain) { store(out + j, load(e + j, part) * factor, part); });
  set(out[target], at_target);
}

// The same from the logits x, and with the entropy bonus: (c (onehot - P) + bonus P (log P + H)) / temperature.
template <class E>
void write_entropy_gradient(const Head& head, float* x, int32_t target, float largest, float total, double coefficient,
                            double bonus, double entropy) {
  E* out = reinterpret_cast<E*>(x);
  const double c = coefficient / head.temperature, log_total = log(double(total));
  const float inverse_temperature = float(1 / head.temperature), slope = float(bonus / head.temperature / double(total)),
              offset = float(((entropy - log_total) * bonus - coefficient) / head.temperature / double(total));
  const float y_target = (x[target] - largest) * inverse_temperature;
  for_vectors(
      head.vocabulary, LOOPLM_VECTORS(j, part, chain) {
        const vf y = (load(x + j, part) - largest) * inverse_temperature;
        store(out + j, vexp(y) * (y * slope + offset), part);
      });
  const double p = exp(double(y_target) - log_total);
  set(out[target], float(c * (1 - p) + bonus / head.temperature * p * (double(y_target) - log_total + entropy)));
}

template <class E, bool Entropy>
void head_group(const Head& head, int64_t begin, int64_t end) {
  float largest[GROUP], at_target[GROUP];
  ExpSums sums[GROUP] = {};
  double coefficient[GROUP];
  const int64_t v = head.vocabulary, count = end - begin;
  float* rows = head.logits + begin * v;
  const auto skipped = [&](int64_t i) { return head.loss && !head.logprobs && !Entropy && !has_gradient(*head.loss, begin + i); };
  const float inverse_temperature = float(1 / head.temperature);

  for (int64_t i = 0; i < count; i++)
    if (!skipped(i)) largest[i] = row_maximum(rows + i * v, v);
  for (int64_t i = 0; i < count; i++) {
    if (skipped(i)) continue;
    at_target[i] = head.targets ? rows[i * v + head.targets[begin + i]] : 0;
    float* row = rows + i * v;
    if (head.loss && entropy_scale(*head.loss, begin + i) != 0)
      sums[i] = exp_sums<false, true>(row, v, largest[i], inverse_temperature, nullptr);
    else
      sums[i] = head.loss ? exp_sums<true, Entropy>(row, v, largest[i], inverse_temperature, row)
                          : exp_sums<false, Entropy>(row, v, largest[i], inverse_temperature, nullptr);
  }
  for (int64_t i = 0; i < count; i++) {
    coefficient[i] = 0;
    if (skipped(i)) continue;
    const double log_total = log(double(sums[i].sum));
    if (Entropy) head.entropies[begin + i] = float(log_total - double(sums[i].weighted) / double(sums[i].sum));
    if (!head.targets) continue;
    const float logprob = float((double(at_target[i]) - double(largest[i])) / head.temperature - log_total);
    if (head.logprobs) head.logprobs[begin + i] = logprob;
    LoopLossSums unused = {};
    if (head.loss) coefficient[i] = row_coefficient(*head.loss, begin + i, logprob, unused);
  }
  if (!head.loss) return;
  for (int64_t i = 0; i < count; i++)
    if (const double bonus = entropy_scale(*head.loss, begin + i); bonus != 0) {
      const double entropy = log(double(sums[i].sum)) - double(sums[i].weighted) / double(sums[i].sum);
      write_entropy_gradient<E>(head, rows + i * v, head.targets[begin + i], largest[i], sums[i].sum, coefficient[i], bonus,
                                entropy);
    } else {
      write_gradient<E>(head, rows + i * v, head.targets[begin + i], sums[i].sum, coefficient[i]);
    }
}

template <class E>
void run_head(Context& ctx, int64_t rows, const Head& head) {
  const int64_t fit = 4096 / head.vocabulary, group = fit < 1 ? 1 : fit < GROUP ? fit : GROUP;  // a group must fit in L1
  for_rows(ctx, rows, head.vocabulary, [=](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i += group)
      (head.entropies ? head_group<E, true> : head_group<E, false>)(head, i, i + group < end ? i + group : end);
  });
}

void add(LoopLossSums& total, const LoopLossSums& part) {
  total.loss += part.loss;
  total.policy_loss += part.policy_loss;
  total.kl += part.kl;
  total.kl_rows += part.kl_rows;
  total.ratio += part.ratio;
  total.clipped_low += part.clipped_low;
  total.clipped_high += part.clipped_high;
  total.rows += part.rows;
}

}  // namespace

int head_rows(void* context, LoopDType dt, int64_t rows, int64_t vocabulary, double temperature, void* logits,
              const int32_t* targets, const LoopLoss* loss, void* logprobs, void* entropies) {
  auto& ctx = *static_cast<Context*>(context);
  if (rows <= 0 || vocabulary <= 0 || (!loss && !logprobs && !entropies)) return 0;
  const bool needs_target = loss || logprobs;
  for (int64_t i = 0; needs_target && i < rows; i++)
    if (targets[i] < 0 || targets[i] >= vocabulary) {
      snprintf(ctx.error, sizeof ctx.error, "head_rows: target %d outside a vocabulary of %lld", targets[i],
               static_cast<long long>(vocabulary));
      return 1;
    }
  const Head head = {vocabulary,
                     temperature,
                     static_cast<float*>(logits),
                     needs_target ? targets : nullptr,
                     loss,
                     static_cast<float*>(logprobs),
                     static_cast<float*>(entropies)};
  (dt == LOOP_BF16 ? run_head<bf16> : run_head<float>)(ctx, rows, head);
  return 0;
}

// Sums rows in fixed blocks, then adds the blocks in order.
int policy_gradient(void* context, LoopDType, int64_t rows, const void* logprobs_, const LoopLoss* loss, void* coefficients_,
                    LoopLossSums* host_sums) {
  auto& ctx = *static_cast<Context*>(context);
  const auto* logprobs = static_cast<const float*>(logprobs_);
  auto* coefficients = static_cast<float*>(coefficients_);
  constexpr int64_t BLOCK = 512;
  const int64_t blocks = (rows + BLOCK - 1) / BLOCK;
  auto* parts = static_cast<LoopLossSums*>(ctx.pool.scratch(ctx.pool.threads(), size_t(blocks) * sizeof(LoopLossSums)));
  ctx.pool.run(blocks, [=](int64_t task, int) {
    LoopLossSums sums = {};
    const int64_t begin = task * BLOCK, end = begin + BLOCK < rows ? begin + BLOCK : rows;
    for (int64_t i = begin; i < end; i++) {
      const double c = row_coefficient(*loss, i, logprobs[i], sums);
      if (coefficients) coefficients[i] = float(c);
    }
    parts[task] = sums;
  });
  *host_sums = {};
  for (int64_t b = 0; b < blocks; b++) add(*host_sums, parts[b]);
  return 0;
}

}  // namespace looplm::cpu::LOOPLM_ISA

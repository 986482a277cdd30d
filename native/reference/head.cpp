// From logits to log-probabilities, and from a log-probability to its coefficient c = ∂L/∂ℓ (math.md §2).
#include "context.h"
#include "scores.h"

namespace looplm::reference {
namespace {

struct RowLoss {
  double coefficient = 0;
  LoopLossSums sums{};
};

double entry(const void* array, int64_t row) { return static_cast<const double*>(array)[row]; }

// The surrogate of a row whose scale is not 0.
void add_surrogate(const LoopLoss& loss, int64_t row, double logprob, RowLoss& out) {
  const double scale = entry(loss.scale, row), advantage = loss.surrogate == LOOP_GIVEN ? 0 : entry(loss.advantage, row);
  const bool has_ratio = loss.surrogate == LOOP_PPO || loss.surrogate == LOOP_CISPO;
  const double ratio = has_ratio && loss.old_logprob ? std::exp(logprob - entry(loss.old_logprob, row)) : 1;
  out.sums.rows = 1;
  out.sums.ratio = ratio;
  switch (loss.surrogate) {
    case LOOP_GIVEN:
      out.coefficient = scale;
      out.sums.policy_loss = scale * logprob;
      break;
    case LOOP_REINFORCE:
      out.coefficient = -scale * advantage;
      out.sums.policy_loss = -scale * advantage * logprob;
      break;
    case LOOP_PPO: {
      const double low = 1 - loss.epsilon_low, high = advantage >= 0 ? 1 + loss.epsilon_high : loss.dual_clip;
      const bool cut_low = advantage < 0 && ratio <= low;
      const bool cut_high = (advantage >= 0 || loss.dual_clip > 0) && ratio >= high;
      const double clipped = cut_low ? low : cut_high ? high : ratio;
      out.coefficient = cut_low || cut_high ? 0 : -scale * advantage * ratio;
      out.sums.policy_loss = -scale * advantage * clipped;
      out.sums.clipped_low = cut_low;
      out.sums.clipped_high = cut_high && advantage != 0;
      break;
    }
    case LOOP_CISPO: {
      const double capped = std::min(ratio, loss.cap);
      out.coefficient = -scale * advantage * capped;
      out.sums.policy_loss = -scale * advantage * capped * logprob;
      out.sums.clipped_high = ratio > loss.cap && advantage != 0;
      break;
    }
  }
}

// + kl_scale (e^d - d - 1), d = ℓ_ref - ℓ; its derivative by ℓ is kl_scale (1 - e^d).
void add_kl(const LoopLoss& loss, int64_t row, double logprob, RowLoss& out) {
  const double d = entry(loss.reference_logprob, row) - logprob, k3 = std::expm1(d) - d;
  out.coefficient -= entry(loss.kl_scale, row) * std::expm1(d);
  out.sums.kl = k3;
  out.sums.kl_rows = 1;
}

RowLoss row_loss(const LoopLoss& loss, int64_t row, double logprob) {
  RowLoss out;
  if (entry(loss.scale, row) != 0) add_surrogate(loss, row, logprob, out);
  if (loss.kl_scale && entry(loss.kl_scale, row) != 0) add_kl(loss, row, logprob, out);
  out.sums.loss = out.sums.policy_loss + (loss.kl_scale ? entry(loss.kl_scale, row) * out.sums.kl : 0);
  return out;
}

// P = softmax(logits / τ): logprob = log P[target], entropy H = -Σ P log P, and with a loss
// ∂L/∂logits = (c (onehot(target) - P) + entropy_scale P (log P + H)) / τ.
int head_rows(void* ctx, LoopDType dt, int64_t rows, int64_t vocabulary, double temperature, void* logits_,
              const int32_t* targets, const LoopLoss* loss, void* logprobs, void* entropies) {
  if (int status = require_float64(ctx, dt, "head_rows")) return status;
  const bool needs_target = loss || logprobs;
  for (int64_t i = 0; i < rows; ++i) {
    if (needs_target && (targets[i] < 0 || targets[i] >= vocabulary))
      return fail(ctx,
                  "head_rows: target " + std::to_string(targets[i]) + " outside a vocabulary of " + std::to_string(vocabulary));
    double* logits = static_cast<double*>(logits_) + i * vocabulary;
    std::vector<double> log_p(logits, logits + vocabulary);
    for (double& x : log_p) x /= temperature;
    const double lse = log_sum_exp(log_p);
    for (double& x : log_p) x -= lse;

    if (logprobs) static_cast<double*>(logprobs)[i] = log_p[size_t(targets[i])];
    double entropy = 0;
    for (double x : log_p) entropy -= std::exp(x) > 0 ? std::exp(x) * x : 0;
    if (entropies) static_cast<double*>(entropies)[i] = entropy;
    if (loss) {
      const double c = row_loss(*loss, i, log_p[size_t(targets[i])]).coefficient;
      const double bonus = loss->entropy_scale ? entry(loss->entropy_scale, i) : 0;
      for (int64_t v = 0; v < vocabulary; ++v) {
        const double x = log_p[size_t(v)], p = std::exp(x), pull = p > 0 ? bonus * p * (x + entropy) : 0;
        logits[v] = (c * ((v == targets[i] ? 1 : 0) - p) + pull) / temperature;
      }
    }
  }
  return 0;
}

int policy_gradient(void* ctx, LoopDType dt, int64_t rows, const void* logprobs, const LoopLoss* loss, void* coefficients,
                    LoopLossSums* host_sums) {
  if (int status = require_float64(ctx, dt, "policy_gradient")) return status;
  LoopLossSums sums{};
  for (int64_t i = 0; i < rows; ++i) {
    const RowLoss row = row_loss(*loss, i, entry(logprobs, i));
    if (coefficients) static_cast<double*>(coefficients)[i] = row.coefficient;
    sums.loss += row.sums.loss;
    sums.policy_loss += row.sums.policy_loss;
    sums.kl += row.sums.kl;
    sums.kl_rows += row.sums.kl_rows;
    sums.ratio += row.sums.ratio;
    sums.clipped_low += row.sums.clipped_low;
    sums.clipped_high += row.sums.clipped_high;
    sums.rows += row.sums.rows;
  }
  *host_sums = sums;
  return 0;
}

}  // namespace

void add_head(LoopBackend& table) {
  table.head_rows = head_rows;
  table.policy_gradient = policy_gradient;
}

}  // namespace looplm::reference

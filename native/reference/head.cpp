// From logits to log-probabilities, and from each log-probability to its coefficient c = ∂L/∂ℓ (math.md §2).
#include "../token_loss.h"
#include "context.h"
#include "scores.h"

namespace looplm::reference {
namespace {

double entry(const void* array, int64_t row) { return static_cast<const double*>(array)[row]; }

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
      LoopLossSums unused{};
      const double c = token_loss(token_loss_form(*loss), token_loss_row<double>(*loss, i), log_p[size_t(targets[i])], unused);
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
    const double c = token_loss(token_loss_form(*loss), token_loss_row<double>(*loss, i), entry(logprobs, i), sums);
    if (coefficients) static_cast<double*>(coefficients)[i] = c;
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

#include "loss_totals.h"

#include <algorithm>
#include <limits>

namespace looplm {

LossTotals::LossTotals(const LossInput& in) : in_(in) {
  for (auto* table : {&logprob_, &weight_, &exit_, &scored_}) table->assign(size_t(in.loops.count()), 0.0);
}

void LossTotals::add(const LoopLossSums& sums) {
  m_.loss += sums.loss;
  m_.policy_loss += sums.policy_loss;
  m_.kl += sums.kl;
  m_.ratio += sums.ratio;
  m_.clip_low += sums.clipped_low;
  m_.clip_high += sums.clipped_high;
  kl_rows_ += sums.kl_rows;
  ratio_rows_ += sums.rows;
}

void LossTotals::add_weights(const RowTable& w, size_t R) {
  for (size_t i = 0; i < w.size(); i++) weight_[size_t(in_.loops.scored[i / R])] += w[i];
}

void LossTotals::add_rows(const LossRows& rows) {
  const size_t R = rows.R();
  const std::vector<double>&logprobs = rows.values.logprobs, &entropies = rows.values.entropies;
  m_.response_tokens += double(R);
  for (size_t k = 0; k < in_.loops.scored.size(); k++) {
    const size_t loop = size_t(in_.loops.scored[k]);
    for (size_t r = 0; r < R; r++) logprob_[loop] += logprobs[k * R + r];
    scored_[loop] += double(R);
  }
  for (size_t i = entropies.size() - std::min(R, entropies.size()); i < entropies.size(); i++) m_.entropy += entropies[i];
  entropy_rows_ += entropies.empty() ? 0 : double(R);
  for (size_t i = 0; i < rows.exits.pdf.size(); i++) {
    const double p = rows.exits.pdf[i];
    exit_[i / R] += p;
    m_.exit_loop += double(in_.loops.read[i / R] + 1) * p;
    m_.exit_entropy -= p > 0 ? p * rows.exits.log_pdf[i] : 0;
  }
}

LossMetrics LossTotals::metrics() const {
  LossMetrics m = m_;
  const double n = std::max(1.0, m.response_tokens);
  const auto share = [](double a, double b) { return b > 0 ? a / b : 0; };
  m.kl = share(m.kl, kl_rows_);
  m.ratio = share(m.ratio, ratio_rows_);
  m.clip_low = share(m.clip_low, ratio_rows_);
  m.clip_high = share(m.clip_high, ratio_rows_);
  m.entropy = share(m.entropy, entropy_rows_);
  m.exit_loop /= n;
  m.exit_entropy /= n;
  for (size_t k = 0; k < exit_.size(); k++) {
    m.loops.push_back(in_.loops.read[k] + 1);
    m.loop_logprob.push_back(scored_[k] > 0 ? logprob_[k] / scored_[k] : std::numeric_limits<double>::quiet_NaN());
    m.loop_weight.push_back(weight_[k] / n);
    m.loop_exit.push_back(exit_[k] / n);
  }
  return m;
}

}  // namespace looplm

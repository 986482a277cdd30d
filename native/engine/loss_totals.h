// Sums over the micro-batches of a loss, and the metrics computed from them.
#pragma once
#include "loss_input.h"

namespace looplm {

class LossTotals {
 public:
  explicit LossTotals(const LossInput& in);
  void add(const LoopLossSums& sums);
  void add_loss(double loss) { m_.loss += loss; }
  void add_policy_loss(double loss) { m_.loss += loss, m_.policy_loss += loss; }
  void add_lazy_loss(double loss) { m_.loss += loss, m_.lazy_loss += loss; }
  void add_weights(const RowTable& w, size_t R);  // weights of the scored loops
  void add_rows(const LossRows& rows);
  LossMetrics metrics() const;

 private:
  const LossInput& in_;
  LossMetrics m_;
  double kl_rows_ = 0, ratio_rows_ = 0, entropy_rows_ = 0;
  std::vector<double> logprob_, weight_, exit_, scored_;  // per loop that is read
};

}  // namespace looplm

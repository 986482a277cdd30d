#include "belief.h"

#include <algorithm>
#include <cmath>

namespace looplm {

std::vector<double> belief_returns(const BeliefRewards& o, const std::vector<double>& log_belief, double reference_log,
                                   int reference_loop) {
  auto value = [&](double log_b) {
    if (o.value == BeliefValue::log) return log_b;
    const double b = std::exp(log_b);
    return o.value == BeliefValue::probability ? b : 1 - std::pow(1 - b, o.attempts);
  };
  const size_t loops = log_belief.size() - 1;
  const bool teacher = o.base == BeliefBase::teacher;
  const double origin = teacher ? reference_loop : 1;
  std::vector<double> r(loops);
  for (size_t t = 1; t <= loops; t++) {
    const double base = teacher ? value(reference_log) : o.base == BeliefBase::previous ? value(log_belief[t - 1]) : 0;
    r[t - 1] = value(log_belief[t]) - base - o.cost * (double(t) - origin);
    if (o.clip) r[t - 1] = std::min(r[t - 1] - o.clip_at, 0.0);
  }
  if (o.delta) {
    for (size_t t = 0; t + 2 < loops; t++) r[t] -= r[t + 1];
    r[loops - 1] = 0;
  }
  for (size_t t = loops - 1; t > 0; t--) r[t - 1] += o.discount * r[t];
  return r;
}

}  // namespace looplm

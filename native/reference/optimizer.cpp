// AdamW with decoupled weight decay (math.md §6), and the gradient norm for clipping.
#include <cmath>

#include "context.h"

namespace looplm::reference {
namespace {

int sum_squares(void* ctx, LoopDType dt, int64_t arrays, const int64_t* host_counts, const void* const* host_x,
                double* host_out) {
  if (int status = require_float64(ctx, dt, "sum_squares")) return status;
  for (int64_t a = 0; a < arrays; ++a) {
    const auto* x = static_cast<const double*>(host_x[a]);
    double sum = 0;
    for (int64_t i = 0; i < host_counts[a]; ++i) sum += x[i] * x[i];
    host_out[a] = sum;
  }
  return 0;
}

// m = β1 m + (1-β1) g,   v = β2 v + (1-β2) g²,   p -= lr (m̂ / (√v̂ + ε) + wd p),   m̂ = m / (1-β1^step),   v̂ = v / (1-β2^step)
int adamw(void* ctx, LoopDType dt, const LoopAdamW* a) {
  if (int status = require_float64(ctx, dt, "adamw")) return status;
  auto *p = static_cast<double*>(a->parameter), *m = static_cast<double*>(a->first_moment),
       *v = static_cast<double*>(a->second_moment);
  const double correction1 = 1 - std::pow(a->beta1, double(a->step)), correction2 = 1 - std::pow(a->beta2, double(a->step));
  for (int64_t i = 0; i < a->count; ++i) {
    const double g = static_cast<const double*>(a->gradient)[i] * a->gradient_scale;
    m[i] = a->beta1 * m[i] + (1 - a->beta1) * g;
    v[i] = a->beta2 * v[i] + (1 - a->beta2) * g * g;
    p[i] -= a->learning_rate * (m[i] / correction1 / (std::sqrt(v[i] / correction2) + a->epsilon) + a->weight_decay * p[i]);
  }
  return 0;
}

int moving_average(void* ctx, LoopDType dt, int64_t count, double weight, const void* x, void* average, void* parameter) {
  if (int status = require_float64(ctx, dt, "moving_average")) return status;
  auto *mean = static_cast<double*>(average), *out = static_cast<double*>(parameter);
  for (int64_t i = 0; i < count; ++i) {
    mean[i] += weight * (static_cast<const double*>(x)[i] - mean[i]);
    if (out) out[i] = mean[i];
  }
  return 0;
}

}  // namespace

void add_optimizer(LoopBackend& table) {
  table.moving_average = moving_average;
  table.sum_squares = sum_squares;
  table.adamw = adamw;
}

}  // namespace looplm::reference

// out = silu(g)·u, silu(g) = g σ(g)   (math.md §1)                            gate_up [n, 2f]: g then u; out [n, f]
#include "context.h"
#include "logistic.h"

namespace looplm::reference {
namespace {

int swiglu(void* ctx, LoopDType dt, int64_t n, int64_t f, const void* gate_up, void* out) {
  if (int status = require_float64(ctx, dt, "swiglu")) return status;
  for (int64_t i = 0; i < n; ++i) {
    const double *g = static_cast<const double*>(gate_up) + i * 2 * f, *u = g + f;
    for (int64_t j = 0; j < f; ++j) static_cast<double*>(out)[i * f + j] = g[j] * sigmoid(g[j]) * u[j];
  }
  return 0;
}

// ∂g = ∂out u σ(g) (1 + g (1 - σ(g))),   ∂u = ∂out silu(g)
int swiglu_backward(void* ctx, LoopDType dt, int64_t n, int64_t f, const void* gate_up, const void* dout_, void* dgate_up,
                    void* out) {
  if (int status = require_float64(ctx, dt, "swiglu_backward")) return status;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < f; ++j) {
      const double g = static_cast<const double*>(gate_up)[i * 2 * f + j],
                   u = static_cast<const double*>(gate_up)[i * 2 * f + f + j];
      const double dout = static_cast<const double*>(dout_)[i * f + j], s = sigmoid(g);
      static_cast<double*>(dgate_up)[i * 2 * f + j] = dout * u * s * (1 + g * (1 - s));
      static_cast<double*>(dgate_up)[i * 2 * f + f + j] = dout * g * s;
      static_cast<double*>(out)[i * f + j] = g * s * u;
    }
  return 0;
}

}  // namespace

void add_swiglu(LoopBackend& table) {
  table.swiglu = swiglu;
  table.swiglu_backward = swiglu_backward;
}

}  // namespace looplm::reference

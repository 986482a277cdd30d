// out = gate(g)·u, gate(g) = g σ(g) or σ(g)   (math.md §1)                  gate_up [n, 2f]: g then u; out [n, f]
#include "context.h"
#include "logistic.h"

namespace looplm::reference {
namespace {

struct Gate {
  double value, slope;
  Gate(LoopGate gate, double g) {
    const double s = sigmoid(g);
    value = gate == LOOP_SILU ? g * s : s;
    slope = gate == LOOP_SILU ? s * (1 + g * (1 - s)) : s * (1 - s);
  }
};

int swiglu(void* ctx, LoopDType dt, LoopGate gate, int64_t n, int64_t f, const void* gate_up, void* out) {
  if (int status = require_float64(ctx, dt, "swiglu")) return status;
  for (int64_t i = 0; i < n; ++i) {
    const double *g = static_cast<const double*>(gate_up) + i * 2 * f, *u = g + f;
    for (int64_t j = 0; j < f; ++j) static_cast<double*>(out)[i * f + j] = Gate(gate, g[j]).value * u[j];
  }
  return 0;
}

// ∂g = ∂out u gate'(g),   ∂u = ∂out gate(g)
int swiglu_backward(void* ctx, LoopDType dt, LoopGate gate, int64_t n, int64_t f, const void* gate_up, const void* dout_,
                    void* dgate_up, void* out) {
  if (int status = require_float64(ctx, dt, "swiglu_backward")) return status;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < f; ++j) {
      const double g = static_cast<const double*>(gate_up)[i * 2 * f + j],
                   u = static_cast<const double*>(gate_up)[i * 2 * f + f + j],
                   dout = static_cast<const double*>(dout_)[i * f + j];
      const Gate of(gate, g);
      static_cast<double*>(dgate_up)[i * 2 * f + j] = dout * u * of.slope;
      static_cast<double*>(dgate_up)[i * 2 * f + f + j] = dout * of.value;
      static_cast<double*>(out)[i * f + j] = of.value * u;
    }
  return 0;
}

}  // namespace

void add_swiglu(LoopBackend& table) {
  table.swiglu = swiglu;
  table.swiglu_backward = swiglu_backward;
}

}  // namespace looplm::reference

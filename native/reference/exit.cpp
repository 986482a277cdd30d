// The exit gate, and the exit distribution over the loops (math.md §1).
#include "context.h"
#include "logistic.h"

namespace looplm::reference {
namespace {

// a[i] = w·h[i] + b                       h [n, d], w [d], b [1], a [n]
int gate(void* ctx, LoopDType dt, int64_t n, int64_t d, const void* h, const void* w, const void* b, void* a) {
  if (int status = require_float64(ctx, dt, "gate")) return status;
  for (int64_t i = 0; i < n; ++i) {
    double sum = *static_cast<const double*>(b);
    for (int64_t j = 0; j < d; ++j) sum += static_cast<const double*>(w)[j] * static_cast<const double*>(h)[i * d + j];
    static_cast<double*>(a)[i] = sum;
  }
  return 0;
}

// dh[i] += da[i] w,   dw += Σ da[i] h[i],   db += Σ da[i]
int gate_backward(void* ctx, LoopDType dt, int64_t n, int64_t d, const void* da_, const void* h, const void* w, void* dh,
                  void* dw, void* db) {
  if (int status = require_float64(ctx, dt, "gate_backward")) return status;
  for (int64_t i = 0; i < n; ++i) {
    const double da = static_cast<const double*>(da_)[i];
    for (int64_t j = 0; j < d; ++j) {
      static_cast<double*>(dh)[i * d + j] += da * static_cast<const double*>(w)[j];
      static_cast<double*>(dw)[j] += da * static_cast<const double*>(h)[i * d + j];
    }
    *static_cast<double*>(db) += da;
  }
  return 0;
}

// log p_t = logσ(a_t) + Σ_{s<t} logσ(-a_s). The last loop takes the remaining probability; its gate is unused. [loops, n].
int exit_pdf(void* ctx, LoopDType dt, int64_t loops, int64_t n, const void* gates, void* log_pdf, void* pdf) {
  if (int status = require_float64(ctx, dt, "exit_pdf")) return status;
  for (int64_t i = 0; i < n; ++i) {
    double stay = 0;
    for (int64_t t = 0; t < loops; ++t) {
      const double a = static_cast<const double*>(gates)[t * n + i];
      const double log_p = t < loops - 1 ? log_sigmoid(a) + stay : stay;
      if (log_pdf) static_cast<double*>(log_pdf)[t * n + i] = log_p;
      if (pdf) static_cast<double*>(pdf)[t * n + i] = std::exp(log_p);
      stay += log_sigmoid(-a);
    }
  }
  return 0;
}

// ∂L/∂a_j = Σ_t d_t p_t (-λ_j if j < t; 1 - λ_t if j = t < T; 0 otherwise),   ∂L/∂a_T = 0,   1 - λ = σ(-a)
int exit_pdf_backward(void* ctx, LoopDType dt, int64_t loops, int64_t n, const void* gates, const void* dpdf, void* dgates) {
  if (int status = require_float64(ctx, dt, "exit_pdf_backward")) return status;
  for (int64_t i = 0; i < n; ++i) {
    const auto lambda = [&](int64_t t) { return sigmoid(static_cast<const double*>(gates)[t * n + i]); };
    const auto stays = [&](int64_t t) { return sigmoid(-static_cast<const double*>(gates)[t * n + i]); };
    for (int64_t j = 0; j < loops; ++j) {
      double sum = 0, stay = 1;
      for (int64_t t = 0; t < loops && j < loops - 1; ++t) {
        const double p = t < loops - 1 ? lambda(t) * stay : stay, d = static_cast<const double*>(dpdf)[t * n + i];
        if (j < t) sum -= d * p * lambda(j);
        if (j == t) sum += d * p * stays(t);
        stay *= stays(t);
      }
      static_cast<double*>(dgates)[j * n + i] = sum;
    }
  }
  return 0;
}

}  // namespace

void add_exit(LoopBackend& table) {
  table.gate = gate;
  table.gate_backward = gate_backward;
  table.exit_pdf = exit_pdf;
  table.exit_pdf_backward = exit_pdf_backward;
}

}  // namespace looplm::reference

// RMS(v; w) = v · rsqrt(mean v² + eps) · w   (math.md §1), and the residual connection around it.
#include <algorithm>
#include <cmath>

#include "context.h"

namespace looplm::reference {
namespace {

double inverse_rms(const double* v, int64_t d, double eps) {
  double sum = 0;
  for (int64_t j = 0; j < d; ++j) sum += v[j] * v[j];
  return 1 / std::sqrt(sum / double(d) + eps);
}

// One row, y = v·s·w with s = rsqrt(mean v² + eps):
//   ∂v_j = s w_j ∂y_j - v_j s³ mean(∂y w v),   ∂w_j += ∂y_j v_j s
// Calls put(j, ∂v_j).
template <class Put>
void rms_backward(int64_t d, double eps, const double* v, const double* w, const double* dy, double* dw, Put put) {
  const double s = inverse_rms(v, d, eps);
  double mean = 0;
  for (int64_t j = 0; j < d; ++j) mean += dy[j] * w[j] * v[j] / double(d);
  for (int64_t j = 0; j < d; ++j) {
    if (dw) dw[j] += dy[j] * v[j] * s;
    put(j, s * w[j] * dy[j] - v[j] * s * s * s * mean);
  }
}

// h_out = h + RMS(branch; w_branch), or h + branch;  x = RMS(h_out; w_next)           all [n, d], weights [d]
int residual_norm(void* ctx, LoopDType dt, int64_t n, int64_t d, double eps, const void* h_, const void* branch_,
                  const void* w_branch_, const void* w_next_, void* h_out_, void* x_) {
  if (int status = require_float64(ctx, dt, "residual_norm")) return status;
  const auto *w_branch = static_cast<const double*>(w_branch_), *w_next = static_cast<const double*>(w_next_);
  for (int64_t i = 0; i < n; ++i) {
    const double* h = static_cast<const double*>(h_) + i * d;
    if (branch_) {
      const double* branch = static_cast<const double*>(branch_) + i * d;
      double* h_out = static_cast<double*>(h_out_) + i * d;
      const double s = w_branch ? inverse_rms(branch, d, eps) : 1;
      for (int64_t j = 0; j < d; ++j) h_out[j] = h[j] + branch[j] * s * (w_branch ? w_branch[j] : 1);
      h = h_out;
    }
    if (w_next_) {
      double* x = static_cast<double*>(x_) + i * d;
      const double s = inverse_rms(h, d, eps);
      for (int64_t j = 0; j < d; ++j) x[j] = h[j] * s * w_next[j];
    }
  }
  return 0;
}

// dh += RMSᵀ(dx) at h_out,  dbranch = RMSᵀ(dh) at branch
int residual_norm_backward(void* ctx, LoopDType dt, int64_t n, int64_t d, double eps, const void* h_out_, const void* branch_,
                           const void* w_branch_, const void* w_next_, const void* dx_, void* dh_, void* dbranch_,
                           void* dw_branch_, void* dw_next_) {
  if (int status = require_float64(ctx, dt, "residual_norm_backward")) return status;
  const auto *w_branch = static_cast<const double*>(w_branch_), *w_next = static_cast<const double*>(w_next_);
  auto *dw_branch = static_cast<double*>(dw_branch_), *dw_next = static_cast<double*>(dw_next_);
  for (int64_t i = 0; i < n; ++i) {
    double* dh = static_cast<double*>(dh_) + i * d;
    if (dx_) {
      const double *h_out = static_cast<const double*>(h_out_) + i * d, *dx = static_cast<const double*>(dx_) + i * d;
      rms_backward(d, eps, h_out, w_next, dx, dw_next, [&](int64_t j, double value) { dh[j] += value; });
    }
    if (branch_) {
      const double* branch = static_cast<const double*>(branch_) + i * d;
      double* dbranch = static_cast<double*>(dbranch_) + i * d;
      if (w_branch) rms_backward(d, eps, branch, w_branch, dh, dw_branch, [&](int64_t j, double value) { dbranch[j] = value; });
      else std::copy_n(dh, d, dbranch);
    }
  }
  return 0;
}

}  // namespace

void add_norm(LoopBackend& table) {
  table.residual_norm = residual_norm;
  table.residual_norm_backward = residual_norm_backward;
}

}  // namespace looplm::reference

#include "context.h"

namespace looplm::reference {
namespace {

// C[m,n] (+)= Σ_k op(A)[m,k] · op(B)[k,n]
int gemm(void* ctx, LoopDType dt, int transpose_a, int transpose_b, int64_t m, int64_t n, int64_t k, const void* a_, int64_t lda,
         const void* b_, int64_t ldb, void* c_, int64_t ldc, int flags) {
  if (int status = require_float64(ctx, dt, "gemm")) return status;
  const auto *a = static_cast<const double*>(a_), *b = static_cast<const double*>(b_);
  auto* c = static_cast<double*>(c_);
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (int64_t l = 0; l < k; ++l)
        sum += (transpose_a ? a[l * lda + i] : a[i * lda + l]) * (transpose_b ? b[j * ldb + l] : b[l * ldb + j]);
      c[i * ldc + j] = (flags & LOOP_GEMM_ACCUMULATE) ? c[i * ldc + j] + sum : sum;
    }
  return 0;
}

// C[m,n] = Σ_k A[m,k] · (code · scale)[n,k]
int gemm_quantized(void* ctx, LoopDType dt, int64_t m, int64_t n, int64_t k, const void* a_, int64_t lda, const LoopQuantized* b,
                   void* c_, int64_t ldc, int) {
  if (int status = require_float64(ctx, dt, "gemm_quantized")) return status;
  const auto* a = static_cast<const double*>(a_);
  auto* c = static_cast<double*>(c_);
  const auto code = [&](int64_t j, int64_t l) -> int {
    if (b->bits == 8) return static_cast<const int8_t*>(b->codes)[j * k + l];
    const int pair = static_cast<const uint8_t*>(b->codes)[(j * k + l) / 2];
    return (l % 2 ? pair >> 4 : pair & 15) - 8;
  };
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (int64_t l = 0; l < k; ++l) sum += a[i * lda + l] * code(j, l) * double(b->scales[l / b->group * n + j]);
      c[i * ldc + j] = sum;
    }
  return 0;
}

}  // namespace

void add_gemm(LoopBackend& table) {
  table.gemm = gemm;
  table.gemm_quantized = gemm_quantized;
}

}  // namespace looplm::reference

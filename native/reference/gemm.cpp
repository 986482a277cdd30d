#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <vector>

#include "../numeric/half.h"  // defines: bf16_to_float
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

int code_of(const LoopQuantized& b, int64_t k, int64_t j, int64_t l) {
  if (b.bits == 8) return static_cast<const int8_t*>(b.codes)[j * k + l];
  const int pair = static_cast<const uint8_t*>(b.codes)[(j * k + l) / 2];
  return (l % 2 ? pair >> 4 : pair & 15) - 8;
}

// Scale and middle of one group: value = code · scale + middle.
struct Grid {
  double scale, middle = 0;
  Grid(const LoopQuantized& b, int64_t at) : scale(b.scales[at]) {
    if (!b.asymmetric) return;
    uint32_t pair;
    std::memcpy(&pair, &b.scales[at], 4);
    scale = bf16_to_float(uint16_t(pair >> 16)), middle = bf16_to_float(uint16_t(pair));
  }
};

// A row rounded to 8 bits in float32, as LoopQuantized defines: codes [k], scales [k / group].
struct RoundedRow {
  std::vector<int> codes;
  std::vector<double> scales;
  RoundedRow(const double* x, int64_t k, int group) {
    for (int64_t first = 0; first < k; first += group) {
      float most = 0;
      bool finite = true;
      for (int64_t l = first; l < first + group; ++l) {
        finite = finite && std::isfinite(float(x[l]));
        most = std::max(most, std::fabs(float(x[l])));
      }
      const float inverse = finite && most > 1e-30f ? 127 / most : 0;
      for (int64_t l = first; l < first + group; ++l) codes.push_back(finite ? int(std::nearbyint(float(x[l]) * inverse)) : 0);
      scales.push_back(finite ? double(most / 127) : std::nan(""));
    }
  }
};

// C[m,n] = Σ_k A[m,k] · (code · scale + middle)[n,k]; with activation_bits 8, for rows of A that are rounded to 8 bits.
int gemm_quantized(void* ctx, LoopDType dt, int64_t m, int64_t n, int64_t k, const void* a_, int64_t lda, const LoopQuantized* b,
                   void* c_, int64_t ldc, int) {
  if (int status = require_float64(ctx, dt, "gemm_quantized")) return status;
  const auto* a = static_cast<const double*>(a_);
  auto* c = static_cast<double*>(c_);
  for (int64_t i = 0; i < m; ++i) {
    std::optional<RoundedRow> row;
    if (b->activation_bits == 8) row.emplace(a + i * lda, k, b->group);
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (int64_t l = 0; l < k; ++l) {
        const int64_t g = l / b->group;
        const double x = row ? row->codes[size_t(l)] * row->scales[size_t(g)] : a[i * lda + l];
        const Grid grid(*b, g * n + j);
        sum += x * (code_of(*b, k, j, l) * grid.scale + grid.middle);
      }
      c[i * ldc + j] = sum;
    }
  }
  return 0;
}

}  // namespace

void add_gemm(LoopBackend& table) {
  table.gemm = gemm;
  table.gemm_quantized = gemm_quantized;
}

}  // namespace looplm::reference

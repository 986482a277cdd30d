// Rows selected by an index: the embedding and its gradient, gather and scatter. Also the comparison of rows.
#include <algorithm>
#include <cstring>

#include "context.h"

namespace looplm::reference {
namespace {

// out[i] = table[ids[i]]                 table [vocabulary, d], out [n, d]
int embed(void* ctx, LoopDType dt, int64_t n, int64_t d, const int32_t* ids, const void* table_, void* out_) {
  if (int status = require_float64(ctx, dt, "embed")) return status;
  const auto* table = static_cast<const double*>(table_);
  auto* out = static_cast<double*>(out_);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < d; ++j) out[i * d + j] = table[ids[i] * d + j];
  return 0;
}

// dst[index[i]] += src[i]                src [n, d], dst [*, d]
void add_rows_at(int64_t n, int64_t d, const int32_t* index, const double* src, double* dst) {
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < d; ++j) dst[index[i] * d + j] += src[i * d + j];
}

int embed_backward(void* ctx, LoopDType dt, int64_t n, int64_t d, int64_t vocabulary, const int32_t* ids, const void* dout,
                   void* dtable) {
  if (int status = require_float64(ctx, dt, "embed_backward")) return status;
  for (int64_t i = 0; i < n; ++i)
    if (ids[i] < 0 || ids[i] >= vocabulary)
      return fail(ctx, "embed_backward: id " + std::to_string(ids[i]) + " outside a vocabulary of " + std::to_string(vocabulary));
  add_rows_at(n, d, ids, static_cast<const double*>(dout), static_cast<double*>(dtable));
  return 0;
}

int gather_rows(void*, LoopDType type, int64_t n, int64_t d, const int32_t* index, const void* src, void* dst) {
  const size_t row = size_t(d) * loop_dtype_size(type);
  for (int64_t i = 0; i < n; ++i)
    std::memcpy(static_cast<char*>(dst) + size_t(i) * row, static_cast<const char*>(src) + size_t(index[i]) * row, row);
  return 0;
}

int scatter_add_rows(void* ctx, LoopDType dt, int64_t n, int64_t d, const int32_t* index, const void* src, void* dst) {
  if (int status = require_float64(ctx, dt, "scatter_add_rows")) return status;
  add_rows_at(n, d, index, static_cast<const double*>(src), static_cast<double*>(dst));
  return 0;
}

int compare_rows(void* ctx, LoopDType dt, int64_t n, int64_t d, const void* x_, const void* y_, double* out) {
  if (int status = require_float64(ctx, dt, "compare_rows")) return status;
  const auto *x = static_cast<const double*>(x_), *y = static_cast<const double*>(y_);
  std::fill(out, out + 4 * n, 0.0);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t k = 0; k < d; ++k) {
      const double a = x[i * d + k], b = y[i * d + k];
      out[4 * i] += (a - b) * (a - b), out[4 * i + 1] += a * a, out[4 * i + 2] += a * b, out[4 * i + 3] += b * b;
    }
  return 0;
}

}  // namespace

void add_rows(LoopBackend& table) {
  table.embed = embed;
  table.embed_backward = embed_backward;
  table.gather_rows = gather_rows;
  table.scatter_add_rows = scatter_add_rows;
  table.compare_rows = compare_rows;
}

}  // namespace looplm::reference

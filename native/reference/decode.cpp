// One new token per row against a cache plane (math.md §7).
#include "context.h"
#include "scores.h"

namespace looplm::reference {
namespace {

// keys[slots[i]] = k part of qkv[i],  values[slots[i]] = v part              planes [slots, kv_heads * head_dim]
int cache_write(void* ctx, LoopDType dt, int64_t rows, int32_t heads, int32_t kv_heads, int32_t head_dim, const int32_t* slots,
                const void* qkv, void* keys, void* values) {
  if (int status = require_float64(ctx, dt, "cache_write")) return status;
  const int64_t width = int64_t(kv_heads) * head_dim;
  for (int64_t i = 0; i < rows; ++i) {
    const double* k = static_cast<const double*>(qkv) + i * (heads + 2 * kv_heads) * head_dim + int64_t(heads) * head_dim;
    std::copy(k, k + width, static_cast<double*>(keys) + slots[i] * width);
    std::copy(k + width, k + 2 * width, static_cast<double*>(values) + slots[i] * width);
  }
  return 0;
}

// out[i] = Σ_j softmax_j(scale q_i·k_j) v_j over the slots of the row's context
int decode_attention(void* ctx, LoopDType dt, const LoopDecodeAttention* a) {
  if (int status = require_float64(ctx, dt, "decode_attention")) return status;
  const int64_t width = int64_t(a->kv_heads) * a->head_dim;
  for (int64_t i = 0; i < a->rows; ++i) {
    const LoopCacheContext& context = a->contexts[i];
    std::vector<int64_t> slots;
    for (const LoopCacheRun& run : context.runs)
      for (int32_t j = 0; j < run.length; ++j) slots.push_back(run.begin + j);
    for (int32_t head = 0; head < a->heads; ++head) {
      const double* q = static_cast<const double*>(a->qkv) + (i * (a->heads + 2 * a->kv_heads) + head) * a->head_dim;
      const int64_t kv = int64_t(head / (a->heads / a->kv_heads)) * a->head_dim;
      const double *keys = static_cast<const double*>(a->keys) + kv, *values = static_cast<const double*>(a->values) + kv;
      double* out = static_cast<double*>(a->out) + (i * a->heads + head) * a->head_dim;
      std::vector<double> scores;
      for (int64_t slot : slots) scores.push_back(a->scale * dot(q, keys + slot * width, a->head_dim));
      const double lse = log_sum_exp(scores);
      std::fill(out, out + a->head_dim, 0.0);
      for (size_t j = 0; j < slots.size(); ++j)
        add_scaled(out, std::exp(scores[j] - lse), values + slots[j] * width, a->head_dim);
    }
  }
  return 0;
}

}  // namespace

void add_decode(LoopBackend& table) {
  table.cache_write = cache_write;
  table.decode_attention = decode_attention;
}

}  // namespace looplm::reference

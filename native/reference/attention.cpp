// Causal attention over packed segments (math.md §1).
//   s_ij = scale q_i·k_j,   lse_i = log Σ_j exp s_ij,   p_ij = exp(s_ij - lse_i),   out_i = Σ_j p_ij v_j
//   ∂p_ij = ∂out_i·v_j,   ∂s_ij = p_ij (∂p_ij - Σ_l p_il ∂p_il)
//   ∂q_i = scale Σ_j ∂s_ij k_j,   ∂k_j = scale Σ_i ∂s_ij q_i,   ∂v_j = Σ_i p_ij ∂out_i
#include "context.h"
#include "scores.h"

namespace looplm::reference {
namespace {

// Rows of a packed [tokens, (heads + 2 kv_heads) * head_dim] array.
template <class Number>
struct Packed {
  Number* base;
  const LoopAttention& a;
  Number* row(int64_t token) const { return base + token * (a.heads + 2 * a.kv_heads) * a.head_dim; }
  Number* q(int64_t token, int32_t head) const { return row(token) + head * a.head_dim; }
  Number* k(int64_t token, int32_t head) const { return row(token) + (a.heads + head / (a.heads / a.kv_heads)) * a.head_dim; }
  Number* v(int64_t token, int32_t head) const { return k(token, head) + a.kv_heads * a.head_dim; }
};

// The tokens that token i of a segment attends to: the prefix, then the segment up to and including i, or to the end of its
// bidirectional part if i is in it.
std::vector<int32_t> visible(const LoopSegment& segment, int32_t i) {
  std::vector<int32_t> tokens;
  for (int32_t j = segment.prefix_begin; j < segment.prefix_end; ++j) tokens.push_back(j);
  const int32_t end = i < segment.begin + segment.two_way ? segment.begin + segment.two_way : i + 1;
  for (int32_t j = segment.begin; j < end; ++j) tokens.push_back(j);
  return tokens;
}

int attention(void* ctx, LoopDType dt, const LoopAttention* a) {
  if (int status = require_float64(ctx, dt, "attention")) return status;
  const Packed<const double> in{static_cast<const double*>(a->qkv), *a};
  auto *out = static_cast<double*>(a->out), *lse = static_cast<double*>(a->lse);
  for (int32_t g = 0; g < a->segment_count; ++g)
    for (int32_t i = a->segments[g].begin; i < a->segments[g].end; ++i) {
      const std::vector<int32_t> keys = visible(a->segments[g], i);
      for (int32_t head = 0; head < a->heads; ++head) {
        std::vector<double> scores;
        for (int32_t j : keys) scores.push_back(a->scale * dot(in.q(i, head), in.k(j, head), a->head_dim));
        const double sum = log_sum_exp(scores);
        lse[head * a->tokens + i] = sum;
        double* o = out + (int64_t(i) * a->heads + head) * a->head_dim;
        std::fill(o, o + a->head_dim, 0.0);
        for (size_t j = 0; j < keys.size(); ++j) add_scaled(o, std::exp(scores[j] - sum), in.v(keys[j], head), a->head_dim);
      }
    }
  return 0;
}

int attention_backward(void* ctx, LoopDType dt, const LoopAttention* a) {
  if (int status = require_float64(ctx, dt, "attention_backward")) return status;
  const Packed<const double> in{static_cast<const double*>(a->qkv), *a};
  const Packed<double> gradient{static_cast<double*>(a->dqkv), *a};
  std::fill(gradient.row(0), gradient.row(a->tokens), 0.0);
  for (int32_t g = 0; g < a->segment_count; ++g)
    for (int32_t i = a->segments[g].begin; i < a->segments[g].end; ++i) {
      const std::vector<int32_t> keys = visible(a->segments[g], i);
      for (int32_t head = 0; head < a->heads; ++head) {
        const double* dout = static_cast<const double*>(a->dout) + (int64_t(i) * a->heads + head) * a->head_dim;
        const double lse = static_cast<const double*>(a->lse)[head * a->tokens + i];
        std::vector<double> p, dp;
        double mean = 0;
        for (int32_t j : keys) {
          p.push_back(std::exp(a->scale * dot(in.q(i, head), in.k(j, head), a->head_dim) - lse));
          dp.push_back(dot(dout, in.v(j, head), a->head_dim));
          mean += p.back() * dp.back();
        }
        for (size_t j = 0; j < keys.size(); ++j) {
          const double ds = a->scale * (p[j] * (dp[j] - mean));
          add_scaled(gradient.q(i, head), ds, in.k(keys[j], head), a->head_dim);
          add_scaled(gradient.k(keys[j], head), ds, in.q(i, head), a->head_dim);
          add_scaled(gradient.v(keys[j], head), p[j], dout, a->head_dim);
        }
      }
    }
  return 0;
}

}  // namespace

void add_attention(LoopBackend& table) {
  table.attention = attention;
  table.attention_backward = attention_backward;
}

}  // namespace looplm::reference

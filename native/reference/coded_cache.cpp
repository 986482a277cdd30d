// A quantized KV cache (backend.h, LoopCacheCodes). Values are rounded in float32, as on every backend; decoded values are
// double.
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "context.h"
#include "scores.h"

namespace looplm::reference {
namespace {

float from_bfloat16(uint32_t bits) {
  bits <<= 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
// The nearest bfloat16 that is not above x, or with `upwards` not below x.
uint32_t rounded(float x, bool upwards) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  uint32_t cut = bits >> 16;
  if (from_bfloat16(cut) != x && (x > 0) == upwards) cut++;
  return cut;
}

// A record of `width` quantized numbers.
struct Record {
  LoopCacheCodes codes;
  int64_t width;
  const uint32_t* words;
  int64_t groups() const { return width / codes.group; }
  double number(int64_t i) const {
    const int64_t n = loop_code_words(codes), g = i / codes.group, k = i % codes.group;
    if (codes.kept > 0) return value(pruned_code(g, k), words[groups() * (loop_kept_words(codes) + loop_mask_words(codes)) + g]);
    return value(words[g * n + k % n] >> (k / n * codes.bits) & ((1u << codes.bits) - 1), words[groups() * n + g]);
  }
  static double value(uint32_t code, uint32_t pair) {
    return double(from_bfloat16(pair >> 16)) + double(from_bfloat16(pair & 0xffff)) * code;
  }
  // With `kept`: of number k of group g.
  uint32_t pruned_code(int64_t g, int64_t k) const {
    const int64_t n = loop_code_words(codes), at = k % n * 8 + k / n;
    const uint32_t *codes_at = words + g * loop_kept_words(codes),
                   *mask = words + groups() * loop_kept_words(codes) + g * loop_mask_words(codes),
                   *restored = words + groups() * (loop_kept_words(codes) + loop_mask_words(codes) + 1);
    const auto kept = [=](int64_t place) { return mask[place / 32] >> place % 32 & 1; };
    if (!kept(at)) return restored[g / 4] >> g % 4 * 8 & 0xff;
    int64_t before = 0;
    for (int64_t place = 0; place < at; ++place) before += kept(place);
    uint32_t code = 0;
    for (int64_t bit = 3 * before; bit < 3 * before + 3; ++bit)
      code |= (codes_at[bit / 32] >> bit % 32 & 1) << (bit - 3 * before);
    return 2 * code;
  }
};

// The record of a slot.
template <class Void>
auto record(Void* records, LoopCacheCodes codes, int64_t width, int64_t slot) {
  using Words = std::conditional_t<std::is_const_v<Void>, const uint32_t, uint32_t>;
  return static_cast<Words*>(records) + slot * (loop_record_bytes(codes, width) / 4);
}

void encode(LoopCacheCodes codes, int64_t width, const double* x, uint32_t* words) {
  const int64_t n = loop_code_words(codes), groups = width / codes.group;
  for (int64_t g = 0; g < groups; ++g) {
    std::vector<float> y(x + g * codes.group, x + (g + 1) * codes.group);
    const float low = *std::min_element(y.begin(), y.end()), high = *std::max_element(y.begin(), y.end());
    const bool finite = std::all_of(y.begin(), y.end(), [](float v) { return std::isfinite(v); });
    const float most = float((1 << codes.bits) - 1);
    const uint32_t minimum = finite ? rounded(low, false) : 0x7fc0;
    const uint32_t scale = finite ? rounded((high - from_bfloat16(minimum)) / most, true) : 0;
    words[groups * n + g] = minimum << 16 | scale;
    std::fill(words + g * n, words + (g + 1) * n, 0u);
    for (int64_t i = 0; i < codes.group && scale; ++i) {
      const float inverse = 1 / from_bfloat16(scale), code = std::nearbyint((y[size_t(i)] - from_bfloat16(minimum)) * inverse);
      words[g * n + i % n] |= uint32_t(std::min(code, most)) << (i / n * codes.bits);
    }
  }
}

// With `kept`.
void encode_pruned(LoopCacheCodes codes, int64_t width, const double* x, uint32_t* words) {
  const int64_t n = loop_code_words(codes), groups = width / codes.group, pruned = codes.group - codes.kept;
  std::fill(words, words + loop_record_bytes(codes, width) / 4, 0u);
  uint32_t *mask = words + groups * loop_kept_words(codes), *pairs = mask + groups * loop_mask_words(codes),
           *restored = pairs + groups;
  for (int64_t g = 0; g < groups; ++g, words += loop_kept_words(codes), mask += loop_mask_words(codes)) {
    const std::vector<float> y(x + g * codes.group, x + (g + 1) * codes.group);
    if (!std::all_of(y.begin(), y.end(), [](float v) { return std::isfinite(v); })) {
      pairs[g] = 0x7fc00000;
      continue;
    }
    std::vector<size_t> order;
    for (size_t i = 0; i < y.size(); ++i) order.push_back(i);
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return y[a] < y[b]; });
    const auto length = [&](int64_t first) { return y[order[size_t(first + pruned - 1)]] - y[order[size_t(first)]]; };
    int64_t first = 0;
    for (int64_t i = 1; i <= codes.kept; ++i)
      if (length(i) < length(first)) first = i;
    std::vector<bool> kept(y.size(), true);
    for (int64_t i = first; i < first + pruned; ++i) kept[order[size_t(i)]] = false;

    const float minimum = from_bfloat16(rounded(y[order.front()], false));
    const uint32_t scale = rounded((y[order.back()] - minimum) / 14, true);
    pairs[g] = rounded(y[order.front()], false) << 16 | scale;
    if (!scale) continue;
    const float inverse = 1 / from_bfloat16(scale);
    const float middle = y[order[size_t(first)]] / 2 + y[order[size_t(first + pruned - 1)]] / 2;
    restored[g / 4] |= uint32_t(std::min(std::nearbyint((middle - minimum) * inverse), 14.0f)) << g % 4 * 8;
    int64_t bit = 0;
    for (int64_t place = 0; place < 8 * n; ++place) {
      const int64_t k = place / 8 + place % 8 * n;
      if (k >= codes.group || !kept[size_t(k)]) continue;
      mask[place / 32] |= 1u << place % 32;
      const uint32_t code = uint32_t(std::min(std::nearbyint((y[size_t(k)] - minimum) * inverse / 2), 7.0f));
      for (int64_t b = 0; b < 3; ++b, ++bit) words[bit / 32] |= (code >> b & 1) << bit % 32;
    }
  }
}

int cache_encode(void* ctx, LoopDType dt, LoopCacheCodes codes, int64_t rows, int32_t heads, int32_t kv_heads, int32_t head_dim,
                 const int32_t* slots, const void* qkv, void* keys, void* values) {
  if (int status = require_float64(ctx, dt, "cache_encode")) return status;
  const int64_t width = int64_t(kv_heads) * head_dim;
  for (int64_t i = 0; i < rows; ++i) {
    const double* k = static_cast<const double*>(qkv) + i * (heads + 2 * kv_heads) * head_dim + int64_t(heads) * head_dim;
    (codes.kept > 0 ? encode_pruned : encode)(codes, width, k, record(keys, codes, width, slots[i]));
    const LoopCacheCodes whole = loop_whole_codes(codes);
    encode(whole, width, k + width, record(values, whole, width, slots[i]));
  }
  return 0;
}

int cache_encode_residuals(void* ctx, LoopDType dt, const LoopResidualEncode* e) {
  if (int status = require_float64(ctx, dt, "cache_encode_residuals")) return status;
  const auto half = [&](const void* exact, void* anchors, void* residuals) {
    for (int64_t i = 0; i < e->count; ++i) {
      const LoopResidualToken& token = e->tokens[i];
      const auto row = [&](int64_t loop) {
        return static_cast<const double*>(exact) + (loop * e->exact_slots + token.exact) * e->width;
      };
      uint32_t* anchor = record(anchors, e->anchor, e->width, token.slot);
      encode(e->anchor, e->width, row(token.loops - 1), anchor);
      for (int64_t t = 0; t + 1 < token.loops; ++t) {
        std::vector<double> difference;
        for (int64_t j = 0; j < e->width; ++j)
          difference.push_back(float(row(t)[j]) - float(Record{e->anchor, e->width, anchor}.number(j)));
        encode(e->residual, e->width, difference.data(), record(residuals, e->residual, e->width, t * e->slots + token.slot));
      }
    }
  };
  half(e->keys, e->anchor_keys, e->residual_keys);
  half(e->values, e->anchor_values, e->residual_values);
  return 0;
}

int cache_decode(void* ctx, LoopDType dt, LoopCacheCodes codes, int64_t rows, int64_t width, const void* records,
                 LoopCacheCodes residual, const void* residuals, int64_t stride, void* out) {
  if (int status = require_float64(ctx, dt, "cache_decode")) return status;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t e = 0; e < width; ++e) {
      double x = Record{codes, width, record(records, codes, width, i)}.number(e);
      if (residuals) x += Record{residual, width, record(residuals, residual, width, i)}.number(e);
      static_cast<double*>(out)[i * stride + e] = x;
    }
  return 0;
}

// out[i] = Σ_j softmax_j(scale q_i·k_j) v_j over the row's records, followed by its recent keys and values.
int coded_attention(void* ctx, LoopDType dt, const LoopCodedAttention* c) {
  if (int status = require_float64(ctx, dt, "coded_attention")) return status;
  const LoopDecodeAttention& a = c->rows;
  const int64_t width = int64_t(a.kv_heads) * a.head_dim;
  for (int64_t i = 0; i < a.rows; ++i) {
    std::vector<double> keys, values;  // [context, width]
    const auto append = [&](std::vector<double>& to, LoopCacheCodes codes, const void* records, const void* residuals,
                            int64_t slot) {
      const int64_t at = c->residual.bits > 0 ? c->residual_at[i] : -1;
      for (int64_t e = 0; e < width; ++e) {
        double x = Record{codes, width, record(records, codes, width, slot)}.number(e);
        if (at >= 0) x += Record{c->residual, width, record(residuals, c->residual, width, at + slot)}.number(e);
        to.push_back(x);
      }
    };
    for (const LoopCacheRun& run : a.contexts[i].runs)
      for (int64_t slot = run.begin; slot < run.begin + run.length; ++slot) {
        append(keys, c->codes, a.keys, c->residual_keys, slot);
        append(values, loop_whole_codes(c->codes), a.values, c->residual_values, slot);
      }
    for (const LoopCacheRun& run : c->recent[i].runs)
      for (int64_t e = run.begin * width; e < (run.begin + run.length) * width; ++e) {
        keys.push_back(static_cast<const double*>(c->recent_keys)[e]);
        values.push_back(static_cast<const double*>(c->recent_values)[e]);
      }
    for (int32_t head = 0; head < a.heads; ++head) {
      const double* q = static_cast<const double*>(a.qkv) + (i * (a.heads + 2 * a.kv_heads) + head) * a.head_dim;
      const int64_t kv = int64_t(head / (a.heads / a.kv_heads)) * a.head_dim;
      double* out = static_cast<double*>(a.out) + (i * a.heads + head) * a.head_dim;
      std::vector<double> scores;
      for (size_t j = 0; j < keys.size(); j += size_t(width))
        scores.push_back(a.scale * dot(q, &keys[j + size_t(kv)], a.head_dim));
      const double lse = log_sum_exp(scores);
      std::fill(out, out + a.head_dim, 0.0);
      for (size_t j = 0; j < scores.size(); ++j)
        add_scaled(out, std::exp(scores[j] - lse), &values[j * size_t(width) + size_t(kv)], a.head_dim);
    }
  }
  return 0;
}

}  // namespace

void add_coded_cache(LoopBackend& table) {
  table.cache_encode = cache_encode;
  table.cache_decode = cache_decode;
  table.cache_encode_residuals = cache_encode_residuals;
  table.coded_attention = coded_attention;
}

}  // namespace looplm::reference

#include "block_attention.h"

#include <cmath>

namespace looplm {

LoopAttention BlockAttention::arguments(const BlockMemory& b) const {
  LoopAttention a{};
  a.tokens = batch_.tokens;
  a.heads = a_.heads;
  a.kv_heads = a_.kv_heads;
  a.head_dim = a_.head_dim;
  a.scale = 1.0 / std::sqrt(double(a_.head_dim));
  a.segments = batch_.segments;
  a.segment_count = batch_.segment_count;
  a.group_count = batch_.group_count;
  a.max_context = batch_.max_context;
  a.qkv = b.qkv;
  a.out = b.attention;
  a.lse = b.lse;
  return a;
}

void BlockAttention::forward(const BlockMemory& b, int64_t plane) const {
  if (cache_) {
    const Planes p = planes(plane);
    write(b, p);
    if (cache_->contexts) return decode(b, p);
    if (cache_->prefix_rows > 0) return behind_prefixes(b, p);
  }
  const LoopAttention a = arguments(b);
  device_->run(&LoopBackend::attention, "attention", dt_, static_cast<const LoopAttention*>(&a));
}

size_t BlockAttention::slot_bytes(LoopCacheCodes codes) const {
  return codes.bits > 0 ? size_t(loop_record_bytes(codes, a_.kv_width())) : size_t(a_.kv_width()) * act_;
}

size_t BlockAttention::residual_bytes() const { return size_t(loop_record_bytes(cache_->coded.residual, a_.kv_width())); }

BlockAttention::Planes BlockAttention::planes(int64_t plane) const {
  const CodedUse& coded = cache_->coded;
  const auto behind = [](void* base, size_t bytes) { return base ? static_cast<char*>(base) + bytes : nullptr; };
  const size_t recent = size_t(plane * coded.slots * a_.kv_width()) * act_;
  Planes out{nullptr,
             nullptr,
             behind(coded.keys, recent),
             behind(coded.values, recent),
             nullptr,
             nullptr,
             coded.residual.bits > 0 && plane < coded.loop_blocks * cache_->planes};
  int64_t records = plane;
  if (out.of_loop) {
    const int64_t block = plane / cache_->planes, loop = plane % cache_->planes;
    records = block;
    if (cache_->contexts || loop + 1 < coded.loops) {
      const size_t at = size_t((block * (cache_->planes - 1) + loop) * cache_->slots) * residual_bytes();
      out.residual_keys = behind(coded.residual_keys, at), out.residual_values = behind(coded.residual_values, at);
    }
  } else if (coded.residual.bits > 0) {
    records = plane - coded.loop_blocks * (cache_->planes - 1);
  }
  const size_t slots = size_t(records * cache_->slots);
  out.keys = behind(cache_->keys, slots * slot_bytes(coded.codes));
  out.values = behind(cache_->values, slots * slot_bytes(loop_whole_codes(coded.codes)));
  return out;
}

void BlockAttention::write(const BlockMemory& b, const Planes& p) const {
  const CodedUse& coded = cache_->coded;
  const void* qkv = b.qkv;
  void *keys = p.keys, *values = p.values, *recent_keys = p.recent_keys, *recent_values = p.recent_values;
  if (coded.codes.bits == 0) {
    device_->run(&LoopBackend::cache_write, "cache write", dt_, batch_.tokens, a_.heads, a_.kv_heads, a_.head_dim, cache_->rows,
                 qkv, keys, values);
    return;
  }
  if (!p.of_loop)
    device_->run(&LoopBackend::cache_encode, "cache encode", dt_, coded.codes, batch_.tokens, a_.heads, a_.kv_heads, a_.head_dim,
                 cache_->rows, qkv, keys, values);
  for (const auto& [first, count] : coded.runs) {
    const void* rows = static_cast<const char*>(qkv) + size_t(first * a_.qkv_width()) * act_;
    device_->run(&LoopBackend::cache_write, "cache write", dt_, count, a_.heads, a_.kv_heads, a_.head_dim, coded.rows + first,
                 rows, recent_keys, recent_values);
  }
}

void BlockAttention::decode(const BlockMemory& b, const Planes& p) const {
  const LoopAttention a = arguments(b);
  const LoopDecodeAttention d{batch_.tokens, a.heads, a.kv_heads, a.head_dim,       a.scale,
                              b.qkv,         p.keys,  p.values,   cache_->contexts, b.attention};
  const CodedUse& coded = cache_->coded;
  if (coded.codes.bits == 0) {
    device_->run(&LoopBackend::decode_attention, "decode attention", dt_, &d);
    return;
  }
  LoopCodedAttention c{d, coded.codes, p.recent_keys, p.recent_values, coded.contexts, {}, nullptr, nullptr, nullptr};
  if (p.of_loop) {
    c.residual = coded.residual;
    c.residual_keys = p.residual_keys, c.residual_values = p.residual_values, c.residual_at = coded.residual_at;
  }
  device_->run(&LoopBackend::coded_attention, "coded attention", dt_, static_cast<const LoopCodedAttention*>(&c));
}

// Copies (or decodes) the keys or values of earlier tokens into rows of qkv.
void BlockAttention::read_prefix(const CachedPrefix& prefix, LoopCacheCodes codes, const char* plane, const char* residuals,
                                 char* to) const {
  const int64_t qkv = a_.qkv_width(), kv = a_.kv_width();
  const void* from = plane + size_t(prefix.slot) * slot_bytes(codes);
  void* out = to;
  if (codes.bits > 0) {
    const void* added = residuals ? residuals + size_t(prefix.slot) * residual_bytes() : nullptr;
    device_->run(&LoopBackend::cache_decode, "cached prefix", dt_, codes, prefix.length, kv, from, cache_->coded.residual, added,
                 qkv, out);
    return;
  }
  const int64_t shape[] = {prefix.length, kv}, own[] = {kv, 1}, rows[] = {qkv, 1};
  device_->run(&LoopBackend::copy_strided, "cached prefix", dt_, dt_, 2, shape, from, own, out, rows);
}

// The attention kernel reads packed rows. So this copies the cached keys and values into rows before the batch's own.
void BlockAttention::behind_prefixes(const BlockMemory& b, const Planes& p) const {
  const int64_t qkv = a_.qkv_width(), kv = a_.kv_width(), width = a_.attention_width();
  const int64_t rows = cache_->prefix_rows + batch_.tokens, own = cache_->prefix_rows;
  char* extended = static_cast<char*>(memory_.reserve(memory_.extended, size_t(rows * qkv) * act_));
  char* out = static_cast<char*>(memory_.reserve(memory_.extended_out, size_t(rows * width) * act_));
  auto copy = [&](void* to, const void* from, int64_t elements) {
    device_->run(&LoopBackend::copy, "copy", to, from, size_t(elements) * act_);
  };
  copy(extended + size_t(own * qkv) * act_, b.qkv, batch_.tokens * qkv);
  for (int32_t i = 0; i < cache_->prefix_count; i++) {
    const CachedPrefix& prefix = cache_->prefixes[i];
    char* row = extended + size_t(prefix.row * qkv + width) * act_;
    const LoopCacheCodes codes = cache_->coded.codes;
    read_prefix(prefix, codes, p.keys, p.residual_keys, row);
    read_prefix(prefix, loop_whole_codes(codes), p.values, p.residual_values, row + size_t(kv) * act_);
  }
  LoopAttention a = arguments(b);
  a.tokens = rows;
  a.qkv = extended;
  a.out = out;
  a.lse = memory_.reserve(memory_.extended_lse, size_t(rows * a_.heads) * real_);
  device_->run(&LoopBackend::attention, "attention", dt_, static_cast<const LoopAttention*>(&a));
  copy(b.attention, out + size_t(own * width) * act_, batch_.tokens * width);
}

}  // namespace looplm

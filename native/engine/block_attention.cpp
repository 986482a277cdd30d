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
  LoopAttention a = arguments(b);
  if (cache_) {
    const size_t at = size_t(plane) * size_t(cache_->slots) * size_t(a_.kv_width()) * act_;
    void *keys = static_cast<char*>(cache_->keys) + at, *values = static_cast<char*>(cache_->values) + at;
    device_->run(&LoopBackend::cache_write, "cache write", dt_, batch_.tokens, a_.heads, a_.kv_heads, a_.head_dim, cache_->rows,
                 b.qkv, keys, values);
    if (cache_->contexts) {
      LoopDecodeAttention d{batch_.tokens, a.heads, a.kv_heads, a.head_dim,       a.scale,
                            b.qkv,         keys,    values,     cache_->contexts, b.attention};
      device_->run(&LoopBackend::decode_attention, "decode attention", dt_, static_cast<const LoopDecodeAttention*>(&d));
      return;
    }
    if (cache_->prefix_rows > 0) return behind_prefixes(b, keys, values);
  }
  device_->run(&LoopBackend::attention, "attention", dt_, static_cast<const LoopAttention*>(&a));
}

// The attention kernel reads packed rows, so the cached keys and values are laid in front of the batch's own.
void BlockAttention::behind_prefixes(const BlockMemory& b, const void* keys, const void* values) const {
  const int64_t qkv = a_.qkv_width(), kv = a_.kv_width(), width = a_.attention_width();
  const int64_t rows = cache_->prefix_rows + batch_.tokens, own = cache_->prefix_rows;
  char* extended = static_cast<char*>(memory_.reserve(memory_.extended, size_t(rows * qkv) * act_));
  char* out = static_cast<char*>(memory_.reserve(memory_.extended_out, size_t(rows * width) * act_));
  auto copy = [&](void* to, const void* from, int64_t elements) {
    device_->run(&LoopBackend::copy, "copy", to, from, size_t(elements) * act_);
  };
  copy(extended + size_t(own * qkv) * act_, b.qkv, batch_.tokens * qkv);
  for (int32_t i = 0; i < cache_->prefix_count; i++) {
    const CachedPrefix& p = cache_->prefixes[i];
    const int64_t shape[] = {p.length, kv}, from[] = {kv, 1}, to[] = {qkv, 1};
    char* row = extended + size_t(p.row * qkv + width) * act_;
    for (const void* plane : {keys, values}) {
      device_->run(&LoopBackend::copy_strided, "cached prefix", dt_, dt_, 2, shape,
                   static_cast<const char*>(plane) + size_t(p.slot * kv) * act_, from, row, to);
      row += size_t(kv) * act_;
    }
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

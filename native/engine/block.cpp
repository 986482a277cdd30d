#include "block.h"

#include <cmath>

namespace looplm {

Block::Block(std::shared_ptr<Device> device, LoopDType dt, const Architecture& architecture, const Weights& weights,
             const DeviceBatch& batch, const void* rope, const CacheUse* cache, bool backward, StackMemory& memory)
    : device_(std::move(device)),
      dt_(dt),
      a_(architecture),
      batch_(batch),
      rope_(rope),
      cache_(cache),
      memory_(memory),
      linear_(device_, dt, batch.tokens, weights.rank, weights.scale, memory.linear),
      act_(loop_dtype_size(dt)),
      real_(loop_dtype_size(loop_real(dt))) {
  const size_t rows = size_t(batch.tokens), D = size_t(a_.hidden), F = size_t(a_.intermediate);
  x_ = memory.reserve(memory.x, rows * D * act_);
  activation_ = memory.reserve(memory.activation, rows * F * act_);
  if (!backward) return;
  d_activation_ = memory.reserve(memory.d_activation, rows * F * act_);
  d_branch_ = memory.reserve(memory.d_branch, rows * D * act_);
  d_x_ = memory.reserve(memory.d_x, rows * D * act_);
  d_attention_ = memory.reserve(memory.d_attention, rows * size_t(a_.attention_width()) * act_);
  d_qkv_ = memory.reserve(memory.d_qkv, rows * size_t(a_.qkv_width()) * act_);
}

// Every array begins on a line of 64 bytes.
BlockMemory Block::carve(char*& memory) const {
  const size_t rows = size_t(batch_.tokens), D = size_t(a_.hidden);
  auto next = [&](size_t bytes) {
    char* at = memory;
    memory += (bytes + 63) / 64 * 64;
    return static_cast<void*>(at);
  };
  BlockMemory b;
  b.qkv = next(rows * size_t(a_.qkv_width()) * act_);
  b.attention = next(rows * size_t(a_.attention_width()) * act_);
  b.lse = next(rows * size_t(a_.heads) * real_);
  b.branch_1 = next(rows * D * act_);
  b.middle = next(rows * D * act_);
  b.gate_up = next(rows * size_t(2 * a_.intermediate) * act_);
  b.branch_2 = next(rows * D * act_);
  return b;
}
size_t Block::bytes() const {
  char* end = nullptr;
  carve(end);
  return size_t(end - static_cast<char*>(nullptr));
}

LoopAttention Block::attention_arguments(const BlockMemory& b) const {
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

void Block::attend(const BlockMemory& b, int64_t plane) {
  LoopAttention a = attention_arguments(b);
  if (cache_) {
    const size_t at = size_t(plane) * size_t(cache_->slots) * size_t(a_.kv_width()) * act_;
    void *keys = static_cast<char*>(cache_->keys) + at, *values = static_cast<char*>(cache_->values) + at;
    run(&LoopBackend::cache_write, "cache write", N(), a_.heads, a_.kv_heads, a_.head_dim, cache_->rows, b.qkv, keys, values);
    if (cache_->contexts) {
      LoopDecodeAttention d{N(), a.heads, a.kv_heads, a.head_dim, a.scale, b.qkv, keys, values, cache_->contexts, b.attention};
      run(&LoopBackend::decode_attention, "decode attention", static_cast<const LoopDecodeAttention*>(&d));
      return;
    }
    if (cache_->prefix_rows > 0) return attend_behind_prefixes(b, keys, values);
  }
  run(&LoopBackend::attention, "attention", static_cast<const LoopAttention*>(&a));
}

// The attention kernel reads packed rows, so the cached keys and values are laid in front of the batch's own.
void Block::attend_behind_prefixes(const BlockMemory& b, const void* keys, const void* values) {
  const int64_t qkv = a_.qkv_width(), kv = a_.kv_width(), width = a_.attention_width();
  const int64_t rows = cache_->prefix_rows + N(), own = cache_->prefix_rows;
  char* extended = static_cast<char*>(memory_.reserve(memory_.extended, size_t(rows * qkv) * act_));
  char* out = static_cast<char*>(memory_.reserve(memory_.extended_out, size_t(rows * width) * act_));
  auto copy = [&](void* to, const void* from, int64_t elements) {
    device_->run(&LoopBackend::copy, "copy", to, from, size_t(elements) * act_);
  };
  copy(extended + size_t(own * qkv) * act_, b.qkv, N() * qkv);
  for (int32_t i = 0; i < cache_->prefix_count; i++) {
    const CachedPrefix& p = cache_->prefixes[i];
    const int64_t shape[] = {p.length, kv}, from[] = {kv, 1}, to[] = {qkv, 1};
    char* row = extended + size_t(p.row * qkv + width) * act_;
    for (const void* plane : {keys, values}) {
      device_->run(&LoopBackend::copy_strided, "cached prefix", dt_, dt_, 2, shape,
                   static_cast<const void*>(static_cast<const char*>(plane) + size_t(p.slot * kv) * act_), from,
                   static_cast<void*>(row), to);
      row += size_t(kv) * act_;
    }
  }
  LoopAttention a = attention_arguments(b);
  a.tokens = rows;
  a.qkv = extended;
  a.out = out;
  a.lse = memory_.reserve(memory_.extended_lse, size_t(rows * a_.heads) * real_);
  run(&LoopBackend::attention, "attention", static_cast<const LoopAttention*>(&a));
  copy(b.attention, out + size_t(own * width) * act_, N() * width);
}

void Block::forward(const LayerWeights& w, const BlockMemory& b, int64_t plane, const void* in, void* out, const void* next,
                    void* next_out) {
  const int64_t D = a_.hidden;
  linear_.forward(w.qkv, x_, b.qkv);
  run(&LoopBackend::rope, "rope", pairs(), N(), a_.heads + a_.kv_heads, a_.head_dim, a_.qkv_width(), batch_.positions, rope_, 0,
      b.qkv);
  attend(b, plane);
  linear_.forward(w.output, b.attention, b.branch_1);
  run(&LoopBackend::residual_norm, "norm", N(), D, a_.norm_eps, in, b.branch_1, w.attention_norm_2, w.mlp_norm, b.middle, x_);
  linear_.forward(w.gate_up, x_, b.gate_up);
  run(&LoopBackend::swiglu, "swiglu", LOOP_SILU, N(), a_.intermediate, b.gate_up, activation_);
  linear_.forward(w.down, activation_, b.branch_2);
  run(&LoopBackend::residual_norm, "norm", N(), D, a_.norm_eps, b.middle, b.branch_2, w.mlp_norm_2, next, out, next_out);
}

void Block::backward(const LayerWeights& w, const LayerWeights& d, const BlockMemory& b, const void* out, void* dh,
                     const void* next, void* d_next) {
  const int64_t D = a_.hidden;
  const void* dx = next ? d_x_ : nullptr;
  run(&LoopBackend::residual_norm_backward, "norm backward", N(), D, a_.norm_eps, out, b.branch_2, w.mlp_norm_2, next, dx, dh,
      d_branch_, d.mlp_norm_2, d_next);

  linear_.backward_input(w.down, d_branch_, d_activation_);
  run(&LoopBackend::swiglu_backward, "swiglu backward", LOOP_SILU, N(), a_.intermediate, b.gate_up, d_activation_, b.gate_up,
      activation_);
  linear_.backward_weight(w.down, d.down, d_branch_, activation_);

  const void* none = nullptr;
  run(&LoopBackend::residual_norm, "norm", N(), D, a_.norm_eps, b.middle, none, none, w.mlp_norm, static_cast<void*>(nullptr),
      x_);
  linear_.backward_weight(w.gate_up, d.gate_up, b.gate_up, x_);
  linear_.backward_input(w.gate_up, b.gate_up, d_x_);
  run(&LoopBackend::residual_norm_backward, "norm backward", N(), D, a_.norm_eps, b.middle, b.branch_1, w.attention_norm_2,
      w.mlp_norm, d_x_, dh, d_branch_, d.attention_norm_2, d.mlp_norm);

  linear_.backward_weight(w.output, d.output, d_branch_, b.attention);
  linear_.backward_input(w.output, d_branch_, d_attention_);
  LoopAttention a = attention_arguments(b);
  a.dout = d_attention_;
  a.dqkv = d_qkv_;
  run(&LoopBackend::attention_backward, "attention backward", static_cast<const LoopAttention*>(&a));
  run(&LoopBackend::rope, "rope", pairs(), N(), a_.heads + a_.kv_heads, a_.head_dim, a_.qkv_width(), batch_.positions, rope_, 1,
      d_qkv_);
}

void Block::backward_input(const LayerWeights& w, const LayerWeights& d) {
  linear_.backward_weight(w.qkv, d.qkv, d_qkv_, x_);
  linear_.backward_input(w.qkv, d_qkv_, d_x_);
}

}  // namespace looplm

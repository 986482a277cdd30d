#include "stack.h"

#include <cmath>

namespace looplm {

Stack::Stack(std::shared_ptr<Device> device, LoopDType dt, const ModelConfig& config, const Weights& weights,
             Workspace& workspace, const void* rope, const DeviceBatch& batch, int loops, Keep keep, const CacheUse* cache,
             const LatentNoise* noise, bool first_given)
    : device_(std::move(device)),
      dt_(dt),
      config_(config),
      weights_(weights),
      workspace_(workspace),
      rope_(rope),
      batch_(batch),
      loops_(loops),
      keep_(keep),
      cache_(cache),
      noise_(noise),
      first_(first_given ? 1 : 0),
      act_(loop_dtype_size(dt)),
      real_(loop_dtype_size(loop_real(dt))) {
  lay_out();
}

void Stack::lay_out() {
  const size_t N = size_t(batch_.tokens), D = size_t(config_.hidden), F = size_t(config_.intermediate),
               L = size_t(config_.layers), T = size_t(loops_), run = T - size_t(first_);
  const size_t qkv = size_t(config_.qkv_width()), width = size_t(config_.attention_width());
  auto get = [&](const char* name, size_t bytes) { return workspace_.get(name, bytes + 64).as<>(); };
  input_ = get("stack.input", N * D * act_);
  hidden_ = get("stack.hidden", T * N * D * act_);
  size_t state_count = keep_ == Keep::nothing ? 1 : keep_ == Keep::per_loop ? L : run * L;
  size_t block_count = keep_ == Keep::all ? run * L : keep_ == Keep::per_loop ? L : 1;
  states_ = get("stack.states", state_count * N * D * act_);
  block_bytes_ = N * (qkv + width + 3 * D + 2 * F) * act_ + N * size_t(config_.heads) * real_;
  block_bytes_ = (block_bytes_ + 7 * 64 + 63) / 64 * 64;
  blocks_ = get("stack.blocks", block_count * block_bytes_);
  x_ = get("stack.x", N * D * act_);
  activation_ = get("stack.activation", N * F * act_);
  if (keep_ == Keep::nothing) return;
  d_activation_ = get("stack.d_activation", N * F * act_);
  d_branch_ = get("stack.d_branch", N * D * act_);
  d_x_ = get("stack.d_x", N * D * act_);
  d_attention_ = get("stack.d_attention", N * width * act_);
  d_qkv_ = get("stack.d_qkv", N * qkv * act_);
  d_h_ = get("stack.d_h", N * D * real_);
}

Stack::Block Stack::block(int t, int l) const {
  const size_t N = size_t(batch_.tokens), D = size_t(config_.hidden);
  size_t index = keep_ == Keep::all        ? size_t(t - first_) * size_t(config_.layers) + size_t(l)
                 : keep_ == Keep::per_loop ? size_t(l)
                                           : 0;
  char* p = static_cast<char*>(blocks_) + index * block_bytes_;
  auto take = [&](size_t bytes) {
    char* at = p;
    p += (bytes + 63) / 64 * 64;
    return static_cast<void*>(at);
  };
  Block b;
  b.qkv = take(N * size_t(config_.qkv_width()) * act_);
  b.attention = take(N * size_t(config_.attention_width()) * act_);
  b.lse = take(N * size_t(config_.heads) * real_);
  b.branch_1 = take(N * D * act_);
  b.middle = take(N * D * act_);
  b.gate_up = take(N * size_t(2 * config_.intermediate) * act_);
  b.branch_2 = take(N * D * act_);
  return b;
}

void* Stack::hidden_at(int t) const {
  return static_cast<char*>(hidden_) + size_t(t) * size_t(batch_.tokens * config_.hidden) * act_;
}

void* Stack::state(int t, int l) const {
  if (l == 0) return t == 0 ? input_ : hidden_at(t - 1);
  size_t index = keep_ == Keep::nothing    ? 0
                 : keep_ == Keep::per_loop ? size_t(l - 1)
                                           : size_t((t - first_) * config_.layers + l - 1);
  return static_cast<char*>(states_) + index * size_t(batch_.tokens * config_.hidden) * act_;
}

void Stack::gemm(const char* name, int transpose_a, int transpose_b, int64_t m, int64_t n, int64_t k, const void* a, int64_t lda,
                 const void* b, int64_t ldb, void* c, int64_t ldc, int flags) {
  run(&LoopBackend::gemm, name, transpose_a, transpose_b, m, n, k, a, lda, b, ldb, c, ldc, flags);
}
// s x Aᵀ, act [N, rank]
const void* Stack::into_rank(const LowRank& part, const Linear& w, const void* x) {
  const int64_t N = batch_.tokens, r = weights_.rank;
  void* u = workspace_.get("stack.rank", size_t(N * r) * real_).as<>();
  gemm("adapter", 0, 1, N, r, w.in, x, w.in, part.a, w.in, u, r, LOOP_GEMM_REAL_OUT);
  return scaled(*device_, workspace_, dt_, u, N * r, weights_.scale);
}
// s dy B, act [N, rank]
const void* Stack::rank_gradient(const LowRank& part, const Linear& w, const void* dy) {
  const int64_t N = batch_.tokens, r = weights_.rank;
  void* du = workspace_.get("stack.rank", size_t(N * r) * real_).as<>();
  const void* own = static_cast<const char*>(dy) + size_t(part.first) * act_;
  gemm("adapter backward", 0, 0, N, r, part.out, own, w.out, part.b, r, du, r, LOOP_GEMM_REAL_OUT);
  return scaled(*device_, workspace_, dt_, du, N * r, weights_.scale);
}

// With an adapter the sum of the products is real and rounded once.
void Stack::linear(const Linear& w, const void* x, void* y) {
  const int64_t N = batch_.tokens, r = weights_.rank;
  if (w.quantized) return run(&LoopBackend::gemm_quantized, "linear", N, w.out, w.in, x, w.in, w.quantized, y, w.out, 0);
  void* sum = sum_of(w, y, w.out);
  gemm("linear", 0, 1, N, w.out, w.in, x, w.in, w.weight, w.in, sum, w.out, sum == y ? 0 : LOOP_GEMM_REAL_OUT);
  for (const LowRank& part : w.adapters)
    gemm("adapter", 0, 1, N, part.out, r, into_rank(part, w, x), r, part.b, r,
         static_cast<char*>(sum) + size_t(part.first) * real_, w.out, LOOP_GEMM_ACCUMULATE);
  round_sum(sum, y, w.out);
}
void Stack::linear_backward_input(const Linear& w, const void* dy, void* dx) {
  const int64_t N = batch_.tokens, r = weights_.rank;
  void* sum = sum_of(w, dx, w.in);
  gemm("linear backward", 0, 0, N, w.in, w.out, dy, w.out, w.weight, w.in, sum, w.in, sum == dx ? 0 : LOOP_GEMM_REAL_OUT);
  for (const LowRank& part : w.adapters)
    gemm("adapter backward", 0, 0, N, w.in, r, rank_gradient(part, w, dy), r, part.a, w.in, sum, w.in, LOOP_GEMM_ACCUMULATE);
  round_sum(sum, dx, w.in);
}
void Stack::linear_backward_weight(const Linear& w, const Linear& d, const void* dy, const void* x) {
  const int64_t N = batch_.tokens, r = weights_.rank;
  if (d.weight) gemm("weight gradient", 1, 0, w.out, w.in, N, dy, w.out, x, w.in, d.weight, w.in, LOOP_GEMM_ACCUMULATE);
  for (size_t i = 0; i < d.adapters.size(); i++) {
    const LowRank &part = w.adapters[i], &gradient = d.adapters[i];
    const void* own = static_cast<const char*>(dy) + size_t(part.first) * act_;
    gemm("adapter gradient", 1, 0, part.out, r, N, own, w.out, into_rank(part, w, x), r, gradient.b, r, LOOP_GEMM_ACCUMULATE);
    gemm("adapter gradient", 1, 0, r, w.in, N, rank_gradient(part, w, dy), r, x, w.in, gradient.a, w.in, LOOP_GEMM_ACCUMULATE);
  }
}
// Where the sum for act [N, width] is made: there, or where a real sum is needed in scratch, from which round_sum takes it.
void* Stack::sum_of(const Linear& w, void* out, int64_t width) {
  if (w.adapters.empty() || act_ == real_) return out;
  return workspace_.get("stack.sum", size_t(batch_.tokens * width) * real_).as<>();
}
void Stack::round_sum(const void* sum, void* out, int64_t width) {
  if (sum == out) return;
  const int64_t elements = batch_.tokens * width, stride = 1;
  device_->run(&LoopBackend::copy_strided, "cast", loop_real(dt_), dt_, 1, &elements, sum, &stride, out, &stride);
}

void Stack::normalise(const void* h, const void* weight, void* x) {
  const void* none = nullptr;
  run(&LoopBackend::residual_norm, "norm", batch_.tokens, config_.hidden, config_.norm_eps, h, none, none, weight,
      static_cast<void*>(nullptr), x);
}

LoopAttention Stack::attention_arguments(const Block& b) const {
  LoopAttention a{};
  a.tokens = batch_.tokens;
  a.heads = config_.heads;
  a.kv_heads = config_.kv_heads;
  a.head_dim = config_.head_dim;
  a.scale = 1.0 / std::sqrt(double(config_.head_dim));
  a.segments = batch_.segments;
  a.segment_count = batch_.segment_count;
  a.group_count = batch_.group_count;
  a.max_context = batch_.max_context;
  a.qkv = b.qkv;
  a.out = b.attention;
  a.lse = b.lse;
  return a;
}

void Stack::attend(int t, int l, const Block& b) {
  LoopAttention a = attention_arguments(b);
  if (cache_) {
    const size_t loop_plane = cache_->contexts || cache_->planes == 1 ? 0 : size_t(t);
    const size_t plane = size_t(l) * size_t(cache_->planes) + loop_plane;
    const size_t at = plane * size_t(cache_->slots) * size_t(config_.kv_heads * config_.head_dim) * act_;
    void *keys = static_cast<char*>(cache_->keys) + at, *values = static_cast<char*>(cache_->values) + at;
    run(&LoopBackend::cache_write, "cache write", batch_.tokens, config_.heads, config_.kv_heads, config_.head_dim, cache_->rows,
        b.qkv, keys, values);
    if (cache_->contexts) {
      LoopDecodeAttention d{batch_.tokens, a.heads, a.kv_heads, a.head_dim,       a.scale,
                            b.qkv,         keys,    values,     cache_->contexts, b.attention};
      run(&LoopBackend::decode_attention, "decode attention", static_cast<const LoopDecodeAttention*>(&d));
      return;
    }
    if (cache_->prefix_rows > 0) return attend_behind_prefixes(b, keys, values);
  }
  run(&LoopBackend::attention, "attention", static_cast<const LoopAttention*>(&a));
}

// The attention kernel reads packed rows, so the cached keys and values are laid in front of the batch's own.
void Stack::attend_behind_prefixes(const Block& b, const void* keys, const void* values) {
  const int64_t qkv = config_.qkv_width(), kv = int64_t(config_.kv_heads) * config_.head_dim, width = config_.attention_width();
  const int64_t rows = cache_->prefix_rows + batch_.tokens, own = cache_->prefix_rows;
  char* extended = workspace_.get("stack.extended", size_t(rows * qkv) * act_ + 64).as<char>();
  char* out = workspace_.get("stack.extended_out", size_t(rows * width) * act_ + 64).as<char>();
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
                   static_cast<const void*>(static_cast<const char*>(plane) + size_t(p.slot * kv) * act_), from,
                   static_cast<void*>(row), to);
      row += size_t(kv) * act_;
    }
  }
  LoopAttention a = attention_arguments(b);
  a.tokens = rows;
  a.qkv = extended;
  a.out = out;
  a.lse = workspace_.get("stack.extended_lse", size_t(rows * config_.heads) * real_ + 64).as<>();
  run(&LoopBackend::attention, "attention", static_cast<const LoopAttention*>(&a));
  copy(b.attention, out + size_t(own * width) * act_, batch_.tokens * width);
}

void Stack::forward_tokens() {
  run(&LoopBackend::embed, "embed", batch_.tokens, config_.hidden, batch_.ids, static_cast<const void*>(weights_.embedding),
      input_);
  if (noise_at(NoiseSite::embedding)) disturb(0, input_);
  forward_input();
}
void Stack::forward_states(const void* states) {
  device_->run(&LoopBackend::copy, "copy", input_, states, size_t(batch_.tokens * config_.hidden) * act_);
  forward_input();
}
void Stack::forward_input() {
  for (int t = 0; t < loops_; t++) forward_loop(t);
}

void Stack::forward_after_first(const void* first, int copies) {
  const size_t bytes = size_t(batch_.tokens * config_.hidden) * act_ / size_t(copies);
  for (int i = 0; i < copies; i++)
    device_->run(&LoopBackend::copy, "copy", static_cast<void*>(static_cast<char*>(hidden_) + size_t(i) * bytes), first, bytes);
  if (noise_at(NoiseSite::state)) disturb(0, hidden_);
  for (int t = first_; t < loops_; t++) forward_loop(t);
}

void Stack::forward_loop(int t) {
  normalise(state(t, 0), weights_.layers[0].attention_norm, x_);
  for (int l = 0; l < config_.layers; l++) forward_block(t, l);
}

// x_ holds RMS(state(t, l); attention_norm) on entry, and the same of the next block on exit (the last block writes hidden
// instead).
void Stack::forward_block(int t, int l) {
  const LayerWeights& w = weights_.layers[size_t(l)];
  const Block b = block(t, l);
  const int64_t N = batch_.tokens, D = config_.hidden, F = config_.intermediate;
  void* middle = keep_ == Keep::nothing ? state(t, 1) : b.middle;
  linear(w.qkv, x_, b.qkv);
  run(&LoopBackend::rope, "rope", N, config_.heads + config_.kv_heads, config_.head_dim, config_.qkv_width(), batch_.positions,
      rope_, 0, b.qkv);
  attend(t, l, b);
  linear(w.output, b.attention, b.branch_1);
  run(&LoopBackend::residual_norm, "norm", N, D, config_.norm_eps, state(t, l), b.branch_1, w.attention_norm_2, w.mlp_norm,
      middle, x_);
  linear(w.gate_up, x_, b.gate_up);
  run(&LoopBackend::swiglu, "swiglu", N, F, b.gate_up, activation_);
  linear(w.down, activation_, b.branch_2);
  const bool last = l + 1 == config_.layers, noisy = last && noise_at(NoiseSite::residual);
  run(&LoopBackend::residual_norm, "norm", N, D, config_.norm_eps, middle, b.branch_2, w.mlp_norm_2,
      noisy ? nullptr : norm_after(l, weights_), state(t, l + 1), last ? hidden_at(t) : x_);
  if (noisy) {
    disturb(t, state(t, l + 1));
    normalise(state(t, l + 1), weights_.norm, hidden_at(t));
  }
  if (last && noise_at(NoiseSite::state)) disturb(t, hidden_at(t));
}

// x [N, D] += the noise of loop t
void Stack::disturb(int t, void* x) {
  const int64_t elements = batch_.tokens * config_.hidden, stride = 1;
  if (noise_->given) {
    const void* own = static_cast<const char*>(noise_->given) + size_t(t * elements) * act_;
    device_->run(&LoopBackend::binary, "noise", dt_, LOOP_ADD, 1, &elements, static_cast<const void*>(x), &stride, own, &stride,
                 x);
    return;
  }
  const int64_t rows = batch_.tokens / int64_t(noise_->sigma.size());
  for (int64_t i = 0; i < int64_t(noise_->sigma.size()); i++)
    run(&LoopBackend::add_noise, "noise", rows, config_.hidden, noise_->sigma[size_t(i)], noise_->seed, uint32_t(t),
        noise_->streams + i * rows, batch_.positions + i * rows,
        static_cast<void*>(static_cast<char*>(x) + size_t(i * rows * config_.hidden) * act_));
}

void Stack::gate_logits(void* out) {
  run(&LoopBackend::gate, "gate", loops_ * batch_.tokens, config_.hidden, hidden_, weights_.gate_weight, weights_.gate_bias, out);
}

void Stack::backward(const Weights& g, void* d_hidden) {
  const int64_t elements = batch_.tokens * config_.hidden;
  const LoopDType real = loop_real(dt_);
  const int64_t stride = 1;
  void* none = nullptr;
  for (int t = loops_ - 1; t >= first_; t--) {
    void* d_out = static_cast<char*>(d_hidden) + size_t(t * elements) * real_;
    device_->run(&LoopBackend::copy_strided, "cast", real, dt_, 1, &elements, d_out, &stride, d_x_, &stride);
    device_->run(&LoopBackend::zero, "zero", d_h_, size_t(elements) * real_);
    if (keep_ == Keep::per_loop && t + 1 < loops_) forward_loop(t);
    for (int l = config_.layers - 1; l >= 0; l--) backward_block(t, l, g);
    run(&LoopBackend::residual_norm_backward, "norm backward", batch_.tokens, config_.hidden, config_.norm_eps, state(t, 0), none,
        none, weights_.layers[0].attention_norm, d_x_, d_h_, none, none, g.layers[0].attention_norm);
    if (t == 0) break;
    void* d_previous = static_cast<char*>(d_hidden) + size_t((t - 1) * elements) * real_;
    device_->run(&LoopBackend::binary, "add", real, LOOP_ADD, 1, &elements, d_previous, &stride, d_h_, &stride, d_previous);
  }
  if (first_ == 0 && g.embedding)
    run(&LoopBackend::embed_backward, "embed backward", batch_.tokens, config_.hidden, config_.vocabulary, batch_.ids, d_h_,
        g.embedding);
}

// d_x_: gradient of the normed state after this block; d_h_: gradient of its residual state from elsewhere. On exit the same of
// the block before.
void Stack::backward_block(int t, int l, const Weights& g) {
  const LayerWeights &w = weights_.layers[size_t(l)], &d = g.layers[size_t(l)];
  const Block b = block(t, l);
  const int64_t N = batch_.tokens, D = config_.hidden, F = config_.intermediate;
  const bool last = t + 1 == loops_ && l + 1 == config_.layers;  // still there from the forward
  if (keep_ == Keep::per_layer && !last) {
    normalise(state(t, l), w.attention_norm, x_);
    forward_block(t, l);
  }
  run(&LoopBackend::residual_norm_backward, "norm backward", N, D, config_.norm_eps, state(t, l + 1), b.branch_2, w.mlp_norm_2,
      norm_after(l, weights_), d_x_, d_h_, d_branch_, d.mlp_norm_2, const_cast<void*>(norm_after(l, g)));

  linear_backward_input(w.down, d_branch_, d_activation_);
  run(&LoopBackend::swiglu_backward, "swiglu backward", N, F, b.gate_up, d_activation_, b.gate_up, activation_);
  linear_backward_weight(w.down, d.down, d_branch_, activation_);

  normalise(b.middle, w.mlp_norm, x_);
  linear_backward_weight(w.gate_up, d.gate_up, b.gate_up, x_);
  linear_backward_input(w.gate_up, b.gate_up, d_x_);
  run(&LoopBackend::residual_norm_backward, "norm backward", N, D, config_.norm_eps, b.middle, b.branch_1, w.attention_norm_2,
      w.mlp_norm, d_x_, d_h_, d_branch_, d.attention_norm_2, d.mlp_norm);

  linear_backward_weight(w.output, d.output, d_branch_, b.attention);
  linear_backward_input(w.output, d_branch_, d_attention_);
  LoopAttention a = attention_arguments(b);
  a.dout = d_attention_;
  a.dqkv = d_qkv_;
  run(&LoopBackend::attention_backward, "attention backward", static_cast<const LoopAttention*>(&a));
  run(&LoopBackend::rope, "rope", N, config_.heads + config_.kv_heads, config_.head_dim, config_.qkv_width(), batch_.positions,
      rope_, 1, d_qkv_);
  normalise(state(t, l), w.attention_norm, x_);
  linear_backward_weight(w.qkv, d.qkv, d_qkv_, x_);
  linear_backward_input(w.qkv, d_qkv_, d_x_);
}

}  // namespace looplm

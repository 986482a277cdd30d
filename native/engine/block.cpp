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
      attention_(device_, dt, a_, batch_, cache, memory),
      replay_(device_, dt, a_, batch_, backward, memory),
      linear_(device_, dt, batch.tokens, weights.rank, weights.scale, memory.linear),
      shift_(device_, dt, batch.tokens, architecture.hidden, memory.shift),
      shift_rank_(weights.shift_rank),
      act_(loop_dtype_size(dt)),
      real_(loop_dtype_size(loop_real(dt))) {
  if (!batch.loops.empty()) linear_.at_loops(batch.loops);
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

// Every array starts at a multiple of 64 bytes.
BlockMemory Block::carve(char*& memory) const {
  const size_t rows = size_t(batch_.tokens), D = size_t(a_.hidden);
  auto next = [&](size_t bytes) {
    char* at = memory;
    memory += (bytes + 63) / 64 * 64;
    return at;
  };
  BlockMemory b;
  b.qkv = next(rows * size_t(a_.qkv_width()) * act_);
  b.attention = next(rows * size_t(a_.attention_width()) * act_);
  b.lse = next(rows * size_t(a_.heads) * real_);
  b.branch_1 = next(rows * D * act_);
  b.middle = next(rows * D * act_);
  b.gate_up = next(rows * size_t(2 * a_.intermediate) * act_);
  b.branch_2 = next(rows * D * act_);
  if (a_.residual == Residual::normed) b.sum_1 = next(rows * D * act_), b.sum_2 = next(rows * D * act_);
  if (a_.query_key_norm != QueryKeyNorm::none) {
    b.queries = next(rows * size_t(a_.attention_width()) * act_);
    b.keys = next(rows * size_t(a_.kv_width()) * act_);
  }
  if (a_.attention_gate) b.gated = next(rows * size_t(2 * a_.attention_width()) * act_);
  if (shift_rank_ > 0) b.shift = next(rows * size_t(2 * shift_rank_) * act_);
  return b;
}
size_t Block::bytes() const {
  char* end = nullptr;
  carve(end);
  return size_t(end - static_cast<char*>(nullptr));
}

// The input of an MLP that also sees the previous token: x̃ (shift.h). With a KV cache, y is stored for the tokens that
// follow.
const void* Block::edit(const Shift& w, const BlockMemory& b, int64_t plane, const void* x) {
  ShiftSource source{batch_.previous, {}, nullptr, nullptr, nullptr};
  std::vector<int64_t> earlier;  // cache slots of the tokens before the batch's first rows
  if (cache_ && !cache_->contexts)
    for (int32_t i = 0; i < cache_->prefix_count; i++)
      if (const int64_t before = cache_->prefixes[i].before; before >= 0) earlier.push_back(before);
  const void* y = shift_.states(w, x, int64_t(earlier.size()));
  if (cache_) {
    const auto at = [&](void* base, int64_t slot) {
      return static_cast<char*>(base) + size_t((plane * cache_->slots + slot) * w.rank) * act_;
    };
    void *p = at(cache_->shift_p, 0), *a = at(cache_->shift_a, 0);
    run(&LoopBackend::cache_write, "shift", N(), 0, 1, int32_t(w.rank), cache_->rows, y, p, a);
    for (int64_t slot : earlier)
      for (void* half : {cache_->shift_p, cache_->shift_a}) source.earlier.push_back(at(half, slot));
    if (cache_->contexts) source.slots = cache_->before, source.cached_p = p, source.cached_a = a, source.first = cache_->first;
  }
  return shift_.forward(w, x, source, b.shift);
}

// ---- The residual stream ----

// out = h joined with the branch, according to the residual type, and next_out = RMS(out; next).
void Block::join(const void* h, const void* branch, const void* w_out, void* sum, void* out, const void* next, void* next_out) {
  const auto norm = [&](const void* from, const void* added, const void* w_branch, const void* w_next, void* to, void* x) {
    run(&LoopBackend::residual_norm, "norm", N(), a_.hidden, a_.norm_eps, from, added, w_branch, w_next, to, x);
  };
  if (a_.residual != Residual::normed) return norm(h, branch, norms_output(a_.residual) ? w_out : nullptr, next, out, next_out);
  norm(h, branch, nullptr, w_out, sum, out);
  if (next) norm(out, nullptr, nullptr, next, nullptr, next_out);
}

// On entry, dh is ∂L/∂out without the part that comes through the norm `next`; that part is in d_x. On exit, dh is ∂L/∂h, and
// d_branch_ is ∂L/∂branch.
void Block::join_backward(const void* branch, const void* w_out, void* dw_out, const void* sum, const void* out, void* dh,
                          const void* next, void* d_next) {
  const auto norm = [&](const void* at, const void* added, const void* w_branch, const void* w_next, void* dw_branch,
                        void* dw_next) {
    const void* dx = w_next ? d_x_ : nullptr;
    run(&LoopBackend::residual_norm_backward, "norm backward", N(), a_.hidden, a_.norm_eps, at, added, w_branch, w_next, dx, dh,
        d_branch_, dw_branch, dw_next);
  };
  if (a_.residual != Residual::normed)
    return norm(out, branch, norms_output(a_.residual) ? w_out : nullptr, next, dw_out, d_next);
  if (next) norm(out, nullptr, nullptr, next, nullptr, d_next);
  const int64_t elements = N() * a_.hidden, stride = 1;
  device_->run(&LoopBackend::copy_strided, "cast", loop_real(dt_), dt_, 1, &elements, dh, &stride, d_x_, &stride);
  device_->run(&LoopBackend::zero, "zero", dh, size_t(elements) * real_);
  norm(sum, branch, nullptr, w_out, nullptr, dw_out);
}

void Block::add_d_x(void* dh) {
  const int64_t elements = N() * a_.hidden, stride = 1;
  const LoopDType real = loop_real(dt_);
  const void* dx = d_x_;
  if (real != dt_) {
    void* wide = memory_.reserve(memory_.real, size_t(elements) * real_);
    device_->run(&LoopBackend::copy_strided, "cast", dt_, real, 1, &elements, dx, &stride, wide, &stride);
    dx = wide;
  }
  device_->run(&LoopBackend::binary, "add", real, LOOP_ADD, 1, &elements, dh, &stride, dx, &stride, dh);
}

// ---- Queries, keys, values and the output gate ----

void Block::copy_columns(const void* from, int64_t from_width, void* to, int64_t to_width, int64_t columns) {
  const int64_t shape[] = {N(), columns}, in[] = {from_width, 1}, out[] = {to_width, 1};
  device_->run(&LoopBackend::copy_strided, "columns", dt_, dt_, 2, shape, from, in, to, out);
}

void Block::project(const LayerWeights& w, const BlockMemory& b, const void* x) {
  if (!a_.attention_gate) return linear_.forward(w.qkv, x, b.qkv);
  const int64_t rows = a_.attention_rows(), width = a_.attention_width(), qkv = a_.qkv_width();
  void* all = memory_.reserve(memory_.projected, size_t(N() * rows) * act_);
  linear_.forward(w.qkv, x, all);
  copy_columns(all, rows, b.gated, 2 * width, width);
  copy_columns(column(all, width), rows, b.qkv, qkv, qkv);
}

void Block::norm_heads(const LayerWeights& w, const BlockMemory& b) {
  if (a_.query_key_norm == QueryKeyNorm::none) return;
  const auto norm = [&](int64_t first, int64_t width, const void* weight, void* before) {
    const int64_t d = a_.query_key_norm == QueryKeyNorm::head ? a_.head_dim : width;
    const void* none = nullptr;
    void* normed = memory_.reserve(memory_.heads, size_t(N() * width) * act_);
    copy_columns(column(b.qkv, first), a_.qkv_width(), before, width, width);
    run(&LoopBackend::residual_norm, "head norm", N() * (width / d), d, a_.norm_eps, before, none, none, weight, nullptr, normed);
    copy_columns(normed, width, column(b.qkv, first), a_.qkv_width(), width);
  };
  norm(0, a_.attention_width(), w.query_norm, b.queries);
  norm(a_.attention_width(), a_.kv_width(), w.key_norm, b.keys);
}
void Block::norm_heads_backward(const LayerWeights& w, const LayerWeights& gradient, const BlockMemory& b) {
  if (a_.query_key_norm == QueryKeyNorm::none) return;
  const auto norm = [&](int64_t first, int64_t width, const void* weight, void* d_weight, const void* before) {
    const int64_t d = a_.query_key_norm == QueryKeyNorm::head ? a_.head_dim : width;
    void* none = nullptr;
    void *dx = memory_.reserve(memory_.heads, size_t(N() * width) * act_),
         *dh = memory_.reserve(memory_.real, size_t(N() * width) * real_);
    copy_columns(column(d_qkv_, first), a_.qkv_width(), dx, width, width);
    device_->run(&LoopBackend::zero, "zero", dh, size_t(N() * width) * real_);
    run(&LoopBackend::residual_norm_backward, "head norm backward", N() * (width / d), d, a_.norm_eps, before, none, none, weight,
        dx, dh, none, none, d_weight);
    const int64_t shape[] = {N(), width}, in[] = {width, 1}, out[] = {a_.qkv_width(), 1};
    device_->run(&LoopBackend::copy_strided, "columns", loop_real(dt_), dt_, 2, shape, dh, in, column(d_qkv_, first), out);
  };
  norm(0, a_.attention_width(), w.query_norm, gradient.query_norm, b.queries);
  norm(a_.attention_width(), a_.kv_width(), w.key_norm, gradient.key_norm, b.keys);
}

// The input of the output projection: the attention heads, or σ(gate) · heads.
const void* Block::gate_heads(const BlockMemory& b) {
  if (!a_.attention_gate) return b.attention;
  const int64_t width = a_.attention_width();
  void* out = memory_.reserve(memory_.heads, size_t(N() * width) * act_);
  copy_columns(b.attention, width, column(b.gated, width), 2 * width, width);
  run(&LoopBackend::swiglu, "output gate", LOOP_SIGMOID, N(), width, b.gated, out);
  return out;
}
// From d_branch_ to d_attention_. The gradient of the gate overwrites the gate.
void Block::output_backward(const LayerWeights& w, const LayerWeights& d, const BlockMemory& b) {
  linear_.backward_input(w.output, d_branch_, d_attention_);
  if (!a_.attention_gate) return linear_.backward_weight(w.output, d.output, d_branch_, b.attention);
  const int64_t width = a_.attention_width();
  void* out = memory_.reserve(memory_.heads, size_t(N() * width) * act_);
  run(&LoopBackend::swiglu_backward, "output gate backward", LOOP_SIGMOID, N(), width, b.gated, d_attention_, b.gated, out);
  linear_.backward_weight(w.output, d.output, d_branch_, out);
  copy_columns(column(b.gated, width), 2 * width, d_attention_, width, width);
}

// ---- The block ----

void Block::forward(const LayerWeights& w, const BlockMemory& b, int64_t plane, const void* in, void* out, const void* next,
                    void* next_out) {
  project(w, b, input(in));
  norm_heads(w, b);
  run(&LoopBackend::rope, "rope", pairs(), N(), a_.heads + a_.kv_heads, a_.head_dim, a_.qkv_width(), batch_.positions, rope_, 0,
      b.qkv);
  replay_.forward(loop_, block_, b.qkv);
  attention_.forward(b, plane);
  linear_.forward(w.output, gate_heads(b), b.branch_1);
  join(in, b.branch_1, w.attention_norm_2, b.sum_1, b.middle, norms_input(a_.residual) ? w.mlp_norm : nullptr, x_);
  const void* x = input(b.middle);
  linear_.forward(w.gate_up, w.shift ? edit(w.shift, b, plane, x) : x, b.gate_up);
  run(&LoopBackend::swiglu, "swiglu", LOOP_SILU, N(), a_.intermediate, b.gate_up, activation_);
  linear_.forward(w.down, activation_, b.branch_2);
  join(b.middle, b.branch_2, w.mlp_norm_2, b.sum_2, out, next, next_out);
}

void Block::backward(const LayerWeights& w, const LayerWeights& d, const BlockMemory& b, const void* out, void* dh,
                     const void* next, void* d_next) {
  join_backward(b.branch_2, w.mlp_norm_2, d.mlp_norm_2, b.sum_2, out, dh, next, d_next);
  linear_.backward_input(w.down, d_branch_, d_activation_);
  run(&LoopBackend::swiglu_backward, "swiglu backward", LOOP_SILU, N(), a_.intermediate, b.gate_up, d_activation_, b.gate_up,
      activation_);
  linear_.backward_weight(w.down, d.down, d_branch_, activation_);

  const bool norm = norms_input(a_.residual);
  const void* none = nullptr;
  if (norm) run(&LoopBackend::residual_norm, "norm", N(), a_.hidden, a_.norm_eps, b.middle, none, none, w.mlp_norm, nullptr, x_);
  const void* x = input(b.middle);
  linear_.backward_weight(w.gate_up, d.gate_up, b.gate_up, w.shift ? shift_.edited(w.shift, x, b.shift) : x);
  linear_.backward_input(w.gate_up, b.gate_up, d_x_);
  if (w.shift) shift_.backward(w.shift, d.shift, x, batch_.previous, b.shift, d_x_);
  if (!norm) add_d_x(dh);
  join_backward(b.branch_1, w.attention_norm_2, d.attention_norm_2, b.sum_1, b.middle, dh, norm ? w.mlp_norm : nullptr,
                d.mlp_norm);

  output_backward(w, d, b);
  LoopAttention a = attention_.arguments(b);
  a.dout = d_attention_;
  a.dqkv = d_qkv_;
  run(&LoopBackend::attention_backward, "attention backward", static_cast<const LoopAttention*>(&a));
  replay_.backward(loop_, block_, d_qkv_);
  run(&LoopBackend::rope, "rope", pairs(), N(), a_.heads + a_.kv_heads, a_.head_dim, a_.qkv_width(), batch_.positions, rope_, 1,
      d_qkv_);
  norm_heads_backward(w, d, b);
}

void Block::backward_input(const LayerWeights& w, const LayerWeights& d, const BlockMemory& b, const void* in) {
  const void* dy = d_qkv_;
  if (a_.attention_gate) {
    const int64_t rows = a_.attention_rows(), width = a_.attention_width(), qkv = a_.qkv_width();
    void* all = memory_.reserve(memory_.projected, size_t(N() * rows) * act_);
    copy_columns(b.gated, 2 * width, all, rows, width);
    copy_columns(d_qkv_, qkv, column(all, width), rows, qkv);
    dy = all;
  }
  linear_.backward_weight(w.qkv, d.qkv, dy, input(in));
  linear_.backward_input(w.qkv, dy, d_x_);
}

}  // namespace looplm

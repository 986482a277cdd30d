#include "stack_backward.h"

#include <algorithm>
#include <utility>

namespace looplm {

StackBackward::StackBackward(Stack& stack, const Weights& gradients, GradientsFinal final)
    : s_(stack),
      g_(gradients),
      a_(stack.a_),
      device_(*stack.device_),
      dt_(stack.dt_),
      weights_(stack.weights_),
      batch_(stack.batch_),
      real_(stack.real_),
      act_(stack.act_),
      block_(stack.block_),
      final_(std::move(final)) {}

// d_embedded: real [N, D]. Moves the gradient of given vectors to d_vectors and zeros these rows, so that no token's
// embedding gets it.
void StackBackward::take_vector_gradients(void* d_embedded) {
  const size_t row = size_t(a_.hidden) * real_;
  char* to = static_cast<char*>(batch_.d_vectors);
  for (const VectorRun& v : batch_.vector_runs) {
    void* from = static_cast<char*>(d_embedded) + size_t(v.token) * row;
    const size_t bytes = size_t(v.count) * row;
    if (to) {
      const int64_t elements = v.count * a_.hidden, stride = 1;
      device_.run(&LoopBackend::binary, "gradient of input vectors", loop_real(dt_), LOOP_ADD, 1, &elements, to, &stride, from,
                  &stride, to);
      to += bytes;
    }
    device_.run(&LoopBackend::zero, "gradient of input vectors", from, bytes);
  }
}

void StackBackward::inject_backward(const Run& r, RegisterGradients& d) {
  const int64_t N = batch_.tokens, D = a_.hidden;
  const Step& s = *r.step;
  const Linear& w = weights_.injections[size_t(s.index)];
  void *dy = block_.d_x(), *dw = g_.injections[size_t(s.index)].weight;
  cast_gradient(d.at[size_t(s.to)], dy);
  if (dw) {
    s_.run(&LoopBackend::gemm, "inject gradient", 1, 0, D, D, N, dy, D, r.in, D, dw, 2 * D, int(LOOP_GEMM_ACCUMULATE));
    s_.run(&LoopBackend::gemm, "inject gradient", 1, 0, D, D, N, dy, D, r.from, D, s_.right_half(dw, real_), 2 * D,
           int(LOOP_GEMM_ACCUMULATE));
  }
  void* d_from = d.at[size_t(s.from)] ? d.at[size_t(s.from)] : zeroed(d, s.from);
  s_.run(&LoopBackend::gemm, "inject backward", 0, 0, N, D, D, dy, D, s_.right_half(w.weight, act_), 2 * D, d_from, D,
         int(LOOP_GEMM_ACCUMULATE));
  s_.run(&LoopBackend::gemm, "inject backward", 0, 0, N, D, D, dy, D, w.weight, 2 * D, d.at[size_t(s.to)], D,
         int(LOOP_GEMM_REAL_OUT));
}

void* StackBackward::zeroed(RegisterGradients& d, int32_t to) {
  void* own = d.own[size_t(to)];
  device_.run(&LoopBackend::zero, "zero", own, size_t(batch_.tokens * a_.hidden) * real_);
  return d.at[size_t(to)] = own;
}
// at[to] += from; the sum may stay in the buffer of `from`.
void StackBackward::add_to(RegisterGradients& d, int32_t to, void* from) {
  void*& at = d.at[size_t(to)];
  if (at) {
    const int64_t elements = batch_.tokens * a_.hidden, stride = 1;
    device_.run(&LoopBackend::binary, "add", loop_real(dt_), LOOP_ADD, 1, &elements, from, &stride, at, &stride, from);
  }
  at = from;
}

// at[to] += from, without changing `from`.
void StackBackward::copy_to(RegisterGradients& d, int32_t to, const void* from) {
  void*& at = d.at[size_t(to)];
  const int64_t elements = batch_.tokens * a_.hidden, stride = 1;
  if (at) {
    device_.run(&LoopBackend::binary, "add", loop_real(dt_), LOOP_ADD, 1, &elements, at, &stride, from, &stride, at);
    return;
  }
  at = d.own[size_t(to)];
  device_.run(&LoopBackend::copy, "copy", at, from, size_t(elements) * real_);
}
void StackBackward::cast_gradient(const void* from, void* to) {
  const int64_t elements = batch_.tokens * a_.hidden, stride = 1;
  device_.run(&LoopBackend::copy_strided, "cast", loop_real(dt_), dt_, 1, &elements, from, &stride, to, &stride);
}

// Lists the steps in the order in which their gradients are added.
void StackBackward::list_backward_steps() {
  std::vector<const Step*> order;
  const auto back = [&](const Program& program) {
    for (auto run = program.rbegin(); run != program.rend(); ++run) order.push_back(run->step);
  };
  for (int t = s_.loops_ - 1; t >= std::max(0, s_.first_ - 1); t--) {
    if (s_.slot(t) >= 0 && !s_.reads_.empty()) back(s_.reads_[size_t(s_.slot(t))]);
    if (t >= s_.first_ && s_.carries(t)) back(s_.programs_[size_t(t)]);
  }
  if (s_.first_ == 0) back(s_.begin_);
  final_gradients_.emplace(s_.model_, order);
  steps_back_ = 0;
}
// Called at the beginning of a step. The norm of the step before may still be pending, so only the steps before that are
// final.
void StackBackward::announce_final() {
  if (final_ && steps_back_ > 0) final_(final_gradients_->from(steps_back_ - 1));
  steps_back_++;
}

void StackBackward::run(void* d_hidden) {
  if (final_) list_backward_steps();
  block_.begin_backward();
  const size_t R = size_t(a_.registers), bytes = size_t(batch_.tokens * a_.hidden) * real_;
  char* own = static_cast<char*>(s_.memory_.reserve(s_.memory_.d_registers, (s_.reads_.empty() ? 1 : 2) * R * bytes));
  RegisterGradients d{{}, std::vector<void*>(R, nullptr)}, of_read = d;
  for (size_t r = 0; r < R; r++) d.own.push_back(own + r * bytes), of_read.own.push_back(own + (R + r) * bytes);
  for (int t = s_.loops_ - 1; t >= 0; t--) {
    if (s_.slot(t) >= 0) backward_read(t, static_cast<char*>(d_hidden) + size_t(s_.slot(t)) * bytes, d, of_read);
    if (t < s_.first_) return;
    if (!s_.carries(t)) continue;
    if (s_.keep_ == Stack::Keep::per_loop && s_.newest_loop_ != &s_.programs_[size_t(t)]) s_.forward(s_.programs_[size_t(t)]);
    backward(s_.programs_[size_t(t)], d);
    if (t > s_.first_ && !s_.carries(t - 1))  // the values that earlier loops wrote are constants
      for (size_t r = 0; r < R; r++)
        if (s_.writes(int32_t(r))) d.at[r] = nullptr;
  }
  backward(s_.begin_, d);
  if (final_) final_(0);
}

// d_read: ∂L/∂hidden of the loop. If the loop carries no gradient, d_read does not reach the registers that loops write.
void StackBackward::backward_read(int t, void* d_read, RegisterGradients& d, RegisterGradients& of_read) {
  if (s_.reads_.empty()) {
    if (t < s_.first_ || s_.carries(t)) add_to(d, 0, d_read);
    return;
  }
  const Program& read = s_.reads_[size_t(s_.slot(t))];
  if (s_.keep_ == Stack::Keep::per_loop && s_.newest_read_ != &read) s_.forward(read);
  of_read.at.assign(d.at.size(), nullptr);
  of_read.at[0] = d_read;
  backward(read, of_read);
  for (size_t r = 0; r < d.at.size(); r++)
    if (of_read.at[r] && (t < s_.first_ || s_.carries(t) || !s_.writes(int32_t(r)))) copy_to(d, int32_t(r), of_read.at[r]);
}

void StackBackward::backward(const Program& program, RegisterGradients& d) {
  const int64_t elements = batch_.tokens * a_.hidden, stride = 1;
  for (size_t i = program.size(); i-- > 0;) {
    const Run& r = program[i];
    const Step& s = *r.step;
    announce_final();
    if (r.constant) {
      flush(d);
      d.at[size_t(s.to)] = nullptr;
      continue;
    }
    if (s.kind == Step::Kind::block) {
      backward_block(program, i, d);
      continue;
    }
    flush(d);
    void*& at = d.at[size_t(s.to)];
    if (!at) continue;
    switch (s.kind) {
      case Step::Kind::embed:
        take_vector_gradients(at);
        if (weights_.embedding_scale_real) {
          const int64_t same = 0;
          device_.run(&LoopBackend::binary, "embedding scale", loop_real(dt_), LOOP_MULTIPLY, 1, &elements, at, &stride,
                      weights_.embedding_scale_real, &same, at);
        }
        if (g_.embedding)
          s_.run(&LoopBackend::embed_backward, "embed backward", batch_.tokens, a_.hidden, a_.vocabulary, batch_.ids, at,
                 g_.embedding);
        at = nullptr;
        break;
      case Step::Kind::norm:
        cast_gradient(at, block_.d_x());
        zeroed(d, s.to);
        pending_ = {s.to, r.in, s_.norm_weight(s.index), s.index < 0 ? nullptr : g_.norms[size_t(s.index)]};
        break;
      case Step::Kind::add:
        copy_to(d, s.from, at);
        break;
      case Step::Kind::copy:
        copy_to(d, s.from, at);
        at = nullptr;
        break;
      case Step::Kind::inject:
        inject_backward(r, d);
        break;
      case Step::Kind::start:
      case Step::Kind::state:
        at = nullptr;
        break;
      case Step::Kind::block:
        break;
    }
  }
  flush(d);
}

void StackBackward::backward_block(const Program& program, size_t i, RegisterGradients& d) {
  const Run &r = program[i], *after = i + 1 < program.size() ? &r + 1 : nullptr;
  const LayerWeights &w = weights_.layers[size_t(r.step->index)], &dw = g_.layers[size_t(r.step->index)];
  if (pending_ && (pending_->to != r.step->to || !pending_->weight)) flush(d);
  if (!pending_ && !d.at[size_t(r.step->to)]) return;
  void* dh = d.at[size_t(r.step->to)] ? d.at[size_t(r.step->to)] : zeroed(d, r.step->to);
  if (s_.keep_ == Stack::Keep::per_layer && s_.newest_block_ != &r) s_.forward_block(r, nullptr, after);
  const Pending next = pending_.value_or(Pending{});
  block_.at(r.loop, r.plane);
  block_.backward(w, dw, r.block, r.out, dh, next.weight, next.d_weight);
  const bool norms = norms_input(a_.residual);
  if (norms) s_.normalise(r.in, w.attention_norm, block_.x());
  block_.backward_input(w, dw, r.block, r.in);
  pending_ = {r.step->to, r.in, norms ? w.attention_norm : nullptr, dw.attention_norm};
}

// Applies the pending norm, or adds the pending gradient if it has no norm.
void StackBackward::flush(RegisterGradients& d) {
  if (!pending_) return;
  if (!pending_->weight) {
    block_.add_d_x(d.at[size_t(pending_->to)]);
    pending_.reset();
    return;
  }
  void* none = nullptr;
  s_.run(&LoopBackend::residual_norm_backward, "norm backward", batch_.tokens, a_.hidden, a_.norm_eps, pending_->value, none,
         none, pending_->weight, block_.d_x(), d.at[size_t(pending_->to)], none, none, pending_->d_weight);
  pending_.reset();
}

}  // namespace looplm

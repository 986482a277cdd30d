#include "stack.h"

#include <algorithm>
#include <utility>

#include "stack_backward.h"

namespace looplm {

Stack::Stack(Model& model, const Weights& weights, const DeviceBatch& batch, const LoopPlan& plan, Keep keep,
             const CacheUse* cache, const LatentNoise* noise, bool first_given)
    : StackLayout(model, weights, batch, plan, keep, cache, first_given),
      model_(model),
      device_(model.device),
      dt_(model.dt),
      noise_(noise) {}

void Stack::forward_tokens() {
  forward(begin_);
  forward_input();
}
void Stack::forward_states(const void* states) {
  device_->run(&LoopBackend::copy, "copy", input(), states, state_bytes_);
  forward_input();
}
void Stack::forward_input() {
  for (int t = first_; t < loops_; t++) {
    forward(programs_[size_t(t)]);
    if (!reads_.empty() && slot(t) >= 0) forward(reads_[size_t(slot(t))]);
  }
}

void Stack::forward_begin(const Registers& to) {
  begin_ = place_begin(to);
  forward(begin_);
}
void Stack::forward_loops(const std::function<void(int t)>& after) {
  for (int t = 0; t < loops_; t++) {
    forward(programs_[size_t(t)]);
    if (after) after(t);
  }
}
void Stack::forward_last_read() { forward(reads_.back()); }
void Stack::forward_read(const Registers& from) {
  reads_.assign(1, place_read(from));
  forward_last_read();
}

void Stack::forward_after_first(const void* first, int copies) {
  const size_t bytes = state_bytes_ / size_t(copies);
  for (int i = 0; i < copies; i++)
    device_->run(&LoopBackend::copy, "copy", static_cast<char*>(hidden_) + size_t(i) * bytes, first, bytes);
  if (noise_at(NoiseSite::state)) add_noise(0, hidden_);
  forward_input();
}

void Stack::normalise(const void* h, const void* weight, void* x) {
  const void* none = nullptr;
  run(&LoopBackend::residual_norm, "norm", batch_.tokens, a_.hidden, a_.norm_eps, h, none, none, weight, nullptr, x);
}

void Stack::forward(const Program& program) {
  for (size_t i = 0; i < program.size(); i++) {
    const Run &r = program[i], *before = i > 0 ? &program[i - 1] : nullptr, *after = i + 1 < program.size() ? &r + 1 : nullptr;
    switch (r.step->kind) {
      case Step::Kind::embed:
        embed(r);
        break;
      case Step::Kind::block:
        forward_block(r, before, after);
        break;
      case Step::Kind::norm:
        if (!before || before->step->kind != Step::Kind::block || before->step->to != r.step->to)
          normalise(r.in, norm_weight(r.step->index), r.out);
        break;
      case Step::Kind::start: {
        const int64_t shape[] = {batch_.tokens, a_.hidden}, one_row[] = {0, 1}, rows[] = {a_.hidden, 1};
        device_->run(&LoopBackend::copy_strided, "start", dt_, dt_, 2, shape, weights_.starts[size_t(r.step->index)], one_row,
                     r.out, rows);
        break;
      }
      case Step::Kind::state:
        if (batch_.states) device_->run(&LoopBackend::copy, "initial states", r.out, batch_.states, state_bytes_);
        else device_->run(&LoopBackend::zero, "initial states", r.out, state_bytes_);
        break;
      case Step::Kind::add: {
        const int64_t elements = batch_.tokens * a_.hidden, stride = 1;
        device_->run(&LoopBackend::binary, "add", dt_, LOOP_ADD, 1, &elements, r.in, &stride, r.from, &stride, r.out);
        break;
      }
      case Step::Kind::inject:
        inject(r);
        break;
      case Step::Kind::copy:
        device_->run(&LoopBackend::copy, "copy", r.out, r.from, state_bytes_);
        break;
    }
    if (closes(&r) && r.step->kind != Step::Kind::block && r.step->kind != Step::Kind::norm && r.step->to == 0 &&
        noise_at(NoiseSite::state))
      add_noise(r.loop, r.out);
  }
  if (program.empty()) return;
  if (&program == &begin_) return;
  (!reads_.empty() && &program >= reads_.data() && &program < reads_.data() + reads_.size() ? newest_read_ : newest_loop_) =
      &program;
}

void Stack::embed(const Run& r) {
  run(&LoopBackend::embed, "embed", batch_.tokens, a_.hidden, batch_.ids, weights_.embedding, r.out);
  if (weights_.embedding_scale) {
    const int64_t elements = batch_.tokens * a_.hidden, stride = 1, same = 0;
    device_->run(&LoopBackend::binary, "embedding scale", dt_, LOOP_MULTIPLY, 1, &elements, r.out, &stride,
                 weights_.embedding_scale, &same, r.out);
  }
  const size_t row = size_t(a_.hidden) * act_;
  const char* vectors = static_cast<const char*>(batch_.vectors);
  for (const VectorRun& v : batch_.vector_runs) {
    void* to = static_cast<char*>(r.out) + size_t(v.token) * row;
    device_->run(&LoopBackend::copy, "input vectors", to, vectors, size_t(v.count) * row);
    vectors += size_t(v.count) * row;
  }
  if (noise_at(NoiseSite::embedding)) add_noise(0, r.out);
}
// out = W [in ; from], as two products that are summed in real and rounded once.
void Stack::inject(const Run& r) {
  const int64_t N = batch_.tokens, D = a_.hidden, elements = N * D, stride = 1;
  const Linear& w = weights_.injections[size_t(r.step->index)];
  void* sum = act_ == real_ ? r.out : memory_.reserve(memory_.real, size_t(elements) * real_);
  run(&LoopBackend::gemm, "inject", 0, 1, N, D, D, r.in, D, w.weight, 2 * D, sum, D, int(LOOP_GEMM_REAL_OUT));
  run(&LoopBackend::gemm, "inject", 0, 1, N, D, D, r.from, D, right_half(w.weight, act_), 2 * D, sum, D,
      int(LOOP_GEMM_ACCUMULATE));
  if (sum != r.out)
    device_->run(&LoopBackend::copy_strided, "cast", loop_real(dt_), dt_, 1, &elements, sum, &stride, r.out, &stride);
}
// Also applies the norm that follows the block, if there is one, and adds noise at this site.
void Stack::forward_block(const Run& r, const Run* before, const Run* after) {
  const LayerWeights& w = weights_.layers[size_t(r.step->index)];
  const bool norms = norms_input(a_.residual);
  if (norms && !(before && follows(before, Step::Kind::block, r))) normalise(r.in, w.attention_norm, block_.x());
  const bool norm = after && follows(after, Step::Kind::norm, r), noisy = norm && closes(after) && noise_at(NoiseSite::residual);
  const void* next = nullptr;
  if (norm && !noisy) next = norm_weight(after->step->index);
  else if (norms && after && follows(after, Step::Kind::block, r))
    next = weights_.layers[size_t(after->step->index)].attention_norm;
  block_.at(r.loop, r.plane);
  block_.forward(w, r.block, r.plane, r.in, r.out, next, norm ? after->out : block_.x());
  newest_block_ = &r;
  if (noisy) {
    add_noise(r.loop, r.out);
    normalise(r.out, norm_weight(after->step->index), after->out);
  }
  const Run& last = norm ? *after : r;
  if (closes(&last) && last.step->to == 0 && noise_at(NoiseSite::state)) add_noise(r.loop, last.out);
}

// x [N, D] += the noise of loop t.
void Stack::add_noise(int t, void* x) {
  const int64_t elements = batch_.tokens * a_.hidden, stride = 1;
  if (noise_->given) {
    const void* own = static_cast<const char*>(noise_->given) + size_t(t * elements) * act_;
    device_->run(&LoopBackend::binary, "noise", dt_, LOOP_ADD, 1, &elements, x, &stride, own, &stride, x);
    return;
  }
  const int64_t rows = batch_.tokens / int64_t(noise_->sigma.size());
  for (int64_t i = 0; i < int64_t(noise_->sigma.size()); i++)
    run(&LoopBackend::add_noise, "noise", rows, a_.hidden, noise_->sigma[size_t(i)], noise_->seed, uint32_t(t),
        noise_->streams + i * rows, batch_.positions + i * rows, static_cast<char*>(x) + size_t(i * rows * a_.hidden) * act_);
}

void Stack::gate_logits(void* out) {
  run(&LoopBackend::gate, "gate", plan_.reads() * batch_.tokens, a_.hidden, hidden_, weights_.gate_weight, weights_.gate_bias,
      out);
}

void Stack::backward(const Weights& gradients, void* d_hidden, GradientsFinal final) {
  StackBackward(*this, gradients, std::move(final)).run(d_hidden);
}

}  // namespace looplm

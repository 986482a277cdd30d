#include "stack.h"

#include <algorithm>
#include <utility>

namespace looplm {

Stack::Stack(Model& model, const Weights& weights, const DeviceBatch& batch, int loops, Keep keep, const CacheUse* cache,
             const LatentNoise* noise, bool first_given)
    : device_(model.device),
      dt_(model.dt),
      a_(model.config),
      weights_(weights),
      memory_(model.stack_memory()),
      batch_(batch),
      loops_(loops),
      keep_(keep),
      cache_(cache),
      noise_(noise),
      first_(first_given ? 1 : 0),
      act_(loop_dtype_size(dt_)),
      real_(loop_dtype_size(loop_real(dt_))),
      state_bytes_(size_t(batch.tokens * a_.hidden) * act_),
      block_(device_, dt_, a_, weights, batch, model.rope_table(batch.max_position + 1), cache, keep != Keep::nothing, memory_) {
  if (weights.adapter_loops > 0 && loops > weights.adapter_loops)
    throw Error("INVALID_ARGUMENT", "loops",
                "the adapter has matrices for " + std::to_string(weights.adapter_loops) + " loops, not for " +
                    std::to_string(loops) + ": run at most as many, or train an adapter without perLoop");
  lay_out();
}

// ---- Where everything lies ----

namespace {

// No later step of the program writes the same register.
bool is_last_write(const std::vector<Step>& steps, size_t i) {
  return std::none_of(steps.begin() + ptrdiff_t(i) + 1, steps.end(), [&](const Step& s) { return s.to == steps[i].to; });
}

}  // namespace

// Values that a program makes on the way; what it leaves in registers lies elsewhere.
size_t Stack::values_of(const std::vector<Step>& steps) const {
  size_t count = 0;
  for (size_t i = 0; i < steps.size(); i++) count += !is_last_write(steps, i);
  return count;
}

// Registers live in `registers` before the loops, and behind every loop in `hidden` (register 0, when the head reads it as it is)
// or `boundaries`. Between them a forward alone needs two buffers for each register; for a backward every value has its own,
// which with per_loop all loops share.
void Stack::lay_out() {
  const size_t R = size_t(a_.registers), T = size_t(loops_), run = T - size_t(first_);
  const bool forward_only = keep_ == Keep::nothing, shared = keep_ == Keep::per_loop;
  const auto all_of = [&](size_t per_program, size_t programs) { return shared ? per_program : per_program * programs; };
  char* registers = static_cast<char*>(memory_.reserve(memory_.registers, R * state_bytes_));
  for (size_t r = 0; r < R; r++) inputs_.push_back(registers + r * state_bytes_);
  hidden_ = memory_.reserve(memory_.hidden, T * state_bytes_);
  if (R > 1 || !a_.read.empty()) memory_.reserve(memory_.boundaries, (forward_only ? 2 : T) * R * state_bytes_);

  const size_t values[] = {values_of(a_.begin), values_of(a_.loop), values_of(a_.read)};
  const size_t blocks[] = {size_t(a_.blocks(a_.begin)), size_t(a_.blocks(a_.loop)), size_t(a_.blocks(a_.read))};
  const size_t value_count = forward_only ? 2 * R : values[0] + all_of(values[1], run) + all_of(values[2], T);
  const bool every_block = keep_ == Keep::all || shared;
  const size_t block_count = every_block ? blocks[0] + all_of(blocks[1], run) + all_of(blocks[2], T) : 1;
  char* value_memory = static_cast<char*>(memory_.reserve(memory_.values, value_count * state_bytes_));
  char* block_memory = static_cast<char*>(memory_.reserve(memory_.blocks, block_count * block_.bytes()));

  const auto space = [&](char* base, bool one, size_t before, size_t per_program, size_t index, size_t bytes) {
    return Space{one ? base : base + (before + (shared ? 0 : index) * per_program) * bytes};
  };
  const auto of_values = [&](size_t before, size_t per, size_t i) {
    return space(value_memory, forward_only, before, per, i, state_bytes_);
  };
  const auto of_blocks = [&](size_t before, size_t per, size_t i) {
    return space(block_memory, !every_block, before, per, i, block_.bytes());
  };
  std::vector<void*> at = inputs_;
  begin_ = place(a_.begin, -1, false, at, of_values(0, 0, 0), of_blocks(0, 0, 0));
  at = inputs_;
  for (size_t t = 0; t < T; t++) {
    const size_t i = t - std::min(t, size_t(first_));
    programs_.push_back(
        place(a_.loop, int(t), false, at, of_values(values[0], values[1], i), of_blocks(blocks[0], blocks[1], i)));
    if (a_.read.empty()) continue;
    std::vector<void*> copies = at;
    reads_.push_back(place(a_.read, int(t), true, copies, of_values(values[0] + all_of(values[1], run), values[2], t),
                           of_blocks(blocks[0] + all_of(blocks[1], run), blocks[2], t)));
  }
}

Stack::Program Stack::place(const std::vector<Step>& steps, int loop, bool reading, std::vector<void*>& registers, Space values,
                            Space blocks) {
  const size_t R = size_t(a_.registers), loop_planes = cache_ ? size_t(a_.blocks(a_.loop)) * size_t(cache_->planes) : 0;
  const auto boundary = [&](int32_t to) -> void* {
    if (loop < 0) return inputs_[size_t(to)];
    if (to == 0 && a_.read.empty()) return hidden_at(loop);
    const size_t t = size_t(keep_ == Keep::nothing ? loop % 2 : loop);
    return memory_.boundaries.at((t * R + size_t(to)) * state_bytes_);
  };
  size_t block = 0;  // of this program, so far
  Program program;
  for (size_t i = 0; i < steps.size(); i++) {
    const Step& s = steps[i];
    Run run{&s, loop, registers[size_t(s.to)], registers[size_t(s.from)], nullptr, {}, 0};
    char* const work = values.next + size_t(2 * s.to) * state_bytes_;  // a forward alone: two for each register
    const bool in_place = s.kind == Step::Kind::block;
    if (is_last_write(steps, i) && (!reading || s.to == 0)) run.out = reading ? hidden_at(loop) : boundary(s.to);
    else if (keep_ != Keep::nothing) run.out = values.take(state_bytes_);
    else run.out = !in_place && run.in != work + state_bytes_ ? work + state_bytes_ : work;
    if (s.kind == Step::Kind::block) {
      char* memory =
          keep_ == Keep::all || keep_ == Keep::per_loop ? static_cast<char*>(blocks.take(block_.bytes())) : blocks.next;
      run.block = block_.carve(memory);
      if (keep_ == Keep::nothing) run.block.middle = run.out;
      if (cache_ && loop >= 0 && !reading)
        run.plane = int64_t(block) * cache_->planes + (cache_->contexts || cache_->planes == 1 ? 0 : loop);
      else run.plane = int64_t(loop_planes + (reading ? size_t(a_.blocks(a_.begin)) : 0) + block);
      block++;
    }
    registers[size_t(s.to)] = run.out;
    program.push_back(run);
  }
  return program;
}

// ---- Forward ----

void Stack::forward_tokens() {
  forward(begin_);
  forward_input();
}
void Stack::forward_states(const void* states) {
  device_->run(&LoopBackend::copy, "copy", input(), states, state_bytes_);
  forward_input();
}
void Stack::forward_input() {
  for (size_t t = size_t(first_); t < programs_.size(); t++) {
    forward(programs_[t]);
    if (!reads_.empty()) forward(reads_[t]);
  }
}

void Stack::forward_after_first(const void* first, int copies) {
  const size_t bytes = state_bytes_ / size_t(copies);
  for (int i = 0; i < copies; i++)
    device_->run(&LoopBackend::copy, "copy", static_cast<void*>(static_cast<char*>(hidden_) + size_t(i) * bytes), first, bytes);
  if (noise_at(NoiseSite::state)) add_noise(0, hidden_);
  forward_input();
}

void Stack::normalise(const void* h, const void* weight, void* x) {
  const void* none = nullptr;
  run(&LoopBackend::residual_norm, "norm", batch_.tokens, a_.hidden, a_.norm_eps, h, none, none, weight,
      static_cast<void*>(nullptr), x);
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
        device_->run(&LoopBackend::copy_strided, "start", dt_, dt_, 2, shape,
                     static_cast<const void*>(weights_.starts[size_t(r.step->index)]), one_row, r.out, rows);
        break;
      }
      case Step::Kind::state:
        if (batch_.states) device_->run(&LoopBackend::copy, "initial states", r.out, batch_.states, state_bytes_);
        else device_->run(&LoopBackend::zero, "initial states", r.out, state_bytes_);
        break;
      case Step::Kind::add: {
        const int64_t elements = batch_.tokens * a_.hidden, stride = 1;
        device_->run(&LoopBackend::binary, "add", dt_, LOOP_ADD, 1, &elements, static_cast<const void*>(r.in), &stride,
                     static_cast<const void*>(r.from), &stride, r.out);
        break;
      }
      case Step::Kind::inject:
        inject(r);
        break;
      case Step::Kind::copy:
        device_->run(&LoopBackend::copy, "copy", r.out, static_cast<const void*>(r.from), state_bytes_);
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
  run(&LoopBackend::embed, "embed", batch_.tokens, a_.hidden, batch_.ids, static_cast<const void*>(weights_.embedding), r.out);
  if (weights_.embedding_scale) {
    const int64_t elements = batch_.tokens * a_.hidden, stride = 1, same = 0;
    device_->run(&LoopBackend::binary, "embedding scale", dt_, LOOP_MULTIPLY, 1, &elements, static_cast<const void*>(r.out),
                 &stride, weights_.embedding_scale, &same, r.out);
  }
  if (noise_at(NoiseSite::embedding)) add_noise(0, r.out);
}

// out = W [in ; from]: two products, whose sum is real and rounded once.
void Stack::inject(const Run& r) {
  const int64_t N = batch_.tokens, D = a_.hidden, elements = N * D, stride = 1;
  const Linear& w = weights_.injections[size_t(r.step->index)];
  void* sum = act_ == real_ ? r.out : memory_.reserve(memory_.real, size_t(elements) * real_);
  run(&LoopBackend::gemm, "inject", 0, 1, N, D, D, static_cast<const void*>(r.in), D, static_cast<const void*>(w.weight), 2 * D,
      sum, D, int(LOOP_GEMM_REAL_OUT));
  run(&LoopBackend::gemm, "inject", 0, 1, N, D, D, static_cast<const void*>(r.from), D, right_half(w.weight, act_), 2 * D, sum, D,
      int(LOOP_GEMM_ACCUMULATE));
  if (sum != r.out)
    device_->run(&LoopBackend::copy_strided, "cast", loop_real(dt_), dt_, 1, &elements, static_cast<const void*>(sum), &stride,
                 r.out, &stride);
}
void Stack::inject_backward(const Run& r, const Weights& g, RegisterGradients& d) {
  const int64_t N = batch_.tokens, D = a_.hidden;
  const Step& s = *r.step;
  const Linear& w = weights_.injections[size_t(s.index)];
  void *dy = block_.d_x(), *dw = g.injections[size_t(s.index)].weight;
  cast_gradient(d.at[size_t(s.to)], dy);
  if (dw) {
    run(&LoopBackend::gemm, "inject gradient", 1, 0, D, D, N, static_cast<const void*>(dy), D, static_cast<const void*>(r.in), D,
        dw, 2 * D, int(LOOP_GEMM_ACCUMULATE));
    run(&LoopBackend::gemm, "inject gradient", 1, 0, D, D, N, static_cast<const void*>(dy), D, static_cast<const void*>(r.from),
        D, const_cast<void*>(right_half(dw, real_)), 2 * D, int(LOOP_GEMM_ACCUMULATE));
  }
  void* d_from = d.at[size_t(s.from)] ? d.at[size_t(s.from)] : zeroed(d, s.from);
  run(&LoopBackend::gemm, "inject backward", 0, 0, N, D, D, static_cast<const void*>(dy), D, right_half(w.weight, act_), 2 * D,
      d_from, D, int(LOOP_GEMM_ACCUMULATE));
  run(&LoopBackend::gemm, "inject backward", 0, 0, N, D, D, static_cast<const void*>(dy), D, static_cast<const void*>(w.weight),
      2 * D, d.at[size_t(s.to)], D, int(LOOP_GEMM_REAL_OUT));
}

// With the norm that follows the block, when one does, and with the noise of the place.
void Stack::forward_block(const Run& r, const Run* before, const Run* after) {
  const LayerWeights& w = weights_.layers[size_t(r.step->index)];
  const bool norms = norms_input(a_.residual);
  if (norms && !(before && follows(before, Step::Kind::block, r))) normalise(r.in, w.attention_norm, block_.x());
  const bool norm = after && follows(after, Step::Kind::norm, r), noisy = norm && closes(after) && noise_at(NoiseSite::residual);
  const void* next = nullptr;
  if (norm && !noisy) next = norm_weight(after->step->index);
  else if (norms && after && follows(after, Step::Kind::block, r))
    next = weights_.layers[size_t(after->step->index)].attention_norm;
  block_.at_loop(std::max(r.loop, 0));
  block_.forward(w, r.block, r.plane, r.in, r.out, next, norm ? after->out : block_.x());
  newest_block_ = &r;
  if (noisy) {
    add_noise(r.loop, r.out);
    normalise(r.out, norm_weight(after->step->index), after->out);
  }
  const Run& last = norm ? *after : r;
  if (closes(&last) && last.step->to == 0 && noise_at(NoiseSite::state)) add_noise(r.loop, last.out);
}

// x [N, D] += the noise of loop t
void Stack::add_noise(int t, void* x) {
  const int64_t elements = batch_.tokens * a_.hidden, stride = 1;
  if (noise_->given) {
    const void* own = static_cast<const char*>(noise_->given) + size_t(t * elements) * act_;
    device_->run(&LoopBackend::binary, "noise", dt_, LOOP_ADD, 1, &elements, static_cast<const void*>(x), &stride, own, &stride,
                 x);
    return;
  }
  const int64_t rows = batch_.tokens / int64_t(noise_->sigma.size());
  for (int64_t i = 0; i < int64_t(noise_->sigma.size()); i++)
    run(&LoopBackend::add_noise, "noise", rows, a_.hidden, noise_->sigma[size_t(i)], noise_->seed, uint32_t(t),
        noise_->streams + i * rows, batch_.positions + i * rows,
        static_cast<void*>(static_cast<char*>(x) + size_t(i * rows * a_.hidden) * act_));
}

void Stack::gate_logits(void* out) {
  run(&LoopBackend::gate, "gate", loops_ * batch_.tokens, a_.hidden, static_cast<const void*>(hidden_),
      static_cast<const void*>(weights_.gate_weight), static_cast<const void*>(weights_.gate_bias), out);
}

// ---- Backward ----

void* Stack::zeroed(RegisterGradients& d, int32_t to) {
  void* own = d.own[size_t(to)];
  device_->run(&LoopBackend::zero, "zero", own, size_t(batch_.tokens * a_.hidden) * real_);
  return d.at[size_t(to)] = own;
}
// at[to] += from, which may be where the sum stays
void Stack::add_to(RegisterGradients& d, int32_t to, void* from) {
  void*& at = d.at[size_t(to)];
  if (at) {
    const int64_t elements = batch_.tokens * a_.hidden, stride = 1;
    device_->run(&LoopBackend::binary, "add", loop_real(dt_), LOOP_ADD, 1, &elements, static_cast<const void*>(from), &stride,
                 static_cast<const void*>(at), &stride, from);
  }
  at = from;
}

// at[to] += from, which stays as it is
void Stack::copy_to(RegisterGradients& d, int32_t to, const void* from) {
  void*& at = d.at[size_t(to)];
  const int64_t elements = batch_.tokens * a_.hidden, stride = 1;
  if (at) {
    device_->run(&LoopBackend::binary, "add", loop_real(dt_), LOOP_ADD, 1, &elements, static_cast<const void*>(at), &stride, from,
                 &stride, at);
    return;
  }
  at = d.own[size_t(to)];
  device_->run(&LoopBackend::copy, "copy", at, from, size_t(elements) * real_);
}
void Stack::cast_gradient(const void* from, void* to) {
  const int64_t elements = batch_.tokens * a_.hidden, stride = 1;
  device_->run(&LoopBackend::copy_strided, "cast", loop_real(dt_), dt_, 1, &elements, from, &stride, to, &stride);
}

void Stack::backward(const Weights& g, void* d_hidden) {
  const size_t R = size_t(a_.registers), bytes = size_t(batch_.tokens * a_.hidden) * real_;
  char* own = static_cast<char*>(memory_.reserve(memory_.d_registers, (reads_.empty() ? 1 : 2) * R * bytes));
  RegisterGradients d{{}, std::vector<void*>(R, nullptr)}, of_read = d;
  for (size_t r = 0; r < R; r++) d.own.push_back(own + r * bytes), of_read.own.push_back(own + (R + r) * bytes);
  for (int t = loops_ - 1; t >= 0; t--) {
    void* d_read = static_cast<char*>(d_hidden) + size_t(t) * bytes;
    if (reads_.empty()) {
      add_to(d, 0, d_read);
    } else {
      if (keep_ == Keep::per_loop && newest_read_ != &reads_[size_t(t)]) forward(reads_[size_t(t)]);
      of_read.at.assign(R, nullptr);
      of_read.at[0] = d_read;
      backward(reads_[size_t(t)], g, of_read);
      for (size_t r = 0; r < R; r++)
        if (of_read.at[r]) copy_to(d, int32_t(r), of_read.at[r]);
    }
    if (t < first_) return;
    if (keep_ == Keep::per_loop && newest_loop_ != &programs_[size_t(t)]) forward(programs_[size_t(t)]);
    backward(programs_[size_t(t)], g, d);
  }
  backward(begin_, g, d);
}

void Stack::backward(const Program& program, const Weights& g, RegisterGradients& d) {
  const int64_t elements = batch_.tokens * a_.hidden, stride = 1;
  for (size_t i = program.size(); i-- > 0;) {
    const Run& r = program[i];
    const Step& s = *r.step;
    if (s.kind == Step::Kind::block) {
      backward_block(program, i, g, d);
      continue;
    }
    flush(d);
    void*& at = d.at[size_t(s.to)];
    if (!at) continue;
    switch (s.kind) {
      case Step::Kind::embed:
        if (weights_.embedding_scale_real) {
          const int64_t same = 0;
          device_->run(&LoopBackend::binary, "embedding scale", loop_real(dt_), LOOP_MULTIPLY, 1, &elements,
                       static_cast<const void*>(at), &stride, weights_.embedding_scale_real, &same, at);
        }
        if (g.embedding)
          run(&LoopBackend::embed_backward, "embed backward", batch_.tokens, a_.hidden, a_.vocabulary, batch_.ids,
              static_cast<const void*>(at), g.embedding);
        at = nullptr;
        break;
      case Step::Kind::norm:
        cast_gradient(at, block_.d_x());
        zeroed(d, s.to);
        pending_ = {s.to, r.in, norm_weight(s.index), s.index < 0 ? nullptr : g.norms[size_t(s.index)]};
        break;
      case Step::Kind::add:
        copy_to(d, s.from, at);
        break;
      case Step::Kind::copy:
        copy_to(d, s.from, at);
        at = nullptr;
        break;
      case Step::Kind::inject:
        inject_backward(r, g, d);
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

void Stack::backward_block(const Program& program, size_t i, const Weights& g, RegisterGradients& d) {
  const Run &r = program[i], *after = i + 1 < program.size() ? &r + 1 : nullptr;
  const LayerWeights &w = weights_.layers[size_t(r.step->index)], &dw = g.layers[size_t(r.step->index)];
  if (pending_ && (pending_->to != r.step->to || !pending_->weight)) flush(d);
  if (!pending_ && !d.at[size_t(r.step->to)]) return;
  void* dh = d.at[size_t(r.step->to)] ? d.at[size_t(r.step->to)] : zeroed(d, r.step->to);
  if (keep_ == Keep::per_layer && newest_block_ != &r) forward_block(r, nullptr, after);
  const Pending next = pending_.value_or(Pending{});
  block_.at_loop(std::max(r.loop, 0));
  block_.backward(w, dw, r.block, r.out, dh, next.weight, next.d_weight);
  const bool norms = norms_input(a_.residual);
  if (norms) normalise(r.in, w.attention_norm, block_.x());
  block_.backward_input(w, dw, r.block, r.in);
  pending_ = {r.step->to, r.in, norms ? w.attention_norm : nullptr, dw.attention_norm};
}

// What waits at a norm goes through it; what has none is added.
void Stack::flush(RegisterGradients& d) {
  if (!pending_) return;
  if (!pending_->weight) {
    block_.add_d_x(d.at[size_t(pending_->to)]);
    pending_.reset();
    return;
  }
  void* none = nullptr;
  run(&LoopBackend::residual_norm_backward, "norm backward", batch_.tokens, a_.hidden, a_.norm_eps, pending_->value, none, none,
      pending_->weight, static_cast<const void*>(block_.d_x()), d.at[size_t(pending_->to)], none, none, pending_->d_weight);
  pending_.reset();
}

}  // namespace looplm

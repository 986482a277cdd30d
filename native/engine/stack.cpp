#include "stack.h"

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
        run(&LoopBackend::embed, "embed", batch_.tokens, a_.hidden, batch_.ids, static_cast<const void*>(weights_.embedding),
            r.out);
        if (noise_at(NoiseSite::embedding)) add_noise(0, r.out);
        break;
      case Step::Kind::block:
        forward_block(r, before, after);
        break;
      case Step::Kind::norm:
        if (!before || !follows(before, Step::Kind::block, r)) normalise(r.in, weights_.norms[size_t(r.step->index)], r.out);
        break;
      default:
        throw Error("INTERNAL", "stack", "a step that no forward knows");
    }
  }
  if (program.empty()) return;
  if (&program == &begin_) return;
  (!reads_.empty() && &program >= reads_.data() && &program < reads_.data() + reads_.size() ? newest_read_ : newest_loop_) =
      &program;
}

// With the norm that follows the block, when one does, and with the noise of the place.
void Stack::forward_block(const Run& r, const Run* before, const Run* after) {
  const LayerWeights& w = weights_.layers[size_t(r.step->index)];
  if (!before || !follows(before, Step::Kind::block, r)) normalise(r.in, w.attention_norm, block_.x());
  const bool norm = after && follows(after, Step::Kind::norm, r), noisy = norm && closes(after) && noise_at(NoiseSite::residual);
  const void* next = noisy                                           ? nullptr
                     : norm                                          ? weights_.norms[size_t(after->step->index)]
                     : after && follows(after, Step::Kind::block, r) ? weights_.layers[size_t(after->step->index)].attention_norm
                                                                     : nullptr;
  block_.forward(w, r.block, r.plane, r.in, r.out, next, norm ? after->out : block_.x());
  newest_block_ = &r;
  if (noisy) {
    add_noise(r.loop, r.out);
    normalise(r.out, weights_.norms[size_t(after->step->index)], after->out);
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

void Stack::backward(const Weights& g, void* d_hidden) {
  const size_t R = size_t(a_.registers), bytes = size_t(batch_.tokens * a_.hidden) * real_;
  char* own = static_cast<char*>(memory_.reserve(memory_.d_registers, R * bytes));
  RegisterGradients d{{}, std::vector<void*>(R, nullptr)};
  for (size_t r = 0; r < R; r++) d.own.push_back(own + r * bytes);
  for (int t = loops_ - 1; t >= 0; t--) {
    add_to(d, 0, static_cast<char*>(d_hidden) + size_t(t) * bytes);
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
        if (g.embedding)
          run(&LoopBackend::embed_backward, "embed backward", batch_.tokens, a_.hidden, a_.vocabulary, batch_.ids,
              static_cast<const void*>(at), g.embedding);
        at = nullptr;
        break;
      case Step::Kind::norm:
        device_->run(&LoopBackend::copy_strided, "cast", loop_real(dt_), dt_, 1, &elements, static_cast<const void*>(at), &stride,
                     block_.d_x(), &stride);
        zeroed(d, s.to);
        pending_ = {s.to, r.in, weights_.norms[size_t(s.index)], g.norms[size_t(s.index)]};
        break;
      default:
        throw Error("INTERNAL", "stack", "a step that no backward knows");
    }
  }
  flush(d);
}

void Stack::backward_block(const Program& program, size_t i, const Weights& g, RegisterGradients& d) {
  const Run &r = program[i], *after = i + 1 < program.size() ? &r + 1 : nullptr;
  const LayerWeights &w = weights_.layers[size_t(r.step->index)], &dw = g.layers[size_t(r.step->index)];
  if (pending_ && pending_->to != r.step->to) flush(d);
  void* dh = d.at[size_t(r.step->to)] ? d.at[size_t(r.step->to)] : zeroed(d, r.step->to);
  if (keep_ == Keep::per_layer && newest_block_ != &r) forward_block(r, nullptr, after);
  const Pending next = pending_.value_or(Pending{});
  block_.backward(w, dw, r.block, r.out, dh, next.weight, next.d_weight);
  normalise(r.in, w.attention_norm, block_.x());
  block_.backward_input(w, dw);
  pending_ = {r.step->to, r.in, w.attention_norm, dw.attention_norm};
}

// What waits at a norm goes through it.
void Stack::flush(RegisterGradients& d) {
  if (!pending_) return;
  void* none = nullptr;
  run(&LoopBackend::residual_norm_backward, "norm backward", batch_.tokens, a_.hidden, a_.norm_eps, pending_->value, none, none,
      pending_->weight, static_cast<const void*>(block_.d_x()), d.at[size_t(pending_->to)], none, none, pending_->d_weight);
  pending_.reset();
}

}  // namespace looplm

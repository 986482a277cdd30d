#include "stack.h"

#include <algorithm>
#include <utility>

namespace looplm {

Stack::Stack(Model& model, const Weights& weights, const DeviceBatch& batch, const LoopPlan& plan, Keep keep,
             const CacheUse* cache, const LatentNoise* noise, bool first_given)
    : model_(model),
      device_(model.device),
      dt_(model.dt),
      a_(model.config),
      weights_(weights),
      memory_(model.stack_memory()),
      batch_(batch),
      plan_(plan),
      loops_(plan.loops),
      keep_(keep),
      cache_(cache),
      noise_(noise),
      first_(first_given ? 1 : 0),
      first_backward_(keep == Keep::nothing ? plan.loops : std::max(first_, plan.backward > 0 ? plan.loops - plan.backward : 0)),
      act_(loop_dtype_size(dt_)),
      real_(loop_dtype_size(loop_real(dt_))),
      state_bytes_(size_t(batch.tokens * a_.hidden) * act_),
      block_(device_, dt_, a_, weights, batch, model.rope_table(batch.max_position + 1), cache, keep != Keep::nothing, memory_),
      slots_(size_t(plan.loops), -1) {
  for (size_t k = 0; k < plan.read.size(); k++) slots_[size_t(plan.read[k])] = int(k);
  if (weights.adapter_loops > 0 && loops_ > weights.adapter_loops)
    throw Error("INVALID_ARGUMENT", "loops",
                "the adapter has matrices for " + std::to_string(weights.adapter_loops) + " loops, not for " +
                    std::to_string(loops_) + ": run at most as many, or train an adapter without perLoop");
  lay_out();
}

// ---- Where everything lies ----

namespace {

// Whether a step of (i, end) writes the register that step i writes.
bool written_again(const std::vector<Step>& steps, size_t i, size_t end) {
  for (size_t k = i + 1; k < end; k++)
    if (steps[k].to == steps[i].to) return true;
  return false;
}

// Where the value of step i lies, when the first `constant` steps carry no gradient: with what the program leaves behind, in
// memory of its own that a backward reads, or where the next values pass as well.
enum class Place { result, kept, passing };
Place place_of(const std::vector<Step>& steps, size_t i, bool reading, size_t constant) {
  if (!written_again(steps, i, steps.size()) && (!reading || steps[i].to == 0)) return Place::result;
  return i < constant && (reading || written_again(steps, i, constant)) ? Place::passing : Place::kept;
}

// Memory that a program keeps, in values and blocks.
struct Extent {
  size_t values = 0, blocks = 0;
};
Extent extent_of(const std::vector<Step>& steps, bool reading, size_t constant) {
  Extent e;
  for (size_t i = 0; i < steps.size(); i++) {
    e.values += place_of(steps, i, reading, constant) == Place::kept;
    e.blocks += steps[i].kind == Step::Kind::block && i >= constant;
  }
  return e;
}
// Of programs that follow each other, or that lie over each other.
void grow(Extent& all, const Extent& one, bool over) {
  all.values = over ? std::max(all.values, one.values) : all.values + one.values;
  all.blocks = over ? std::max(all.blocks, one.blocks) : all.blocks + one.blocks;
}

}  // namespace

size_t Stack::constant_steps(int loop) const {
  if (!carries(loop)) return a_.loop.size();
  return plan_.constant_steps.empty() ? 0 : std::min(a_.loop.size(), size_t(plan_.constant_steps[size_t(loop)]));
}
bool Stack::writes(int32_t to) const {
  return std::any_of(a_.loop.begin(), a_.loop.end(), [&](const Step& s) { return s.to == to; });
}
// The next loop's backward reads it, its own, or that of the readout behind it.
bool Stack::keeps_boundary(int loop) const {
  return keep_ != Keep::nothing && (carries(loop + 1) || (slot(loop) >= 0 && !a_.read.empty()));
}

// Registers live in `registers` before the loops, and behind every loop in `hidden` (register 0, when the head reads it as it is)
// or `boundaries`: each of its own where a backward reads it, else the loops take two in turns.
void Stack::lay_out_boundaries() {
  const size_t R = size_t(a_.registers);
  std::vector<int64_t> index(size_t(loops_) * R, -1);
  int64_t count = 0;
  const auto in_hidden = [&](int t, size_t r) { return r == 0 && a_.read.empty() && slot(t) >= 0; };
  for (size_t r = 0; r < R; r++) {
    int64_t turns[] = {-1, -1};
    for (int t = 0; t < loops_ && writes(int32_t(r)); t++) {
      if (in_hidden(t, r)) continue;
      int64_t own = -1, &at = keeps_boundary(t) ? own : turns[t % 2];
      if (at < 0) at = count++;
      index[size_t(t) * R + r] = at;
    }
  }
  if (count > 0) memory_.reserve(memory_.boundaries, size_t(count) * state_bytes_);
  for (size_t i = 0; i < index.size(); i++) {
    const int t = int(i / R);
    boundaries_.push_back(in_hidden(t, i % R) ? hidden_at(t)
                          : index[i] < 0      ? nullptr
                                              : memory_.boundaries.at(size_t(index[i]) * state_bytes_));
  }
}

// Between the boundaries steps without a backward need two buffers for each register and the memory of one block. Every value
// that a backward reads has its own, which with per_loop all loops share, and so do all readouts.
void Stack::lay_out() {
  const size_t R = size_t(a_.registers);
  const bool forward_only = keep_ == Keep::nothing, over = keep_ == Keep::per_loop, one_block = keep_ == Keep::per_layer;
  char* registers = static_cast<char*>(memory_.reserve(memory_.registers, R * state_bytes_));
  for (size_t r = 0; r < R; r++) inputs_.push_back(registers + r * state_bytes_);
  hidden_ = memory_.reserve(memory_.hidden, size_t(plan_.reads()) * state_bytes_);
  lay_out_boundaries();

  const size_t begin_constant = forward_only ? a_.begin.size() : 0, read_constant = forward_only ? a_.read.size() : 0;
  bool passing = forward_only;
  Extent begin = extent_of(a_.begin, false, begin_constant), loops, reads;
  for (int t = first_; t < loops_; t++) {
    passing |= constant_steps(t) > 0;
    grow(loops, extent_of(a_.loop, false, constant_steps(t)), over);
    if (slot(t) >= 0) grow(reads, extent_of(a_.read, true, read_constant), over);
  }
  const size_t values = begin.values + loops.values + reads.values;
  const size_t blocks = one_block ? 0 : begin.blocks + loops.blocks + reads.blocks;
  char* value_memory = static_cast<char*>(memory_.reserve(memory_.values, (values + (passing ? 2 * R : 0)) * state_bytes_));
  char* block_memory =
      static_cast<char*>(memory_.reserve(memory_.blocks, (blocks + (passing || one_block ? 1 : 0)) * block_.bytes()));
  passing_values_ = value_memory + values * state_bytes_;
  passing_block_ = block_memory + blocks * block_.bytes();

  Room room{value_memory, block_memory};
  std::vector<void*> at = inputs_;
  begin_ = place(a_.begin, -1, false, begin_constant, at, room);
  Room of_reads{room.values + loops.values * state_bytes_, room.blocks + (one_block ? 0 : loops.blocks) * block_.bytes()};
  at = inputs_;
  for (int t = 0; t < loops_; t++) {
    if (t < first_) {
      for (size_t r = 0; r < R; r++)
        if (writes(int32_t(r))) at[r] = boundaries_[size_t(t) * R + r];
      programs_.emplace_back();
    } else {
      Room rest = room;
      programs_.push_back(place(a_.loop, t, false, constant_steps(t), at, rest));
      if (!over) room = rest;
    }
    outputs_.push_back(at);
    if (a_.read.empty() || slot(t) < 0) continue;
    std::vector<void*> copies = at;
    Room rest = of_reads;
    reads_.push_back(place(a_.read, t, true, read_constant, copies, rest));
    if (!over) of_reads = rest;
  }
}

Stack::Program Stack::place(const std::vector<Step>& steps, int loop, bool reading, size_t constant,
                            std::vector<void*>& registers, Room& room) {
  const size_t R = size_t(a_.registers), loop_planes = cache_ ? size_t(a_.blocks(a_.loop)) * size_t(cache_->planes) : 0;
  size_t block = 0;  // of this program, so far
  Program program;
  for (size_t i = 0; i < steps.size(); i++) {
    const Step& s = steps[i];
    Run run{&s, loop, registers[size_t(s.to)], registers[size_t(s.from)], nullptr, {}, 0, i < constant};
    char* const passing = passing_values_ + size_t(2 * s.to) * state_bytes_;
    const bool in_place = s.kind == Step::Kind::block;
    switch (place_of(steps, i, reading, constant)) {
      case Place::result:
        run.out = reading ? hidden_at(loop) : loop < 0 ? inputs_[size_t(s.to)] : boundaries_[size_t(loop) * R + size_t(s.to)];
        break;
      case Place::kept:
        run.out = std::exchange(room.values, room.values + state_bytes_);
        break;
      case Place::passing:
        run.out = !in_place && run.in != passing + state_bytes_ ? passing + state_bytes_ : passing;
        break;
    }
    if (s.kind == Step::Kind::block) {
      const bool own = !run.constant && keep_ != Keep::per_layer;
      char* memory = own ? std::exchange(room.blocks, room.blocks + block_.bytes()) : passing_block_;
      run.block = block_.carve(memory);
      if (run.constant) run.block.middle = run.out;
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
  for (int t = first_; t < loops_; t++) {
    forward(programs_[size_t(t)]);
    if (!reads_.empty() && slot(t) >= 0) forward(reads_[size_t(slot(t))]);
  }
}

void Stack::forward_begin(const Registers& to) {
  inputs_ = to;
  Registers at = to;
  Room none{};
  begin_ = place(a_.begin, -1, false, a_.begin.size(), at, none);
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
  Registers copies = from;
  Room none{};
  reads_.assign(1, place(a_.read, 0, true, a_.read.size(), copies, none));
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
// d_embedded, real [N, D]: the rows of given vectors go to their gradient; no token has a part in them.
void Stack::take_vector_gradients(void* d_embedded) {
  const size_t row = size_t(a_.hidden) * real_;
  char* to = static_cast<char*>(batch_.d_vectors);
  for (const VectorRun& v : batch_.vector_runs) {
    void* from = static_cast<char*>(d_embedded) + size_t(v.token) * row;
    const size_t bytes = size_t(v.count) * row;
    if (to) {
      const int64_t elements = v.count * a_.hidden, stride = 1;
      device_->run(&LoopBackend::binary, "gradient of input vectors", loop_real(dt_), LOOP_ADD, 1, &elements, to, &stride, from,
                   &stride, to);
      to += bytes;
    }
    device_->run(&LoopBackend::zero, "gradient of input vectors", from, bytes);
  }
}

// out = W [in ; from]: two products, whose sum is real and rounded once.
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
void Stack::inject_backward(const Run& r, const Weights& g, RegisterGradients& d) {
  const int64_t N = batch_.tokens, D = a_.hidden;
  const Step& s = *r.step;
  const Linear& w = weights_.injections[size_t(s.index)];
  void *dy = block_.d_x(), *dw = g.injections[size_t(s.index)].weight;
  cast_gradient(d.at[size_t(s.to)], dy);
  if (dw) {
    run(&LoopBackend::gemm, "inject gradient", 1, 0, D, D, N, dy, D, r.in, D, dw, 2 * D, int(LOOP_GEMM_ACCUMULATE));
    run(&LoopBackend::gemm, "inject gradient", 1, 0, D, D, N, dy, D, r.from, D, const_cast<void*>(right_half(dw, real_)), 2 * D,
        int(LOOP_GEMM_ACCUMULATE));
  }
  void* d_from = d.at[size_t(s.from)] ? d.at[size_t(s.from)] : zeroed(d, s.from);
  run(&LoopBackend::gemm, "inject backward", 0, 0, N, D, D, dy, D, right_half(w.weight, act_), 2 * D, d_from, D,
      int(LOOP_GEMM_ACCUMULATE));
  run(&LoopBackend::gemm, "inject backward", 0, 0, N, D, D, dy, D, w.weight, 2 * D, d.at[size_t(s.to)], D,
      int(LOOP_GEMM_REAL_OUT));
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
    device_->run(&LoopBackend::binary, "add", loop_real(dt_), LOOP_ADD, 1, &elements, from, &stride, at, &stride, from);
  }
  at = from;
}

// at[to] += from, which stays as it is
void Stack::copy_to(RegisterGradients& d, int32_t to, const void* from) {
  void*& at = d.at[size_t(to)];
  const int64_t elements = batch_.tokens * a_.hidden, stride = 1;
  if (at) {
    device_->run(&LoopBackend::binary, "add", loop_real(dt_), LOOP_ADD, 1, &elements, at, &stride, from, &stride, at);
    return;
  }
  at = d.own[size_t(to)];
  device_->run(&LoopBackend::copy, "copy", at, from, size_t(elements) * real_);
}
void Stack::cast_gradient(const void* from, void* to) {
  const int64_t elements = batch_.tokens * a_.hidden, stride = 1;
  device_->run(&LoopBackend::copy_strided, "cast", loop_real(dt_), dt_, 1, &elements, from, &stride, to, &stride);
}

// The steps whose gradients will be added, in their order.
void Stack::begin_way_back() {
  std::vector<const Step*> order;
  const auto back = [&](const Program& program) {
    for (auto run = program.rbegin(); run != program.rend(); ++run) order.push_back(run->step);
  };
  for (int t = loops_ - 1; t >= std::max(0, first_ - 1); t--) {
    if (slot(t) >= 0 && !reads_.empty()) back(reads_[size_t(slot(t))]);
    if (t >= first_ && carries(t)) back(programs_[size_t(t)]);
  }
  if (first_ == 0) back(begin_);
  final_gradients_.emplace(model_, order);
  steps_back_ = 0;
}
// At the beginning of a step. That before may wait at its norm.
void Stack::announce_final() {
  if (final_ && steps_back_ > 0) final_(final_gradients_->from(steps_back_ - 1));
  steps_back_++;
}

void Stack::backward(const Weights& g, void* d_hidden, GradientsFinal final) {
  final_ = std::move(final);
  if (final_) begin_way_back();
  const size_t R = size_t(a_.registers), bytes = size_t(batch_.tokens * a_.hidden) * real_;
  char* own = static_cast<char*>(memory_.reserve(memory_.d_registers, (reads_.empty() ? 1 : 2) * R * bytes));
  RegisterGradients d{{}, std::vector<void*>(R, nullptr)}, of_read = d;
  for (size_t r = 0; r < R; r++) d.own.push_back(own + r * bytes), of_read.own.push_back(own + (R + r) * bytes);
  for (int t = loops_ - 1; t >= 0; t--) {
    if (slot(t) >= 0) backward_read(t, g, static_cast<char*>(d_hidden) + size_t(slot(t)) * bytes, d, of_read);
    if (t < first_) return;
    if (!carries(t)) continue;
    if (keep_ == Keep::per_loop && newest_loop_ != &programs_[size_t(t)]) forward(programs_[size_t(t)]);
    backward(programs_[size_t(t)], g, d);
    if (t > first_ && !carries(t - 1))  // what loops wrote before is constant
      for (size_t r = 0; r < R; r++)
        if (writes(int32_t(r))) d.at[r] = nullptr;
  }
  backward(begin_, g, d);
  if (final_) final_(0);
}

// d_read: ∂L/∂hidden of the loop. It reaches the registers that loops write only where the loop carries gradient.
void Stack::backward_read(int t, const Weights& g, void* d_read, RegisterGradients& d, RegisterGradients& of_read) {
  if (reads_.empty()) {
    if (t < first_ || carries(t)) add_to(d, 0, d_read);
    return;
  }
  const Program& read = reads_[size_t(slot(t))];
  if (keep_ == Keep::per_loop && newest_read_ != &read) forward(read);
  of_read.at.assign(d.at.size(), nullptr);
  of_read.at[0] = d_read;
  backward(read, g, of_read);
  for (size_t r = 0; r < d.at.size(); r++)
    if (of_read.at[r] && (t < first_ || carries(t) || !writes(int32_t(r)))) copy_to(d, int32_t(r), of_read.at[r]);
}

void Stack::backward(const Program& program, const Weights& g, RegisterGradients& d) {
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
      backward_block(program, i, g, d);
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
          device_->run(&LoopBackend::binary, "embedding scale", loop_real(dt_), LOOP_MULTIPLY, 1, &elements, at, &stride,
                       weights_.embedding_scale_real, &same, at);
        }
        if (g.embedding)
          run(&LoopBackend::embed_backward, "embed backward", batch_.tokens, a_.hidden, a_.vocabulary, batch_.ids, at,
              g.embedding);
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
      pending_->weight, block_.d_x(), d.at[size_t(pending_->to)], none, none, pending_->d_weight);
  pending_.reset();
}

}  // namespace looplm

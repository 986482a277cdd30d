#include "stack_layout.h"

#include <algorithm>
#include <utility>

namespace looplm {

StackLayout::StackLayout(Model& model, const Weights& weights, const DeviceBatch& batch, const LoopPlan& plan, Keep keep,
                         const CacheUse* cache, bool first_given)
    : a_(model.config),
      weights_(weights),
      memory_(model.stack_memory()),
      batch_(batch),
      plan_(plan),
      loops_(plan.loops),
      keep_(keep),
      cache_(cache),
      first_(first_given ? 1 : 0),
      first_backward_(keep == Keep::nothing ? plan.loops : std::max(first_, plan.backward > 0 ? plan.loops - plan.backward : 0)),
      act_(loop_dtype_size(model.dt)),
      real_(loop_dtype_size(loop_real(model.dt))),
      state_bytes_(size_t(batch.tokens * a_.hidden) * act_),
      block_(model.device, model.dt, a_, weights, batch, model.rope_table(batch.max_position + 1), cache, keep != Keep::nothing,
             memory_),
      slots_(size_t(plan.loops), -1) {
  for (size_t k = 0; k < plan.read.size(); k++) slots_[size_t(plan.read[k])] = int(k);
  if (weights.adapter_loops > 0 && loops_ > weights.adapter_loops)
    throw Error("INVALID_ARGUMENT", "loops",
                "the adapter has matrices for " + std::to_string(weights.adapter_loops) + " loops, not for " +
                    std::to_string(loops_) + ": run at most as many, or train an adapter without perLoop");
  lay_out();
}

namespace {

// Whether a step of (i, end) writes the register that step i writes.
bool written_again(const std::vector<Step>& steps, size_t i, size_t end) {
  for (size_t k = i + 1; k < end; k++)
    if (steps[k].to == steps[i].to) return true;
  return false;
}

// Where the value of step i is stored, if the first `constant` steps carry no gradient. result: it is the program's result
// for this register. kept: separate memory, because the backward pass reads it. passing: memory that later values overwrite.
enum class Place { result, kept, passing };
Place place_of(const std::vector<Step>& steps, size_t i, bool reading, size_t constant) {
  if (!written_again(steps, i, steps.size()) && (!reading || steps[i].to == 0)) return Place::result;
  return i < constant && (reading || written_again(steps, i, constant)) ? Place::passing : Place::kept;
}

// Memory that a program keeps, as a number of values and blocks.
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
// over: the programs share memory (maximum); otherwise each has its own (sum).
void grow(Extent& all, const Extent& one, bool over) {
  all.values = over ? std::max(all.values, one.values) : all.values + one.values;
  all.blocks = over ? std::max(all.blocks, one.blocks) : all.blocks + one.blocks;
}

}  // namespace

size_t StackLayout::constant_steps(int loop) const {
  if (!carries(loop)) return a_.loop.size();
  return plan_.constant_steps.empty() ? 0 : std::min(a_.loop.size(), size_t(plan_.constant_steps[size_t(loop)]));
}
bool StackLayout::writes(int32_t to) const {
  return std::any_of(a_.loop.begin(), a_.loop.end(), [&](const Step& s) { return s.to == to; });
}
// Whether registers after a loop need separate memory: the backward pass of the next loop or of this loop's readout reads
// them.
bool StackLayout::keeps_boundary(int loop) const {
  return keep_ != Keep::nothing && (carries(loop + 1) || (slot(loop) >= 0 && !a_.read.empty()));
}

// Assigns memory for the registers after every loop. Register 0 is in `hidden` if the head reads it directly. All others are
// in `boundaries`: separate memory if the backward pass reads them, else two buffers that the loops use alternately.
void StackLayout::lay_out_boundaries() {
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

// Steps without a backward pass need two buffers for each register and the memory of one block. Values that the backward pass
// reads are kept in separate memory; with per_loop, all loops share that memory, and so do all readouts.
void StackLayout::lay_out() {
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

StackLayout::Program StackLayout::place(const std::vector<Step>& steps, int loop, bool reading, size_t constant,
                                        Registers& registers, Room& room) {
  const size_t R = size_t(a_.registers), loop_planes = cache_ ? size_t(a_.blocks(a_.loop)) * size_t(cache_->planes) : 0;
  size_t block = 0;  // number of blocks of this program so far
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

StackLayout::Program StackLayout::place_begin(const Registers& to) {
  inputs_ = to;
  Registers at = to;
  Room none{};
  return place(a_.begin, -1, false, a_.begin.size(), at, none);
}
StackLayout::Program StackLayout::place_read(const Registers& from) {
  Registers copies = from;
  Room none{};
  return place(a_.read, 0, true, a_.read.size(), copies, none);
}

}  // namespace looplm

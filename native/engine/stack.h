// Walks the steps of an architecture (architecture.h) over a batch, forward and backward. Which buffers a step reads and writes,
// what is kept and what is computed again is decided here; what one block computes is in block.h.
#pragma once
#include <functional>
#include <numeric>
#include <optional>
#include <utility>

#include "block.h"
#include "final_gradients.h"

namespace looplm {

// Noise added to the latent states (LoopRPT, math.md §5). Its gradient is the identity, and a recomputed state gets the same
// noise again. `state`: register 0 as the next loop receives it; `residual`: the residual stream of every loop before the norm
// that closes it; `embedding`: the embedded tokens, once.
enum class NoiseSite { state, residual, embedding };
struct LatentNoise {
  NoiseSite site;
  const void* given;  // act [T, N, D] (`embedding` reads the first [N, D]), or NULL: drawn by the backend from the fields below
  std::vector<double> sigma;  // of each of the equal runs that the batch's tokens are cut into
  uint64_t seed;
  const int32_t* streams;  // device [N]: which draw a token belongs to
};

// Which loops run, which of them are read, and what of them a backward goes through. Loops count from 0.
struct LoopPlan {
  LoopPlan(int loops) : loops(loops), read(size_t(loops)) { std::iota(read.begin(), read.end(), 0); }
  int loops;
  std::vector<int> read;            // ascending: only these have hidden states; at first all
  int backward = 0;                 // the last so many carry gradient, what the others compute is constant; 0: all carry it
  std::vector<int> constant_steps;  // of each loop: so many of its first steps are constants too; empty: none
  int reads() const { return int(read.size()); }
};

class Stack {
 public:
  enum class Keep { nothing, all, per_loop, per_layer };  // for the backward: nothing is forward only

  // weights: the model's, or those of another model of the same architecture, which then runs in the memory of this one.
  // Buffers are valid until the next Stack on the same model. With first_given the first loop was run elsewhere, and every loop
  // is read.
  Stack(Model& model, const Weights& weights, const DeviceBatch& batch, const LoopPlan& plan, Keep keep,
        const CacheUse* cache = nullptr, const LatentNoise* noise = nullptr, bool first_given = false);
  Stack(const Stack&) = delete;

  // From token ids; from given states act [N, D] in place of the embedded tokens, or those that the caller has put into input();
  // or from a first loop that was run elsewhere, its states act [N, D] given `copies` times over: only loops 2 to T are run then.
  void forward_tokens();
  void forward_states(const void* states);
  void forward_input();
  void forward_after_first(const void* first, int copies);
  const Weights& weights() const { return weights_; }
  void* input() const { return inputs_[0]; }  // act [N, D]: register 0 before the first loop
  // Parts, for generation (Keep::nothing), where each has rows of its own. Registers are act [N, D] each.
  using Registers = std::vector<void*>;
  const Registers& inputs() const { return inputs_; }                    // before the first loop
  const Registers& outputs(int t) const { return outputs_[size_t(t)]; }  // behind loop t, until two loops later
  void forward_begin(const Registers& to);                               // what the loops begin with, for these rows
  void forward_loops(const std::function<void(int t)>& after);           // from inputs() on, without readouts
  void forward_last_read();                                              // the readout behind the last loop
  void forward_read(const Registers& from);                              // a readout of given registers; hidden() is act [N, D]
  void* hidden() const { return hidden_; }  // act [K, N, D]: what the head reads after each of the K loops that are read
  void gate_logits(void* out);              // real [K, N]

  // d_hidden: real [K, N, D], ∂L/∂hidden, consumed. Adds to the gradients. Steps before the loops and readouts carry gradient
  // whatever the plan says of the loops. After forward_after_first it stops at the first loop's states, whose whole gradient is
  // then in the first [N, D] of d_hidden. `final` hears of gradients to which nothing more is added.
  void backward(const Weights& gradients, void* d_hidden, GradientsFinal final = {});

 private:
  // A step where it stands: the buffers that it reads and writes, act [N, D].
  struct Run {
    const Step* step;
    int loop;  // -1: before the loops
    void *in, *from, *out;
    BlockMemory block;  // of a block, with its first plane in the cache
    int64_t plane;
    bool constant;  // no gradient goes through it
  };
  using Program = std::vector<Run>;
  // ∂L/∂registers on the way back. at[r]: real [N, D] where it lies, NULL while it is zero; own[r]: a buffer for it.
  struct RegisterGradients {
    std::vector<void*> own, at;
  };
  // ∂L/∂x in block_.d_x(), x = RMS(value; weight) or without a weight x = value, not yet part of the gradient of register `to`.
  struct Pending {
    int32_t to;
    const void *value, *weight;
    void* d_weight;
  };
  struct Room {  // where the next value and the next block lie
    char *values, *blocks;
  };

  void lay_out();
  void lay_out_boundaries();
  Program place(const std::vector<Step>& steps, int loop, bool reading, size_t constant, std::vector<void*>& registers,
                Room& room);
  size_t constant_steps(int loop) const;
  bool carries(int loop) const { return loop >= first_backward_; }
  bool keeps_boundary(int loop) const;
  bool writes(int32_t to) const;  // whether a loop does
  void backward_read(int loop, const Weights& g, void* d_read, RegisterGradients& d, RegisterGradients& of_read);
  void forward(const Program& program);
  void forward_block(const Run& run, const Run* before, const Run* after);
  void embed(const Run& run);
  void take_vector_gradients(void* d_embedded);
  void inject(const Run& run);
  void inject_backward(const Run& run, const Weights& g, RegisterGradients& d);
  void backward(const Program& program, const Weights& g, RegisterGradients& d);
  void backward_block(const Program& program, size_t i, const Weights& g, RegisterGradients& d);
  void flush(RegisterGradients& d);
  void begin_way_back();
  void announce_final();
  void* zeroed(RegisterGradients& d, int32_t to);
  void add_to(RegisterGradients& d, int32_t to, void* from);
  void copy_to(RegisterGradients& d, int32_t to, const void* from);
  void cast_gradient(const void* from, void* to);  // real to act
  void normalise(const void* h, const void* weight, void* x);
  void add_noise(int t, void* x);
  const void* norm_weight(int32_t index) const { return index < 0 ? weights_.ones : weights_.norms[size_t(index)]; }
  const void* right_half(const void* matrix, size_t size) const {  // of the columns [x ; e]
    return static_cast<const char*>(matrix) + size_t(a_.hidden) * size;
  }
  bool noise_at(NoiseSite site) const { return noise_ && noise_->site == site; }
  bool closes(const Run* run) const { return run && run->loop >= 0 && run->step == &a_.loop.back(); }
  static bool follows(const Run* run, Step::Kind kind, const Run& of) {
    return run && run->step->kind == kind && run->step->to == of.step->to;
  }
  template <class F, class... A>
  void run(F LoopBackend::*f, const char* name, A... a) {
    device_->run(f, name, dt_, a...);
  }
  int slot(int loop) const { return slots_[size_t(loop)]; }  // of a loop in `hidden`; -1: not read
  void* hidden_at(int loop) const { return static_cast<char*>(hidden_) + size_t(slot(loop)) * state_bytes_; }

  const Model& model_;
  const std::shared_ptr<Device> device_;
  const LoopDType dt_;
  const Architecture& a_;
  const Weights& weights_;
  StackMemory& memory_;
  const DeviceBatch batch_;
  const LoopPlan plan_;
  const int loops_;
  const Keep keep_;
  const CacheUse* cache_;
  const LatentNoise* noise_;
  const int first_;           // loop that is run first
  const int first_backward_;  // loop that carries gradient first
  const size_t act_, real_;   // bytes of an element
  const size_t state_bytes_;
  Block block_;
  Program begin_;
  std::vector<Program> programs_, reads_;  // of each loop, and of the readout behind each loop that is read
  std::vector<int> slots_;
  Registers inputs_;                // the registers before the first loop
  std::vector<Registers> outputs_;  // and behind every one
  std::vector<void*> boundaries_;   // where those behind each loop lie: [T, R]
  void* hidden_ = nullptr;
  char *passing_values_ = nullptr, *passing_block_ = nullptr;  // of steps that no backward goes through
  std::optional<Pending> pending_;
  // What still lies in memory that several share: of the loops and of the readouts (per_loop), of the blocks (per_layer).
  const Program *newest_loop_ = nullptr, *newest_read_ = nullptr;
  const Run* newest_block_ = nullptr;
  GradientsFinal final_;  // who hears of them, when, and how many steps of the way back have begun
  std::optional<FinalGradients> final_gradients_;
  size_t steps_back_ = 0;
};

}  // namespace looplm

// Runs the steps of an architecture (architecture.h) over a batch. stack_backward.h has the backward pass, stack_layout.h
// assigns the buffers, and block.h computes one block.
#pragma once
#include <functional>

#include "final_gradients.h"
#include "stack_layout.h"

namespace looplm {

// Noise added to the latent states (LoopRPT, math.md §5). Its gradient is the identity. A recomputed state gets the same
// noise again. Sites: `state` is register 0 as the next loop receives it, `residual` the residual stream of every loop before
// its closing norm, and `embedding` the embedded tokens, once.
enum class NoiseSite { state, residual, embedding };
struct LatentNoise {
  NoiseSite site;
  const void* given;  // act [T, N, D] (site `embedding` uses the first [N, D]); NULL: the backend draws the noise from the
                      // fields below
  std::vector<double> sigma;  // the tokens are split into sigma.size() equal runs; one standard deviation per run
  uint64_t seed;
  const int32_t* streams;  // device [N]: the random stream of each token
};

class Stack : private StackLayout {
 public:
  using StackLayout::Keep;
  using StackLayout::Registers;

  // weights: the model's own, or those of another model of the same architecture, which then uses this model's memory.
  // Buffers are valid until the next Stack of the same model. first_given: the first loop has run elsewhere; every loop must
  // be read.
  Stack(Model& model, const Weights& weights, const DeviceBatch& batch, const LoopPlan& plan, Keep keep,
        const CacheUse* cache = nullptr, const LatentNoise* noise = nullptr, bool first_given = false);
  Stack(const Stack&) = delete;

  // Forward from token ids; from given states act [N, D] instead of the embeddings; or from states that the caller wrote to
  // input(). forward_after_first: the first loop has run elsewhere; takes its states, act [N / copies, D], repeats them
  // `copies` times and runs loops 2 to T.
  void forward_tokens();
  void forward_states(const void* states);
  void forward_input();
  void forward_after_first(const void* first, int copies);
  const Weights& weights() const { return weights_; }
  void* input() const { return inputs_[0]; }  // act [N, D]: register 0 before the first loop
  // Parts of the forward pass, for generation (Keep::nothing). Registers are act [N, D] each.
  const Registers& inputs() const { return inputs_; }                    // before the first loop
  const Registers& outputs(int t) const { return outputs_[size_t(t)]; }  // after loop t; overwritten two loops later
  void forward_begin(const Registers& to);                      // runs the steps before the loops, with the results in `to`
  void forward_loops(const std::function<void(int t)>& after);  // runs all loops from inputs(), without readouts; calls
                                                                // after(t) after each
  void forward_last_read();                                     // runs the readout after the last loop
  void forward_read(const Registers& from);  // runs a readout of the given registers; hidden() is then act [N, D]
  void* hidden() const { return hidden_; }   // act [K, N, D]: the head's input after each of the K loops that are read
  void gate_logits(void* out);               // real [K, N]

  // d_hidden: real [K, N, D], ∂L/∂hidden; overwritten. Adds to the gradients. Steps before the loops and readouts always
  // carry gradient, whatever the plan says about the loops. After forward_after_first the backward pass stops at the first
  // loop's states; their gradient is then in the first [N, D] of d_hidden. `final` is called when gradients become final.
  void backward(const Weights& gradients, void* d_hidden, GradientsFinal final = {});

 private:
  friend class StackBackward;
  void forward(const Program& program);
  void forward_block(const Run& run, const Run* before, const Run* after);
  void embed(const Run& run);
  void inject(const Run& run);
  void normalise(const void* h, const void* weight, void* x);
  void add_noise(int t, void* x);
  const void* norm_weight(int32_t index) const { return index < 0 ? weights_.ones : weights_.norms[size_t(index)]; }
  // The columns for `from` of an injection's matrix, [D, 2 D].
  const void* right_half(const void* matrix, size_t size) const {
    return static_cast<const char*>(matrix) + size_t(a_.hidden) * size;
  }
  void* right_half(void* matrix, size_t size) const { return static_cast<char*>(matrix) + size_t(a_.hidden) * size; }
  bool noise_at(NoiseSite site) const { return noise_ && noise_->site == site; }
  bool closes(const Run* run) const { return run && run->loop >= 0 && run->step == &a_.loop.back(); }
  static bool follows(const Run* run, Step::Kind kind, const Run& of) {
    return run && run->step->kind == kind && run->step->to == of.step->to;
  }
  template <class F, class... A>
  void run(F LoopBackend::*f, const char* name, A... a) {
    device_->run(f, name, dt_, a...);
  }
  const Model& model_;
  const std::shared_ptr<Device> device_;
  const LoopDType dt_;
  const LatentNoise* noise_;
  // Which program last wrote the memory that loops, readouts (per_loop) or blocks (per_layer) share. A program that is not
  // the newest must be recomputed before its backward pass.
  const Program *newest_loop_ = nullptr, *newest_read_ = nullptr;
  const Run* newest_block_ = nullptr;
};

}  // namespace looplm

// Walks the steps of an architecture (architecture.h) over a batch, forward and, in stack_backward.h, backward. Where they lie is
// decided in stack_layout.h; what one block computes is in block.h.
#pragma once
#include <functional>

#include "final_gradients.h"
#include "stack_layout.h"

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

class Stack : private StackLayout {
 public:
  using StackLayout::Keep;
  using StackLayout::Registers;

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
  // Parts, for generation (Keep::nothing), where each has separate rows. Registers are act [N, D] each.
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
  friend class StackBackward;
  void forward(const Program& program);
  void forward_block(const Run& run, const Run* before, const Run* after);
  void embed(const Run& run);
  void inject(const Run& run);
  void normalise(const void* h, const void* weight, void* x);
  void add_noise(int t, void* x);
  const void* norm_weight(int32_t index) const { return index < 0 ? weights_.ones : weights_.norms[size_t(index)]; }
  // Of the columns [x ; e].
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
  // What still lies in memory that several share: of the loops and of the readouts (per_loop), of the blocks (per_layer).
  const Program *newest_loop_ = nullptr, *newest_read_ = nullptr;
  const Run* newest_block_ = nullptr;
};

}  // namespace looplm

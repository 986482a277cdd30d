// One transformer block: attention and MLP, each joined to the residual stream according to Residual. Forward and backward
// are side by side. `h`, `middle` and `out` are the residual stream before, between and after the two branches, act [N, D].
#pragma once
#include "block_attention.h"
#include "exit_replay.h"
#include "linear.h"
#include "shift.h"

namespace looplm {

class Block {
 public:
  // backward: also allocate scratch memory for the backward pass. cache: NULL for training.
  Block(std::shared_ptr<Device> device, LoopDType dt, const Architecture& architecture, const Weights& weights,
        const DeviceBatch& batch, const void* rope, const CacheUse* cache, bool backward, StackMemory& memory);

  size_t bytes() const;                    // size of one BlockMemory
  BlockMemory carve(char*& memory) const;  // the next BlockMemory at `memory`, which is advanced past it

  // Sets the current loop, unless the batch gives the loop of each row, and the number of the block within it. Loop -1: steps
  // before the loops.
  void at(int loop, int64_t block) {
    if (batch_.loops.empty()) linear_.at_loop(std::max(loop, 0));
    loop_ = loop, block_ = block;
  }
  void begin_backward() { replay_.begin_backward(); }

  void* x() const { return x_; }      // act [N, D]: input of the block after its norm N (if the residual type has one)
  void* d_x() const { return d_x_; }  // act [N, D]: after backward, ∂L/∂(N h), or ∂L/∂h if there is no input norm

  // next: weight of the norm that is applied to `out`, with its result in `next_out`; NULL: none. plane: index in the KV
  // cache.
  void forward(const LayerWeights& w, const BlockMemory& b, int64_t plane, const void* in, void* out, const void* next,
               void* next_out);
  // dh: real [N, D]. On entry ∂L/∂out; on exit ∂L/∂in without the part that goes through d_x. next: weight of the norm that
  // follows, whose ∂L/∂output is in d_x.
  void backward(const LayerWeights& w, const LayerWeights& d, const BlockMemory& b, const void* out, void* dh, const void* next,
                void* d_next);
  // The last part of backward: the QKV projection. x() must hold N h again.
  void backward_input(const LayerWeights& w, const LayerWeights& d, const BlockMemory& b, const void* in);
  void add_d_x(void* dh);  // dh += d_x

 private:
  template <class F, class... A>
  void run(F LoopBackend::*f, const char* name, A... a) {
    device_->run(f, name, dt_, a...);
  }
  int64_t N() const { return batch_.tokens; }
  LoopRotaryPairs pairs() const { return a_.rotary.neighbours ? LOOP_NEIGHBOURS : LOOP_HALVES; }
  const void* input(const void* h) const { return norms_input(a_.residual) ? x_ : h; }
  void join(const void* h, const void* branch, const void* w_out, void* sum, void* out, const void* next, void* next_out);
  void join_backward(const void* branch, const void* w_out, void* dw_out, const void* sum, const void* out, void* dh,
                     const void* next, void* d_next);
  void project(const LayerWeights& w, const BlockMemory& b, const void* x);
  void norm_heads(const LayerWeights& w, const BlockMemory& b);
  void norm_heads_backward(const LayerWeights& w, const LayerWeights& d, const BlockMemory& b);
  const void* gate_heads(const BlockMemory& b);
  void output_backward(const LayerWeights& w, const LayerWeights& d, const BlockMemory& b);
  // Copies columns between two matrices of different widths: act [N, columns].
  void copy_columns(const void* from, int64_t from_width, void* to, int64_t to_width, int64_t columns);
  void* column(void* matrix, int64_t at) const { return static_cast<char*>(matrix) + size_t(at) * act_; }
  const void* edit(const Shift& w, const BlockMemory& b, int64_t plane, const void* x);

  const std::shared_ptr<Device> device_;
  const LoopDType dt_;
  const Architecture& a_;
  const DeviceBatch batch_;
  const void* rope_;
  const CacheUse* cache_;
  StackMemory& memory_;
  const BlockAttention attention_;
  const ExitReplay replay_;
  LinearLayers linear_;
  ShiftFfn shift_;
  const int64_t shift_rank_;
  const size_t act_, real_;
  int loop_ = -1;
  int64_t block_ = 0;
  void *x_ = nullptr, *activation_ = nullptr;
  void *d_activation_ = nullptr, *d_branch_ = nullptr, *d_x_ = nullptr, *d_attention_ = nullptr, *d_qkv_ = nullptr;
};

}  // namespace looplm

// One block: attention and MLP, each joined to the residual stream as the architecture says (Residual), forward and backward side
// by side. h, middle and out are the stream before, between and behind the two branches, act [N, D].
#pragma once
#include "batch.h"
#include "linear.h"
#include "model.h"
#include "shift.h"

namespace looplm {

// Earlier tokens of a prompt that a forward continues: their keys and values are in the cache, and attention finds them in front
// of the batch's own rows.
struct CachedPrefix {
  int64_t row;   // of the extended batch, whose first rows are all prefixes and whose last are the batch
  int64_t slot;  // of its first token
  int64_t length;
};

// Where a forward puts its keys and values, and, when decoding, reads those of earlier tokens. Planes, in this order: of every
// block of the loop `planes`, one per loop or one that the loops share; then one of every block that runs once.
struct CacheUse {
  void *keys, *values;  // act [planes, slots, kv_heads · head_dim]
  int64_t slots;        // of a plane
  int planes;           // of a block of the loop
  const int32_t* rows;  // device [N]: the slot of each row; when decoding counted from the block's first plane, so that rows may
                        // be at loops of their own, otherwise from the plane of the loop
  const LoopCacheContext* contexts;  // device [N] when decoding; NULL for prompts, whose tokens attend within the batch
  const CachedPrefix* prefixes;      // of prompts; the batch's segments then count rows of the extended batch
  int32_t prefix_count;
  int64_t prefix_rows;
  // Of layers whose MLP sees the token before (shift.h): a plane's y in two halves, act [planes, slots, rank], and when decoding
  // the slots of the rows' predecessors, counted as `rows`.
  void *shift_p = nullptr, *shift_a = nullptr;
  const int32_t* before = nullptr;
};

// What one block leaves for its backward.
struct BlockMemory {
  void *qkv, *attention, *lse, *branch_1, *middle, *gate_up, *branch_2;
  void *sum_1 = nullptr, *sum_2 = nullptr;   // of Residual::normed: the stream before its norm
  void *queries = nullptr, *keys = nullptr;  // before their norms, when they have some
  void* gated = nullptr;                     // act [N, 2 heads · head_dim]: output gate, attention
  void* shift = nullptr;                     // act [N, 2 rank] (shift.h)
};

class Block {
 public:
  // backward: scratch for it too. cache: NULL when training.
  Block(std::shared_ptr<Device> device, LoopDType dt, const Architecture& architecture, const Weights& weights,
        const DeviceBatch& batch, const void* rope, const CacheUse* cache, bool backward, StackMemory& memory);

  size_t bytes() const;                    // of a BlockMemory
  BlockMemory carve(char*& memory) const;  // the next one of an array of them

  // The loop that the rows are at, unless the batch says it of each.
  void at_loop(int loop) {
    if (batch_.loops.empty()) linear_.at_loop(loop);
  }

  void* x() const { return x_; }      // act [N, D]: N h when the block begins, where the architecture norms it
  void* d_x() const { return d_x_; }  // act [N, D]: ∂L/∂(N h), or ∂L/∂h where it does not, when its backward ends

  // next: weight of the norm that follows `out`, whose output goes to `next_out`; NULL: none. plane: of `cache`.
  void forward(const LayerWeights& w, const BlockMemory& b, int64_t plane, const void* in, void* out, const void* next,
               void* next_out);
  // dh: real [N, D], ∂L/∂out on entry, ∂L/∂in on exit but for what goes through d_x. next: the norm that follows, whose
  // ∂L/∂output is in d_x.
  void backward(const LayerWeights& w, const LayerWeights& d, const BlockMemory& b, const void* out, void* dh, const void* next,
                void* d_next);
  // Its end: the first matrix, for which N h must be in x again.
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
  // Columns of a matrix of `width` to or from columns of another: act [N, columns].
  void copy_columns(const void* from, int64_t from_width, void* to, int64_t to_width, int64_t columns);
  void* column(void* matrix, int64_t at) const { return static_cast<char*>(matrix) + size_t(at) * act_; }
  LoopAttention attention_arguments(const BlockMemory& b) const;
  const void* edit(const Shift& w, const BlockMemory& b, int64_t plane, const void* x);
  void attend(const BlockMemory& b, int64_t plane);
  void attend_behind_prefixes(const BlockMemory& b, const void* keys, const void* values);

  const std::shared_ptr<Device> device_;
  const LoopDType dt_;
  const Architecture& a_;
  const DeviceBatch batch_;
  const void* rope_;
  const CacheUse* cache_;
  StackMemory& memory_;
  LinearLayers linear_;
  ShiftFfn shift_;
  const int64_t shift_rank_;
  const size_t act_, real_;
  void *x_ = nullptr, *activation_ = nullptr;
  void *d_activation_ = nullptr, *d_branch_ = nullptr, *d_x_ = nullptr, *d_attention_ = nullptr, *d_qkv_ = nullptr;
};

}  // namespace looplm

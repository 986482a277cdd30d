// The looped stack: T times the same L blocks with a norm after every loop (math.md §1), forward and backward. Which kernel runs
// on which buffer, what is kept and what is computed again is decided here and nowhere else.
#pragma once
#include "batch.h"
#include "model.h"

namespace looplm {

// Earlier tokens of a prompt that a forward continues: their keys and values are in the cache, and attention finds them in front
// of the batch's own rows.
struct CachedPrefix {
  int64_t row;   // of the extended batch, whose first rows are all prefixes and whose last are the batch
  int64_t slot;  // of its first token
  int64_t length;
};

// Where a forward puts its keys and values, and, when decoding, reads those of earlier tokens: `planes` planes of every layer,
// one per loop or one that the loops share.
struct CacheUse {
  void *keys, *values;  // act [layers, planes, slots, kv_heads · head_dim]
  int64_t slots;        // of a plane
  int planes;           // of a layer
  const int32_t* rows;  // device [N]: the slot of each row; when decoding counted from the layer's first plane, so that rows may
                        // be at loops of their own, otherwise from the plane of the loop
  const LoopCacheContext* contexts;  // device [N] when decoding; NULL for prompts, whose tokens attend within the batch
  const CachedPrefix* prefixes;      // of prompts; the batch's segments then count rows of the extended batch
  int32_t prefix_count;
  int64_t prefix_rows;
};

// Noise added to the latent states (LoopRPT, math.md §5). Its gradient is the identity, and a recomputed state gets the same
// noise again. `state`: the normed state of every loop, which gate, head and the next loop read; `residual`: the residual stream
// of every loop before that norm; `embedding`: the embedded tokens, once.
enum class NoiseSite { state, residual, embedding };
struct LatentNoise {
  NoiseSite site;
  const void* given;  // act [T, N, D] (`embedding` reads the first [N, D]), or NULL: drawn by the backend from the fields below
  std::vector<double> sigma;  // of each of the equal runs that the batch's tokens are cut into
  uint64_t seed;
  const int32_t* streams;  // device [N]: which draw a token belongs to
};

class Stack {
 public:
  enum class Keep { nothing, all, per_loop, per_layer };  // for the backward: nothing is forward only

  // rope: Model::rope_table for at least the batch's positions. Buffers come from the workspace and are valid until the next
  // Stack on it.
  Stack(std::shared_ptr<Device> device, LoopDType dt, const ModelConfig& config, const Weights& weights, Workspace& workspace,
        const void* rope, const DeviceBatch& batch, int loops, Keep keep, const CacheUse* cache = nullptr,
        const LatentNoise* noise = nullptr, bool first_given = false);

  // From token ids; from given states act [N, D] in place of the embedded tokens, or those that the caller has put into input();
  // or from a first loop that was run elsewhere, its normed states act [N, D] given `copies` times over: only loops 2 to T are
  // run then.
  void forward_tokens();
  void forward_states(const void* states);
  void forward_input();
  void* input() const { return input_; }  // act [N, D]
  void forward_after_first(const void* first, int copies);
  void* hidden() const { return hidden_; }  // act [T, N, D]: the normed state after every loop
  void gate_logits(void* out);              // real [T, N]

  // d_hidden: real [T, N, D], ∂L/∂hidden, consumed. Adds to the gradients (the embedding's too). After forward_after_first it
  // stops at the first loop's states, whose whole gradient is then in the first [N, D] of d_hidden.
  void backward(const Weights& gradients, void* d_hidden);

 private:
  struct Block {  // what one block leaves for its backward
    void *qkv, *attention, *lse, *branch_1, *middle, *gate_up, *branch_2;
  };
  Block block(int t, int l) const;
  void* state(int t, int l) const;  // input of block l of loop t; l = L: the last block's output, before the loop's norm
  void lay_out();
  void forward_loop(int t);
  void forward_block(int t, int l);
  void backward_block(int t, int l, const Weights& g);
  void normalise(const void* h, const void* weight, void* x);
  // Every linear layer of the blocks, with its adapters: y [N, out] = x [N, in] Wᵀ + s (x Aᵀ) Bᵀ;   dx = dy W + du A, du = s dy
  // B; dW += dyᵀ x, dB += s dyᵀ (x Aᵀ), dA += duᵀ x
  void linear(const Linear& w, const void* x, void* y);
  void linear_backward_input(const Linear& w, const void* dy, void* dx);
  void linear_backward_weight(const Linear& w, const Linear& d, const void* dy, const void* x);
  void gemm(const char* name, int transpose_a, int transpose_b, int64_t m, int64_t n, int64_t k, const void* a, int64_t lda,
            const void* b, int64_t ldb, void* c, int64_t ldc, int flags = 0);
  const void* into_rank(const LowRank& part, const Linear& w, const void* x);
  const void* rank_gradient(const LowRank& part, const Linear& w, const void* dy);
  void* sum_of(const Linear& w, void* out, int64_t width);
  void round_sum(const void* sum, void* out, int64_t width);
  void attend(int t, int l, const Block& b);
  void attend_behind_prefixes(const Block& b, const void* keys, const void* values);
  void disturb(int t, void* x);
  bool noise_at(NoiseSite site) const { return noise_ && noise_->site == site; }
  const void* norm_after(int l, const Weights& w) const {
    return l + 1 < config_.layers ? w.layers[size_t(l) + 1].attention_norm : w.norm;
  }
  LoopAttention attention_arguments(const Block& b) const;
  template <class F, class... A>
  void run(F LoopBackend::*f, const char* name, A... a) {
    device_->run(f, name, dt_, a...);
  }
  void* hidden_at(int t) const;

  std::shared_ptr<Device> device_;
  const LoopDType dt_;
  const ModelConfig& config_;
  const Weights& weights_;
  Workspace& workspace_;
  const void* rope_;
  const DeviceBatch batch_;
  const int loops_;
  const Keep keep_;
  const CacheUse* cache_;
  const LatentNoise* noise_;
  const int first_;          // loop that is run first
  const size_t act_, real_;  // bytes of an element
  void *input_, *hidden_, *states_, *blocks_;
  void *x_, *activation_;                                                 // scratch of the forward
  void *d_activation_, *d_branch_, *d_x_, *d_attention_, *d_qkv_, *d_h_;  // and of the backward
  size_t block_bytes_;
};

}  // namespace looplm

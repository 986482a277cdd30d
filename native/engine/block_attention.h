// The attention of a block, over a batch and over what a cache has of earlier tokens.
#pragma once
#include <memory>
#include <utility>
#include <vector>

#include "batch.h"
#include "model.h"

namespace looplm {

// A run of earlier tokens of a prompt that a forward continues: their keys and values are in the cache, and attention finds them
// in front of the batch's own rows.
struct CachedPrefix {
  int64_t row;   // of the extended batch, whose first rows are all prefixes and whose last are the batch
  int64_t slot;  // of its first token
  int64_t length;
  int64_t before = -1;  // of the last run of a prompt that goes on: the slot of the token before its own rows
};

// Of a cache in few bits, beside the rest: the recent keys and values (generation/cache.h).
struct CodedUse {
  LoopCacheCodes codes{0, 1, 0};                  // of keys; values keep all. bits 0: they are in act
  int64_t slots = 0;                              // of a plane
  void *keys = nullptr, *values = nullptr;        // act [planes, slots, kv_heads · head_dim]
  const int32_t* rows = nullptr;                  // device [N]: recent slots, counted as CacheUse::rows
  std::vector<std::pair<int64_t, int64_t>> runs;  // first rows and numbers of those that have one
  const LoopCacheContext* contexts = nullptr;     // device [N] when decoding
  // With residuals, else bits 0: CacheUse's keys and values are then records of the anchors, [blocks, slots], and a pass writes
  // none of the blocks of the loop. Those of the loops before the last are here.
  LoopCacheCodes residual{0, 1, 0};
  void *residual_keys = nullptr, *residual_values = nullptr;  // records [loop_blocks, planes - 1, slots]
  int64_t loop_blocks = 0;
  int loops = 0;                         // of prompts: how many they have; the last reads the anchor alone
  const int32_t* residual_at = nullptr;  // device [N] when decoding: LoopCodedAttention
};

// Where a forward puts its keys and values, and, when decoding, reads those of earlier tokens. Planes, in this order: of every
// block of the loop `planes`, one per loop or one that the loops share; then one of every block that runs once.
struct CacheUse {
  void *keys, *values;  // act [planes, slots, kv_heads · head_dim], or records
  int64_t slots;        // of a plane
  int planes;           // of a block of the loop
  const int32_t* rows;  // device [N]: the slot of each row; when decoding counted from the block's first plane, so that rows may
                        // be at their own loops, otherwise from the plane of the loop
  const LoopCacheContext* contexts;  // device [N] when decoding; NULL for prompts, whose tokens attend within the batch
  const CachedPrefix* prefixes;      // of prompts; the batch's segments then count rows of the extended batch
  int32_t prefix_count;
  int64_t prefix_rows;
  // Of layers whose MLP sees the token before (shift.h): a plane's y in two halves, act [planes, slots, rank], and when decoding
  // the slots of the rows' predecessors, counted as `rows`.
  void *shift_p = nullptr, *shift_a = nullptr;
  const int32_t* before = nullptr;
  const std::vector<int32_t>* first = nullptr;  // rows without a predecessor; NULL: none
  CodedUse coded = {};
};

// What one block leaves for its backward.
struct BlockMemory {
  void *qkv, *attention, *lse, *branch_1, *middle, *gate_up, *branch_2;
  void *sum_1 = nullptr, *sum_2 = nullptr;   // of Residual::normed: the stream before its norm
  void *queries = nullptr, *keys = nullptr;  // before their norms, when they have some
  void* gated = nullptr;                     // act [N, 2 heads · head_dim]: output gate, attention
  void* shift = nullptr;                     // act [N, 2 rank] (shift.h)
};

class BlockAttention {
 public:
  // cache: NULL when training. What is given outlives this.
  BlockAttention(std::shared_ptr<Device> device, LoopDType dt, const Architecture& architecture, const DeviceBatch& batch,
                 const CacheUse* cache, StackMemory& memory)
      : device_(std::move(device)),
        dt_(dt),
        a_(architecture),
        batch_(batch),
        cache_(cache),
        memory_(memory),
        act_(loop_dtype_size(dt)),
        real_(loop_dtype_size(loop_real(dt))) {}

  LoopAttention arguments(const BlockMemory& b) const;
  // b.qkv to b.attention. plane: of the cache.
  void forward(const BlockMemory& b, int64_t plane) const;

 private:
  struct Planes {
    char *keys, *values, *recent_keys, *recent_values;
    char *residual_keys, *residual_values;  // NULL: there are none
    bool of_loop;                           // with residuals: of a block of the loop
  };
  Planes planes(int64_t plane) const;
  size_t slot_bytes(LoopCacheCodes codes) const;
  size_t residual_bytes() const;  // of a slot
  void write(const BlockMemory& b, const Planes& p) const;
  void decode(const BlockMemory& b, const Planes& p) const;
  void behind_prefixes(const BlockMemory& b, const Planes& p) const;
  void read_prefix(const CachedPrefix& prefix, LoopCacheCodes codes, const char* plane, const char* residuals, char* to) const;

  const std::shared_ptr<Device> device_;
  const LoopDType dt_;
  const Architecture& a_;
  const DeviceBatch& batch_;
  const CacheUse* cache_;
  StackMemory& memory_;
  const size_t act_, real_;
};

}  // namespace looplm

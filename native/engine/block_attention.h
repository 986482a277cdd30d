// Attention of one block, over a batch and over the cached keys and values of earlier tokens.
#pragma once
#include <memory>
#include <utility>
#include <vector>

#include "batch.h"
#include "model.h"

namespace looplm {

// A run of earlier tokens of a prompt that a forward continues. Their keys and values are in the cache. Attention reads them
// as rows before the batch's own rows.
struct CachedPrefix {
  int64_t row;   // first row in the extended batch: all prefixes, then the rows of the batch
  int64_t slot;  // slot of its first token
  int64_t length;
  int64_t before = -1;  // in the last run of a prompt that continues: slot of the token before the batch's rows
};

// Additional arguments for a quantized KV cache: the recent keys and values (generation/cache.h), and the residuals.
struct CodedUse {
  LoopCacheCodes codes{0, 1, 0};                  // of the keys; values are never pruned. bits 0: not quantized
  int64_t slots = 0;                              // recent slots per plane
  void *keys = nullptr, *values = nullptr;        // act [planes, slots, kv_heads · head_dim]
  const int32_t* rows = nullptr;                  // device [N]: recent slots, counted like CacheUse::rows
  std::vector<std::pair<int64_t, int64_t>> runs;  // (first row, count) of the rows that have a recent slot
  const LoopCacheContext* contexts = nullptr;     // device [N] when decoding
  // Residuals; bits 0: none. With residuals, CacheUse's keys and values are the anchor records, [blocks, slots], and a pass
  // writes no records for the looped blocks. The residual records of the earlier loops are in residual_keys and
  // residual_values.
  LoopCacheCodes residual{0, 1, 0};
  void *residual_keys = nullptr, *residual_values = nullptr;  // records [loop_blocks, planes - 1, slots]
  int64_t loop_blocks = 0;
  int loops = 0;                         // for prompts: how many loops they run; the last one reads only the anchor
  const int32_t* residual_at = nullptr;  // device [N] when decoding (LoopCodedAttention)
};

// Where a forward writes its keys and values and, when decoding, reads those of earlier tokens. Order of planes: first
// `planes` for every looped block, one per loop or one that the loops share. Then one for every block that runs once.
struct CacheUse {
  void *keys, *values;  // act [planes, slots, kv_heads · head_dim], or records
  int64_t slots;        // per plane
  int planes;           // per looped block
  const int32_t* rows;  // device [N]: the slot of each row. For prompts it counts from the plane of the loop. When decoding it
                        // counts from the block's first plane, so that each row can be in its own loop.
  const LoopCacheContext* contexts;  // device [N] when decoding; NULL for prompts, whose tokens attend within the batch
  const CachedPrefix* prefixes;      // for prompts; the batch's segments then count rows of the extended batch
  int32_t prefix_count;
  int64_t prefix_rows;
  // For layers whose MLP reads the previous token (shift.h): the two halves of a plane's y, act [planes, slots, rank].
  // before: when decoding, the slots of the rows' previous tokens, counted like `rows`.
  void *shift_p = nullptr, *shift_a = nullptr;
  const int32_t* before = nullptr;
  const std::vector<int32_t>* first = nullptr;  // rows without a previous token; NULL: none
  CodedUse coded = {};
};

// What one block saves for its backward.
struct BlockMemory {
  void *qkv, *attention, *lse, *branch_1, *middle, *gate_up, *branch_2;
  void *sum_1 = nullptr, *sum_2 = nullptr;   // for Residual::normed: the residual stream before its norm
  void *queries = nullptr, *keys = nullptr;  // before their norms, if they have norms
  void* gated = nullptr;                     // act [N, 2 heads · head_dim]: output gate, then attention
  void* shift = nullptr;                     // act [N, 2 rank] (shift.h)
};

class BlockAttention {
 public:
  // cache: NULL when training. The caller keeps all arguments alive longer than this object.
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
  // Computes b.attention from b.qkv. plane: index of the cache plane.
  void forward(const BlockMemory& b, int64_t plane) const;

 private:
  struct Planes {
    char *keys, *values, *recent_keys, *recent_values;
    char *residual_keys, *residual_values;  // NULL: no residuals are read
    bool of_loop;                           // the cache has residuals, and this is a looped block
  };
  Planes planes(int64_t plane) const;
  size_t slot_bytes(LoopCacheCodes codes) const;
  size_t residual_bytes() const;  // per slot
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

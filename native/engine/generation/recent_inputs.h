// Where the rows of a pass find their keys: in the slots of the cache, and, where it is in few bits, in the recent ones too.
#pragma once
#include "rows.h"

namespace looplm {

class RecentInputs {
 public:
  explicit RecentInputs(Generation& generation) : g_(generation) {}

  // Of the next row, whose last key is its own: the keys of the first tokens of its prompt and of the first slots of it. Returns
  // where they lie in loop `loop`'s plane, and keeps what is among the recent ones.
  LoopCacheContext add(const Row& row, int64_t of_prompt, int32_t of_own, int loop);
  // Of all rows since the last time.
  void upload_to(CacheUse& use);

 private:
  Generation& g_;
  std::vector<int32_t> slots_, residual_at_;
  std::vector<LoopCacheContext> contexts_;
  Buffer slot_memory_, context_memory_, residual_memory_;
};

}  // namespace looplm

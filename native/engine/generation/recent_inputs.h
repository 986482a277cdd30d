// Where the rows of a pass find their keys: in the cache slots, and for a quantized cache also in the recent slots.
#pragma once
#include "rows.h"

namespace looplm {

class RecentInputs {
 public:
  explicit RecentInputs(Generation& generation) : g_(generation) {}

  // Adds the next row. It attends to the first `of_prompt` tokens of its prompt and to its own first `of_own` slots; the last
  // one is the row's token. Returns the runs in the plane of loop `loop`, and remembers those among the recent slots.
  LoopCacheContext add(const Row& row, int64_t of_prompt, int32_t of_own, int loop);
  // Uploads what was added for all rows since the last call.
  void upload_to(CacheUse& use);

 private:
  Generation& g_;
  std::vector<int32_t> slots_, residual_at_;
  std::vector<LoopCacheContext> contexts_;
  Buffer slot_memory_, context_memory_, residual_memory_;
};

}  // namespace looplm

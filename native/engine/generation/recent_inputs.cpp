#include "recent_inputs.h"

#include <utility>

namespace looplm {

LoopCacheContext RecentInputs::add(const Row& row, int64_t of_prompt, int32_t of_own, int loop) {
  const Cache& cache = g_.cache;
  const int32_t plane = cache.slot_at(loop, 0);
  if (!cache.coded()) return row.context(of_prompt, of_own, plane);
  const Row::Contexts out = row.contexts(of_prompt, of_own, plane, cache.recent_at(loop, 0));
  slots_.push_back(cache.recent_at(loop, row.recent_slot(of_prompt + of_own - 1)));
  contexts_.push_back(out.recent);
  return out.records;
}

void RecentInputs::upload_to(CacheUse& use) {
  if (!g_.cache.coded()) return;
  use.coded.rows = upload(g_.model.device, slot_memory_, slots_);
  use.coded.contexts = upload(g_.model.device, context_memory_, contexts_);
  use.coded.runs = {{0, int64_t(slots_.size())}};
  slots_.clear();
  contexts_.clear();
}

}  // namespace looplm

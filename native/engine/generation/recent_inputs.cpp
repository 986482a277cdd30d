#include "recent_inputs.h"

#include <utility>

namespace looplm {

LoopCacheContext RecentInputs::add(const Row& row, int64_t of_prompt, int32_t of_own, int loop) {
  const Cache& cache = g_.cache;
  const int32_t plane = cache.slot_at(loop, 0);
  if (!cache.coded()) return row.context(of_prompt, of_own, plane);
  const int32_t anchor = cache.with_residuals() ? 0 : plane;
  const Row::Contexts out = row.contexts(of_prompt, of_own, anchor, cache.recent_at(loop, 0));
  if (cache.with_residuals()) residual_at_.push_back(loop + 1 < row.max_loops ? plane : -1);
  slots_.push_back(cache.recent_at(loop, row.recent_slot(of_prompt + of_own - 1)));
  contexts_.push_back(out.recent);
  return out.records;
}

void RecentInputs::upload_to(CacheUse& use) {
  if (!g_.cache.coded()) return;
  use.coded.rows = upload(g_.model.device, slot_memory_, slots_);
  use.coded.contexts = upload(g_.model.device, context_memory_, contexts_);
  use.coded.runs = {{0, int64_t(slots_.size())}};
  if (g_.cache.with_residuals()) use.coded.residual_at = upload(g_.model.device, residual_memory_, residual_at_);
  residual_at_.clear();
  slots_.clear();
  contexts_.clear();
}

}  // namespace looplm

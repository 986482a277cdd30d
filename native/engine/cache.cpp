#include "cache.h"

#include <algorithm>

namespace looplm {

void Cache::reserve(int64_t slots) {
  const int64_t wanted = used_ + slots;
  if (wanted > slots_) grow(limit_ > 0 ? std::min(limit_, wanted) : wanted);
}

int64_t Cache::take(int64_t slots) {
  if (slots == 0) return 0;
  auto fits = [&] { return std::find_if(free_.begin(), free_.end(), [&](const auto& hole) { return hole.second >= slots; }); };
  auto hole = fits();
  if (hole == free_.end()) {
    // What lies free at the end grows with the cache.
    const int64_t tail = free_.empty() || free_.rbegin()->first + free_.rbegin()->second < slots_ ? 0 : free_.rbegin()->second;
    const int64_t least = slots_ - tail + slots;
    if (limit_ > 0 && least > limit_) return -1;
    const int64_t roomy = std::max(least, slots_ + slots_ / 2);
    grow(limit_ > 0 ? std::min(limit_, roomy) : roomy);
    hole = fits();
  }
  const int64_t first = hole->first, rest = hole->second - slots;
  free_.erase(hole);
  if (rest > 0) free_[first + slots] = rest;
  used_ += slots;
  return first;
}

void Cache::give(int64_t first, int64_t slots) {
  if (slots == 0) return;
  used_ -= slots;
  auto after = free_.lower_bound(first);
  if (after != free_.end() && first + slots == after->first) {
    slots += after->second;
    after = free_.erase(after);
  }
  if (after != free_.begin()) {
    const auto before = std::prev(after);
    if (before->first + before->second == first) {
      before->second += slots;
      return;
    }
  }
  free_[first] = slots;
}

void Cache::clear() {
  free_.clear();
  if (slots_ > 0) free_[0] = slots_;
  used_ = 0;
}

void Cache::grow(int64_t slots) {
  const size_t layers = size_t(model_.config.layers), size = width() * loop_dtype_size(model_.dt);
  const int64_t planes = int64_t(layers) * planes_;
  if (slots * planes_ > INT32_MAX)
    throw Error("INVALID_ARGUMENT", "generate",
                std::to_string(slots) + " cached tokens of " + std::to_string(planes_) +
                    " loops are more than a cache can address; generate fewer tokens or sequences at a time");
  for (Buffer* buffer : {&keys_, &values_}) {
    Buffer larger(model_.device, size_t(planes * slots) * size + 64);
    for (const auto& [first, count] : written_()) {
      const int64_t row = int64_t(width()), shape[] = {planes, count * row}, from[] = {slots_ * row, 1}, to[] = {slots * row, 1};
      model_.device->run(&LoopBackend::copy_strided, "grow the cache", model_.dt, model_.dt, 2, shape,
                         static_cast<const void*>(buffer->at(size_t(first * row) * loop_dtype_size(model_.dt))), from,
                         larger.at(size_t(first * row) * loop_dtype_size(model_.dt)), to);
    }
    *buffer = std::move(larger);
  }
  generation_++;
  const int64_t added = slots - slots_;
  used_ += added;  // as if the new slots had been taken
  const int64_t first = slots_;
  slots_ = slots;
  give(first, added);
}

CacheUse Cache::decoding(const int32_t* rows, const LoopCacheContext* contexts) const {
  return {keys_.as<>(), values_.as<>(), slots_, planes_, rows, contexts, nullptr, 0, 0};
}
CacheUse Cache::prompts(const int32_t* rows, const CachedPrefix* prefixes, int32_t prefix_count, int64_t prefix_rows) const {
  return {keys_.as<>(), values_.as<>(), slots_, planes_, rows, nullptr, prefixes, prefix_count, prefix_rows};
}

void Cache::copy_up(int64_t slot, int t, int loops) {
  if (shared() || t + 1 >= loops) return;
  const int64_t row = int64_t(width()), plane = slots_ * row, layer = planes_ * plane;
  const int64_t shape[] = {model_.config.layers, loops - t - 1, row}, from[] = {layer, 0, 1}, to[] = {layer, plane, 1};
  const size_t size = loop_dtype_size(model_.dt);
  for (const Buffer* buffer : {&keys_, &values_})
    model_.device->run(&LoopBackend::copy_strided, "copy up", model_.dt, model_.dt, 3, shape,
                       static_cast<const void*>(buffer->at(size_t(t * plane + slot * row) * size)), from,
                       buffer->at(size_t((t + 1) * plane + slot * row) * size), to);
}

}  // namespace looplm

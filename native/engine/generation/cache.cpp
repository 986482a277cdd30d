#include "cache.h"

#include <algorithm>

namespace looplm {

int64_t Cache::allocate(int64_t slots) {
  if (slots == 0) return 0;
  if (used_ == 0 && shift_p_.width != shift_width()) clear();  // an adapter has come or gone
  const auto hole = std::find_if(free_.begin(), free_.end(), [&](const auto& one) { return one.second >= slots; });
  if (hole == free_.end()) return -1;
  const int64_t first = hole->first, rest = hole->second - slots;
  free_.erase(hole);
  if (rest > 0) free_[first + slots] = rest;
  used_ += slots;
  return first;
}

void Cache::release(int64_t first, int64_t slots) {
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

void Cache::clear() noexcept {
  for (Part* part : {&keys_, &values_, &shift_p_, &shift_a_}) *part = {};
  free_.clear();
  slots_ = used_ = 0;
  generation_++;
}

int64_t Cache::room() const {
  const size_t free = model_.device->memory().free, usable = free - free / 10;  // a tenth is for activations
  int64_t held = 0;  // of the host's memory what was written, of a device's all
  if (!model_.device->host_visible()) held = slots_;
  else
    for (const auto& run : written_()) held += run.second;
  const int64_t more = int64_t(usable / slot_bytes()), addressed = INT32_MAX / planes_;
  const int64_t fitting = held <= more ? held + more : slots_;  // a larger cache begins with a copy of this one
  return std::min({fitting, addressed, limit_ > 0 ? limit_ : addressed});
}

bool Cache::grow_for(int64_t slots, int64_t preferred) {
  if (used_ == 0) clear();  // nothing to copy: the two need not be there at once
  // What lies free at the end grows with the cache.
  const int64_t tail = free_.empty() || free_.rbegin()->first + free_.rbegin()->second < slots_ ? 0 : free_.rbegin()->second;
  const int64_t least = slots_ - tail + slots, most = room();
  if (least > most) return false;
  const int64_t roomy = thrifty ? least : std::min(most, std::max({least, slots_ - tail + preferred, slots_ + slots_ / 2}));
  return replace(roomy) || (least < roomy && replace(least));
}

// A cache of another size with the same contents. False when there is no memory for it.
bool Cache::replace(int64_t slots) {
  const Cache::Runs runs = written_();
  const size_t size = loop_dtype_size(model_.dt);
  const int64_t planes = all_planes_;
  Part larger[] = {{{}, width()}, {{}, width()}, {{}, shift_width()}, {{}, shift_width()}};
  try {
    for (Part& part : larger)
      if (part.width > 0) part.buffer = Buffer(model_.device, size_t(planes * slots) * part.width * size + 64);
  } catch (const Error& error) {
    if (error.code != "OUT_OF_MEMORY") throw;
    return false;
  }
  Part* const parts[] = {&keys_, &values_, &shift_p_, &shift_a_};
  for (size_t i = 0; i < 4; i++)
    for (const auto& [first, count] : runs) {
      const int64_t row = int64_t(larger[i].width);
      if (row == 0) continue;
      const int64_t shape[] = {planes, count * row}, from[] = {slots_ * row, 1}, to[] = {slots * row, 1};
      const size_t at = size_t(first * row) * size;
      model_.device->run(&LoopBackend::copy_strided, "grow the cache", model_.dt, model_.dt, 2, shape, parts[i]->buffer.at(at),
                         from, larger[i].buffer.at(at), to);
    }
  const int64_t added = slots - slots_, first = slots_;
  used_ += added;  // as if the new slots had been allocated
  slots_ = slots;
  generation_++;
  for (size_t i = 0; i < 4; i++) *parts[i] = std::move(larger[i]);
  release(first, added);
  return true;
}

CacheUse Cache::decoding(const int32_t* rows, const LoopCacheContext* contexts, const int32_t* before) {
  return {keys_.buffer.as<>(),    values_.buffer.as<>(),  slots_, planes_, rows, contexts, nullptr, 0, 0,
          shift_p_.buffer.as<>(), shift_a_.buffer.as<>(), before};
}
CacheUse Cache::prompts(const int32_t* rows, const CachedPrefix* prefixes, int32_t prefix_count, int64_t prefix_rows) {
  return {keys_.buffer.as<>(),    values_.buffer.as<>(),  slots_, planes_, rows, nullptr, prefixes, prefix_count, prefix_rows,
          shift_p_.buffer.as<>(), shift_a_.buffer.as<>(), nullptr};
}

void Cache::copy_slots(Planes which, int64_t from, int64_t to, int64_t count) {
  const int64_t readout = model_.config.blocks(model_.config.read), states = all_planes_ - readout;
  const int64_t first = which == Planes::states ? 0 : states, planes = which == Planes::states ? states : readout;
  if (count == 0 || planes == 0) return;
  const size_t size = loop_dtype_size(model_.dt);
  for (Part* part : {&keys_, &values_, &shift_p_, &shift_a_}) {
    const int64_t row = int64_t(part->width);
    if (row == 0) continue;
    const int64_t shape[] = {planes, count * row}, strides[] = {slots_ * row, 1};
    model_.device->run(&LoopBackend::copy_strided, "copy slots", model_.dt, model_.dt, 2, shape,
                       part->buffer.at(size_t((first * slots_ + from) * row) * size), strides,
                       part->buffer.at(size_t((first * slots_ + to) * row) * size), strides);
  }
}

void Cache::copy_up(int64_t slot, int t, int loops) {
  if (shared() || t + 1 >= loops) return;
  const size_t size = loop_dtype_size(model_.dt);
  for (Part* part : {&keys_, &values_, &shift_p_, &shift_a_}) {
    const int64_t row = int64_t(part->width), plane = slots_ * row, block = planes_ * plane;
    if (row == 0) continue;
    const int64_t shape[] = {loop_blocks_, loops - t - 1, row}, from[] = {block, 0, 1}, to[] = {block, plane, 1};
    model_.device->run(&LoopBackend::copy_strided, "copy up", model_.dt, model_.dt, 3, shape,
                       part->buffer.at(size_t(t * plane + slot * row) * size), from,
                       part->buffer.at(size_t((t + 1) * plane + slot * row) * size), to);
  }
}

}  // namespace looplm

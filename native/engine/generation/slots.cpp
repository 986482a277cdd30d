#include "slots.h"

#include <algorithm>

namespace looplm {

int64_t Slots::allocate(int64_t slots) {
  if (slots == 0) return 0;
  const auto hole = std::find_if(free_.begin(), free_.end(), [&](const auto& one) { return one.second >= slots; });
  if (hole == free_.end()) return -1;
  const int64_t first = hole->first, rest = hole->second - slots;
  free_.erase(hole);
  if (rest > 0) free_[first + slots] = rest;
  used_ += slots;
  return first;
}

void Slots::release(int64_t first, int64_t slots) {
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

void Slots::add(int64_t slots) {
  const int64_t first = count_;
  count_ += slots;
  used_ += slots;  // as if they were allocated, so that release() can free them
  release(first, slots);
}

int64_t Slots::free_at_end() const {
  return free_.empty() || free_.rbegin()->first + free_.rbegin()->second < count_ ? 0 : free_.rbegin()->second;
}

void Slots::clear() noexcept {
  free_.clear();
  count_ = used_ = 0;
}

}  // namespace looplm

// Which slots are free: runs of neighbours are handed out and come back.
#pragma once
#include <cstdint>
#include <map>

namespace looplm {

class Slots {
 public:
  // The first of `slots` neighbouring free ones, or -1 when there are none at present.
  int64_t allocate(int64_t slots);
  void release(int64_t first, int64_t slots);
  void add(int64_t slots);  // behind the last one, free
  int64_t free_at_end() const;
  void clear() noexcept;
  int64_t count() const { return count_; }
  int64_t used() const { return used_; }

 private:
  int64_t count_ = 0, used_ = 0;
  std::map<int64_t, int64_t> free_;  // first slot -> how many
};

}  // namespace looplm

// A free list of cache slots. Slots are allocated and released as runs of consecutive slots.
#pragma once
#include <cstdint>
#include <map>

namespace looplm {

class Slots {
 public:
  // Allocates `slots` consecutive slots. Returns the first, or -1 if there is no such run at present.
  int64_t allocate(int64_t slots);
  void release(int64_t first, int64_t slots);
  void add(int64_t slots);  // adds free slots at the end
  int64_t free_at_end() const;
  void clear() noexcept;
  int64_t count() const { return count_; }
  int64_t used() const { return used_; }

 private:
  int64_t count_ = 0, used_ = 0;
  std::map<int64_t, int64_t> free_;  // first slot -> number of slots
};

}  // namespace looplm

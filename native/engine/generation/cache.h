// The keys and values of all sequences under way. Planes (block.h): one per loop of every block of the loop, or one that the
// loops share, then one of every block that runs once; all of the same slots. A sequence holds runs of neighbouring slots.
#pragma once
#include <functional>
#include <map>
#include <utility>
#include <vector>

#include "../stack.h"

namespace looplm {

class Cache {
 public:
  using Runs = std::vector<std::pair<int64_t, int64_t>>;  // first slots and lengths

  // loops: planes of a block of the loop unless they share one. limit: the most slots a plane may have, 0: as many as fit in
  // memory. written: the slots that hold something; the others are not copied when the cache grows, and in the host's memory cost
  // nothing until they are written.
  Cache(Model& model, int loops, bool shared, int64_t limit, std::function<Runs()> written)
      : model_(model),
        planes_(shared ? 1 : loops),
        loop_blocks_(model.config.blocks(model.config.loop)),
        all_planes_(loop_blocks_ * planes_ + model.config.blocks(model.config.begin) + model.config.blocks(model.config.read)),
        shared_(shared),
        limit_(limit),
        written_(std::move(written)) {}

  // The first of `slots` neighbouring free slots, or -1 when there are none at present.
  int64_t allocate(int64_t slots);
  void release(int64_t first, int64_t slots);
  // Makes room for `slots` neighbouring ones and, where that is possible, for `preferred`: of the limit, of what a slot's number
  // can address, and of the device's memory. False when there is no such room at present; what is held has not changed then.
  bool grow_for(int64_t slots, int64_t preferred);
  // The most slots there could be now, if nothing else took memory.
  int64_t room() const;
  void clear() noexcept;  // gives the memory back

  size_t slot_bytes() const { return size_t(2 * all_planes_) * (width() + shift_width()) * loop_dtype_size(model_.dt); }

  uint64_t generation() const { return generation_; }  // another number when the planes have moved
  int64_t used() const { return used_; }
  int64_t slots() const { return slots_; }
  bool shared() const { return shared_; }

  bool thrifty = false;  // grow by what is asked for and no more

  // For a pass whose rows are at their own loops: `rows` and the contexts hold slots as `slot_at` gives them.
  // before: the slots of the rows' predecessors, in the same way; read where an adapter has shifts.
  CacheUse decoding(const int32_t* rows, const LoopCacheContext* contexts, const int32_t* before);
  // For prompts: every loop of the stack writes its own plane (of a shared cache, over the one before).
  CacheUse prompts(const int32_t* rows, const CachedPrefix* prefixes, int32_t prefix_count, int64_t prefix_rows);
  // The keys and values of the first plane of a block of the loop.
  std::pair<void*, void*> planes(int block) {
    const size_t at = size_t(block * planes_) * size_t(slots_) * width() * loop_dtype_size(model_.dt);
    return {keys_.buffer.at(at), values_.buffer.at(at)};
  }
  // A slot of loop t's plane, counted from the block's first plane.
  int32_t slot_at(int t, int64_t slot) const { return int32_t((planes_ == 1 ? 0 : t) * slots_ + slot); }

  // Copies `count` slots, of the planes of `begin` and of the loop or of those of the readout.
  enum class Planes { states, readout };
  void copy_slots(Planes planes, int64_t from, int64_t to, int64_t count);
  // A token that left after loop t (0-based): its keys and values are copied to the planes of the loops [t + 1, loops), where
  // later, deeper tokens look for them.
  void copy_up(int64_t slot, int t, int loops);

 private:
  bool replace(int64_t slots);
  size_t shift_width() const { return size_t(model_.weights().shift_rank); }
  size_t width() const { return size_t(model_.config.kv_heads) * size_t(model_.config.head_dim); }

  Model& model_;
  const int planes_;  // of a block of the loop
  const int64_t loop_blocks_, all_planes_;
  const bool shared_;
  const int64_t limit_;
  const std::function<Runs()> written_;
  int64_t slots_ = 0, used_ = 0;
  uint64_t generation_ = 0;
  std::map<int64_t, int64_t> free_;  // first slot -> how many
  // act [all planes, slots, width]: keys and values, width kv_heads · head_dim; the two halves of shift.h's y, width rank
  struct Part {
    Buffer buffer;
    size_t width = 0;
  };
  Part keys_, values_, shift_p_, shift_a_;
};

}  // namespace looplm

// The keys and values of all sequences under way. Planes (block.h): one per loop of every block of the loop, or one that the
// loops share, then one of every block that runs once; all of the same slots. A sequence holds runs of neighbouring slots.
//
// In few bits, slots hold records (backend.h, LoopCacheCodes), and a sequence is cut into blocks of BLOCK tokens: a token sees
// the earlier ones of its block as they were, and those of the blocks before by their records. So what it sees depends on
// positions alone, whatever ran when and beside what. The newest block of a sequence lies in separate slots, the recent ones.
//
// With residuals a token gets its records when it has left the loops: one of its last loop's numbers, one of each earlier loop's
// difference to them. The tokens of a block have left the loops before one of the next enters them.
#pragma once
#include <algorithm>
#include <functional>
#include <utility>
#include <vector>

#include "../stack.h"
#include "slots.h"

namespace looplm {

class Cache {
 public:
  using Runs = std::vector<std::pair<int64_t, int64_t>>;  // first slots and lengths

  // loops: planes of a block of the loop unless they share one. limit: the most slots a plane may have, 0: as many as fit in
  // memory. written: the slots that hold something; the others are not copied when the cache grows, and in the host's memory cost
  // nothing until they are written.
  // bits: 0: rows in act; 4 or 8: records. residual_bits: of the differences between loops, 0: every loop has its records.
  // pruned: records of keys have codes of half of a group.
  Cache(Model& model, int loops, bool shared, int64_t limit, std::function<Runs()> written, int bits = 0, int residual_bits = 0,
        bool pruned = false)
      : model_(model),
        codes_{bits, bits > 0 ? group_of(model.config.head_dim) : 1, pruned ? group_of(model.config.head_dim) / 2 : 0},
        residual_codes_{shared || loops == 1 ? 0 : residual_bits, group_of(model.config.head_dim), 0},
        planes_(shared ? 1 : loops),
        loop_blocks_(model.config.blocks(model.config.loop)),
        all_planes_(loop_blocks_ * planes_ + model.config.blocks(model.config.begin) + model.config.blocks(model.config.read)),
        shared_(shared),
        limit_(limit),
        written_(std::move(written)) {}

  int64_t allocate(int64_t slots);  // Slots::allocate
  void release(int64_t first, int64_t slots) { slots_.release(first, slots); }
  // Makes room for `slots` neighbouring ones and, where that is possible, for `preferred`: of the limit, of what a slot's number
  // can address, and of the device's memory. False when there is no such room at present; what is held has not changed then.
  bool grow_for(int64_t slots, int64_t preferred);
  // The most slots there could be now, if nothing else took memory.
  int64_t room() const;
  void clear() noexcept;  // gives the memory back

  size_t slot_bytes() const;

  // ---- Records and recent slots; of a cache in act there are none, and 0 are allocated.
  static constexpr int64_t BLOCK = 64;
  bool coded() const { return codes_.bits > 0; }
  bool with_residuals() const { return residual_codes_.bits > 0; }
  // Where a beginning may end that another sequence goes on from: at multiples of so many tokens.
  int64_t unit() const { return coded() ? BLOCK : 1; }
  // The first token of the block of a position; two_way: tokens at the start that see each other, which are in one block.
  static int64_t block_start(int64_t position, int64_t two_way) {
    return position < (two_way + BLOCK - 1) / BLOCK * BLOCK ? 0 : position / BLOCK * BLOCK;
  }
  // Of the next block.
  static int64_t block_end(int64_t position, int64_t two_way) {
    return (std::max(position + 1, two_way) + BLOCK - 1) / BLOCK * BLOCK;
  }
  int64_t allocate_recent(int64_t slots);  // or -1: there is no memory
  void release_recent(int64_t first, int64_t slots) { recent_slots_.release(first, slots); }
  size_t recent_bytes() const { return size_t(2 * all_planes_) * width() * loop_dtype_size(model_.dt); }  // of a slot
  int32_t recent_at(int t, int64_t slot) const { return int32_t((planes_ == 1 ? 0 : t) * recent_slots_.count() + slot); }

  uint64_t generation() const { return generation_; }  // another number when the planes have moved
  int64_t used() const { return slots_.used(); }
  int64_t slots() const { return slots_.count(); }
  bool shared() const { return shared_; }

  bool thrifty = false;  // grow by what is asked for and no more

  // For a pass whose rows are at their own loops: `rows` and the contexts hold slots as `slot_at` gives them.
  // before: the slots of the rows' predecessors, in the same way; read where an adapter has shifts.
  CacheUse decoding(const int32_t* rows, const LoopCacheContext* contexts, const int32_t* before);
  // For prompts: every loop of the stack writes its own plane (of a shared cache, over the one before).
  CacheUse prompts(const int32_t* rows, const CachedPrefix* prefixes, int32_t prefix_count, int64_t prefix_rows);
  // The keys and values of the first plane of a block of the loop.
  std::pair<void*, void*> planes(int block) {
    const auto at = [&](Part& part) { return part.buffer.at(part.bytes(block * part.of_block * slots())); };
    return {at(parts_[0]), at(parts_[1])};
  }
  // A slot of loop t's plane, counted from the block's first plane.
  int32_t slot_at(int t, int64_t slot) const { return int32_t((planes_ == 1 ? 0 : t) * slots() + slot); }

  // Copies `count` slots, of the planes of `begin` and of the loop or of those of the readout.
  enum class Planes { states, readout };
  void copy_slots(Planes planes, int64_t from, int64_t to, int64_t count);
  // A token that left after loop t (0-based): its keys and values are copied to the planes of the loops [t + 1, loops), where
  // later, deeper tokens look for them. recent: its recent slot, where it has one.
  void copy_up(int64_t slot, int64_t recent, int t, int loops);
  // With residuals: the records of tokens that have left the loops, from their recent slots. Room for as many is reserved before.
  void reserve_tokens(size_t count);
  void encode(const std::vector<LoopResidualToken>& tokens);

 private:
  struct Part {  // [loop blocks · of_block + of_others, slots, row]
    LoopDType type = LOOP_F32;
    int64_t row = 0;                      // numbers of a slot
    int64_t of_block = 0, of_others = 0;  // planes: of each block of the loop, and of all others
    Buffer buffer = {};
    size_t bytes(int64_t slots) const { return size_t(slots * row) * loop_dtype_size(type); }
  };
  static int32_t group_of(int32_t head_dim);
  bool replace(int64_t slots);
  std::vector<Part> parts() const;  // empty ones
  std::vector<Part> recent_parts() const;
  bool replace(std::vector<Part>& parts, std::vector<Part> larger, int64_t from, int64_t to, const Runs& runs);
  int64_t planes(const Part& part) const { return loop_blocks_ * part.of_block + part.of_others; }
  int64_t others() const { return all_planes_ - loop_blocks_ * planes_; }
  CacheUse use(const int32_t* rows);
  void copy_up(Part& part, int64_t slots, int64_t slot, int t, int loops);
  void* at(size_t part) { return part < parts_.size() ? parts_[part].buffer.as<>() : nullptr; }
  size_t shift_width() const { return size_t(model_.weights().shift_rank); }
  size_t width() const { return size_t(model_.config.kv_heads) * size_t(model_.config.head_dim); }
  int64_t words(LoopCacheCodes codes) const { return loop_record_bytes(codes, int64_t(width())) / 4; }
  size_t shift_at() const { return with_residuals() ? 4 : 2; }

  Model& model_;
  const LoopCacheCodes codes_, residual_codes_;  // codes_: of keys; values keep all
  const int planes_;                             // of a block of the loop
  const int64_t loop_blocks_, all_planes_;
  const bool shared_;
  const int64_t limit_;
  const std::function<Runs()> written_;
  Slots slots_, recent_slots_;
  uint64_t generation_ = 0;
  // Keys and values: act of kv_heads · head_dim, or records as int32; with residuals, their records. Where layers have shifts,
  // the two halves of shift.h's y, act of their rank.
  std::vector<Part> parts_;
  std::vector<Part> recent_;  // keys and values, act, of the recent slots
  Buffer tokens_;             // of encode
};

}  // namespace looplm

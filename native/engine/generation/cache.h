// The KV cache of all active sequences. Planes (block.h): first one per loop of every looped block, or one that the loops
// share. Then one for every block that runs once. All planes have the same slots. A sequence owns runs of consecutive slots.
//
// If the cache is quantized, slots hold records (backend.h, LoopCacheCodes), and a sequence is cut into blocks of BLOCK
// tokens. A token reads the earlier tokens of its block unquantized, and those of the blocks before as records. So what it
// reads depends only on positions, not on what runs when or together. The newest block of a sequence is in separate slots,
// the recent slots.
//
// With residuals, a token gets its records when it has left the loops: one of its last loop's numbers, and one of each
// earlier loop's difference from them. All tokens of a block have left the loops before a token of the next block enters
// them.
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
  using Runs = std::vector<std::pair<int64_t, int64_t>>;  // (first slot, length)

  // loops: planes per looped block, unless the loops share one (`shared`). limit: the most slots per plane; 0: as many as fit
  // in memory. written: returns the slots that hold something. Only those are copied when the cache grows. In host memory,
  // the other slots cost nothing until they are written.
  // bits: 0: rows in act; 4 or 8: records. residual_bits: bits of the differences between loops; 0: every loop has its own
  // records. pruned: records of keys have codes for only half of each group.
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
  // Makes room for `slots` consecutive slots and, if possible, for `preferred`. The room is bounded by the limit, by the
  // range of slot numbers and by the memory of the device. Returns false if there is no room at present; the contents are
  // then unchanged.
  bool grow_for(int64_t slots, int64_t preferred);
  // The most slots that the cache could have now, if nothing else took memory.
  int64_t room() const;
  void clear() noexcept;  // frees the memory

  size_t slot_bytes() const;

  // ---- Records and recent slots. An unquantized cache has none; allocating them returns 0.
  static constexpr int64_t BLOCK = 64;  // tokens
  bool coded() const { return codes_.bits > 0; }
  bool with_residuals() const { return residual_codes_.bits > 0; }
  // Another sequence can reuse the start of a sequence only up to a multiple of this number of tokens.
  int64_t unit() const { return coded() ? BLOCK : 1; }
  // First position of the block of `position`. two_way: number of tokens at the start that attend in both directions; they
  // are in one block.
  static int64_t block_start(int64_t position, int64_t two_way) {
    return position < (two_way + BLOCK - 1) / BLOCK * BLOCK ? 0 : position / BLOCK * BLOCK;
  }
  // First position of the next block.
  static int64_t block_end(int64_t position, int64_t two_way) {
    return (std::max(position + 1, two_way) + BLOCK - 1) / BLOCK * BLOCK;
  }
  int64_t allocate_recent(int64_t slots);  // the first slot, or -1 if there is no memory
  void release_recent(int64_t first, int64_t slots) { recent_slots_.release(first, slots); }
  size_t recent_bytes() const { return size_t(2 * all_planes_) * width() * loop_dtype_size(model_.dt); }  // per slot
  int32_t recent_at(int t, int64_t slot) const { return int32_t((planes_ == 1 ? 0 : t) * recent_slots_.count() + slot); }

  uint64_t generation() const { return generation_; }  // changes when the planes move in memory
  int64_t used() const { return slots_.used(); }
  int64_t slots() const { return slots_.count(); }
  bool shared() const { return shared_; }

  bool exact_growth = false;  // grow only by what is requested

  // For a pass in which each row is in its own loop. `rows` and the contexts hold slots as `slot_at` returns them. before:
  // the slots of the rows' previous tokens, in the same form; read only if an adapter has shifts.
  CacheUse decoding(const int32_t* rows, const LoopCacheContext* contexts, const int32_t* before);
  // For prompts. Every loop of the stack writes its own plane; if the loops share one, it overwrites the previous loop.
  CacheUse prompts(const int32_t* rows, const CachedPrefix* prefixes, int32_t prefix_count, int64_t prefix_rows);
  // The keys and values of the first plane of a looped block.
  std::pair<void*, void*> planes(int block) {
    const auto at = [&](Part& part) { return part.buffer.at(part.bytes(block * part.of_block * slots())); };
    return {at(parts_[0]), at(parts_[1])};
  }
  // A slot in the plane of loop t, counted from the first plane of its block.
  int32_t slot_at(int t, int64_t slot) const { return int32_t((planes_ == 1 ? 0 : t) * slots() + slot); }

  // Copies `count` slots, either in the planes of the readout or in all other planes (those of `begin` and of the loop).
  enum class Planes { states, readout };
  void copy_slots(Planes planes, int64_t from, int64_t to, int64_t count);
  // For a token that exits after loop t (0-based). Copies its keys and values to the planes of the loops [t + 1, loops),
  // where later, deeper tokens read them. recent: its recent slot, if it has one.
  void copy_up(int64_t slot, int64_t recent, int t, int loops);
  // With residuals: writes the records of tokens that have left the loops, from their recent slots. Call reserve_tokens
  // first, to reserve room for at least as many tokens.
  void reserve_tokens(size_t count);
  void encode(const std::vector<LoopResidualToken>& tokens);

 private:
  struct Part {  // [looped blocks · of_block + of_others, slots, row]
    LoopDType type = LOOP_F32;
    int64_t row = 0;                      // elements per slot
    int64_t of_block = 0, of_others = 0;  // planes: per looped block, and of all other blocks together
    Buffer buffer = {};
    size_t bytes(int64_t slots) const { return size_t(slots * row) * loop_dtype_size(type); }
  };
  static int32_t group_of(int32_t head_dim);
  bool replace(int64_t slots);
  std::vector<Part> parts() const;  // without memory
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
  const LoopCacheCodes codes_, residual_codes_;  // codes_: of the keys; values are never pruned
  const int planes_;                             // per looped block
  const int64_t loop_blocks_, all_planes_;
  const bool shared_;
  const int64_t limit_;
  const std::function<Runs()> written_;
  Slots slots_, recent_slots_;
  uint64_t generation_ = 0;
  // Keys, then values: act of kv_heads · head_dim, or records as int32. With residuals, their records follow. If layers have
  // shifts, the two halves of y in shift.h follow: act of their rank.
  std::vector<Part> parts_;
  std::vector<Part> recent_;  // keys and values of the recent slots, in act
  Buffer tokens_;             // for encode()
};

}  // namespace looplm

// What a pass needs of its tokens on the device: where their keys and values lie, and the registers of fresh ones.
#pragma once
#include "recent_inputs.h"

namespace looplm {

class PassInputs {
 public:
  explicit PassInputs(Generation& generation) : g_(generation), recent_(generation), begin_recent_(generation) {}

  // Neighbouring rows at the same loop: an adapter of every loop's own is added to them together.
  static std::vector<LoopRows> loops(const std::vector<ActiveToken>& tokens);
  // All that differs between passes, in one copy: contexts, then positions [n], slots [n], those of the tokens before [n], and
  // the token ids of the fresh. Returns where the positions are.
  const int32_t* upload_rows(const std::vector<ActiveToken>& tokens, CacheUse& use, int32_t& last_position);
  // The registers of fresh tokens before their first loop, at the front of the loop's own. ints: as upload_rows made them.
  void begin(const Stack& loop, const std::vector<ActiveToken>& tokens, size_t fresh, const int32_t* ints, int32_t last_position);
  const void* rows() const { return memory_.rows.as<>(); }  // as upload_rows left them

 private:
  struct Memory {
    Buffer rows;                                       // of a pass: contexts, positions, slots, token ids
    Buffer begin_slots, begin_before, begin_contexts;  // of fresh tokens in the planes of `begin`
    Buffer initial;                                    // act [fresh, D]
  };
  const void* initial_states(const std::vector<ActiveToken>& tokens, size_t fresh);

  Generation& g_;
  Memory memory_;
  RecentInputs recent_, begin_recent_;
};

}  // namespace looplm

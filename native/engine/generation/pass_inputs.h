// The device inputs of a pass: where the keys and values of its tokens are, and the registers of tokens that start their
// loops.
#pragma once
#include "recent_inputs.h"

namespace looplm {

class PassInputs {
 public:
  explicit PassInputs(Generation& generation) : g_(generation), recent_(generation), begin_recent_(generation) {}

  // Runs of consecutive tokens at the same loop, to which a per-loop adapter can be applied at once.
  static std::vector<LoopRows> loops(const std::vector<ActiveToken>& tokens);
  // Uploads everything that differs between passes in one copy: contexts, then positions [n], slots [n], slots of the
  // previous tokens [n], and the ids of the fresh tokens. Returns the device address of the positions.
  const int32_t* upload_rows(const std::vector<ActiveToken>& tokens, CacheUse& use, int32_t& last_position);
  // Computes the registers of the fresh tokens before their first loop. They come first in the input of `loop`. ints: as
  // returned by upload_rows.
  void begin(const Stack& loop, const std::vector<ActiveToken>& tokens, size_t fresh, const int32_t* ints, int32_t last_position);
  const void* rows() const { return memory_.rows.as<>(); }  // device address of the data of upload_rows

 private:
  struct Memory {
    Buffer rows;                                       // for one pass: contexts, positions, slots, token ids
    Buffer begin_slots, begin_before, begin_contexts;  // for fresh tokens in the cache planes of the `begin` steps
    Buffer initial;                                    // act [fresh, D]
  };
  const void* initial_states(const std::vector<ActiveToken>& tokens, size_t fresh);

  Generation& g_;
  Memory memory_;
  RecentInputs recent_, begin_recent_;
};

}  // namespace looplm

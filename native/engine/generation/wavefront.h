// Wavefront decoding (math.md §7): while a token is in loop t, its predicted successor already runs an earlier loop. A loop
// needs only the keys that earlier tokens have at the same loop, and these are there. A readout between loops predicts the
// successor, with the same random numbers as the final draw. If the token exits and draws another successor, the tokens after
// it start again. So the result is the same as with plain decoding.
#pragma once
#include "head_row.h"
#include "next_pass.h"

namespace looplm {

class Wavefront {
 public:
  explicit Wavefront(Generation& generation) : g_(generation) {}

  // For a new request: whether its tokens may overlap, and how many loops apart they follow each other.
  static Wave begin(Generation& generation, const GenerateRequest& request, int max_loops);
  static bool ahead(const Row& row) { return row.wave.stride > 0; }
  // Whether a token is read after `loop` loops even if it does not exit.
  static bool reads(const ActiveToken& token, int loop);
  // Processes the tokens of a row after a pass. members: their indices in `tokens`, the front first. reads: the head's
  // results for the tokens of the pass.
  void settle(const std::vector<size_t>& members, const std::vector<ActiveToken>& tokens, std::vector<HeadRow>& reads,
              NextPass& next);

 private:
  struct Moved;  // the tokens of one row
  bool holds(Row& row, const ActiveToken& token);
  bool confirm(Row& row, Moved& moved);
  void grow(Row& row, Moved& moved);

  Generation& g_;
};

}  // namespace looplm

// Wavefront decoding (math.md §7): while a token is in loop t, the one that a readout of it says comes next is in an earlier
// loop. A loop of a token needs the keys of the tokens before it at that loop alone, which are there. A readout draws with the
// random numbers of the last one; where the token that leaves the loops is another, those behind it begin again. So what is drawn
// is what plain decoding draws.
#pragma once
#include "head_row.h"
#include "next_pass.h"

namespace looplm {

class Wavefront {
 public:
  explicit Wavefront(Generation& generation) : g_(generation) {}

  // A request that enters: whether, and how far apart, its tokens may follow each other.
  static Wave begin(Generation& generation, const GenerateRequest& request, int max_loops);
  static bool ahead(const Row& row) { return row.wave.stride > 0; }
  // Whether a token is read after `loop` loops although it may stay.
  static bool reads(const ActiveToken& token, int loop);
  // The tokens of a row after a pass. members: their indices in `tokens`, the front first. reads: what the head made of the
  // pass's tokens.
  void settle(const std::vector<size_t>& members, const std::vector<ActiveToken>& tokens, std::vector<HeadRow>& reads,
              NextPass& next);

 private:
  struct Moved;  // tokens of one row
  bool holds(Row& row, const ActiveToken& token);
  bool confirm(Row& row, Moved& moved);
  void grow(Row& row, Moved& moved);

  Generation& g_;
};

}  // namespace looplm

// Everything between a loop and the next token: exit rules, the readout, the head, and sampling.
#pragma once
#include "exit_meter.h"
#include "recent_inputs.h"
#include "sampler.h"

namespace looplm {

class TokenHead {
 public:
  explicit TokenHead(Generation& generation)
      : g_(generation),
        recent_(generation),
        gather_(generation.model),
        meter_(generation, gather_),
        sampler_(generation, gather_) {}

  // after: registers after a loop, act [rows, D] each. before: register 0 before that loop, for rules that compare states.
  // Sets `drawn` in the rows that exit.
  void run(std::vector<HeadRow>& rows, const Stack::Registers& after, const void* before);
  // Draws for deferred rows whose answer from the host has arrived.
  void draw_deferred(std::vector<HeadRow>& rows) { sampler_.draw_deferred(rows); }

 private:
  struct Memory {
    Buffer registers;                // act [R, rows, D]
    Buffer slots, before, contexts;  // in the cache planes of the readout
    Buffer positions;                // int32 [rows]
    Buffer hidden, logits;           // act [rows, D], and real [rows, V] for one chunk
  };
  // act [index, D]: the head's input for the rows `index`.
  const void* read(const std::vector<HeadRow>& rows, const std::vector<int32_t>& index, const Stack::Registers& after);

  Generation& g_;
  RecentInputs recent_;
  RowGather gather_;
  ExitMeter meter_;
  Sampler sampler_;
  Memory memory_;
};

}  // namespace looplm

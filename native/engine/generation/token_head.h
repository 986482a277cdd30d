// What happens to rows after a loop: exit rules, the steps between the loops and the head, the head, and sampling.
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

  // after: the registers behind a loop, act [rows, D] each. before: register 0 before it, for rules that compare states. Rows
  // that exit have drawn their token.
  void run(std::vector<HeadRow>& rows, const Stack::Registers& after, const void* before);
  // Rows that `run` deferred, and whose answer from the host has come, draw their token.
  void draw_deferred(std::vector<HeadRow>& rows) { sampler_.draw_deferred(rows); }

 private:
  struct Memory {
    Buffer registers;                // act [R, rows, D]
    Buffer slots, before, contexts;  // of the readout's own planes
    Buffer positions;                // int32 [rows]
    Buffer hidden, logits;           // act [rows, D], real [rows, V] of a chunk
  };
  // act [index, D]: what the head reads of some rows.
  const void* read(const std::vector<HeadRow>& rows, const std::vector<int32_t>& index, const Stack::Registers& after);

  Generation& g_;
  RecentInputs recent_;
  RowGather gather_;
  ExitMeter meter_;
  Sampler sampler_;
  Memory memory_;
};

}  // namespace looplm

// Computes the values that exit rules need, for the rows that need them, and applies the rules.
#pragma once
#include "head_row.h"

namespace looplm {

class ExitMeter {
 public:
  ExitMeter(Generation& generation, RowGather& gather) : g_(generation), gather_(gather) {}

  void apply_states(std::vector<HeadRow>& rows, const void* after, const void* before);
  // hidden: act [index, D], the head's input for the rows `index`.
  void apply_gates(std::vector<HeadRow>& rows, const std::vector<int32_t>& index, const void* hidden);
  // logits: real [chunk, V].
  void apply_distributions(std::vector<HeadRow>& rows, const std::vector<int32_t>& chunk, const Buffer& logits);

 private:
  struct Memory {
    Buffer gates;                        // real [rows]
    Buffer logits;                       // real [asking, V]
    Buffer argmax;                       // int32 [asking]
    Buffer log_p, p, previous, product;  // real [asking, V]
    Buffer sums;                         // real [asking]
    Buffer index;                        // int32 [asking]
    // real [row indices, 2, V]: log-probabilities after the loop before and after this one. Two per row, so that the loop can
    // be read again if it ran out of memory.
    Buffer kept;
  };
  void measure_argmax(std::vector<HeadRow>& rows, const std::vector<int32_t>& chunk, const Buffer& logits);
  void measure_entropies(std::vector<HeadRow>& rows, const std::vector<int32_t>& chunk, const Buffer& logits);
  void measure_divergences(const std::vector<HeadRow*>& asking, const std::vector<double>& negative_entropy);
  std::vector<double> expectation(int64_t n, const void* p, const void* x);

  Generation& g_;
  RowGather& gather_;
  Memory memory_;
};

}  // namespace looplm

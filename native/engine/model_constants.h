// Constants on the device that are not parameters: ones for norms without weight, the scale of the embedding, the rotary
// table.
#pragma once
#include <memory>

#include "weights.h"

namespace looplm {

class ModelConstants {
 public:
  ModelConstants(std::shared_ptr<Device> device, LoopDType dt, const Architecture& config);
  void point(Weights& weights);
  // cos and sin for all positions below `positions`, real [positions, head_dim].
  const void* rope_table(int64_t positions);

 private:
  const std::shared_ptr<Device> device_;
  const LoopDType dt_;
  const RotaryEmbedding rotary_;
  const int64_t head_dim_;
  Buffer ones_;             // act: weight of norms that have none
  Buffer embedding_scale_;  // scale of the embed step, first as act, then as real; empty if it is 1
  Buffer rope_table_;
  int64_t rope_positions_ = 0;
};

}  // namespace looplm

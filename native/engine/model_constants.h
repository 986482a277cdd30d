// Numbers that no parameter holds: the weight of norms without one, the scale of the embedding, cosines and sines of positions.
#pragma once
#include <memory>

#include "weights.h"

namespace looplm {

class ModelConstants {
 public:
  ModelConstants(std::shared_ptr<Device> device, LoopDType dt, const Architecture& config);
  void point(Weights& weights);
  // cos and sin of every position below `positions`, real [positions, head_dim].
  const void* rope_table(int64_t positions);

 private:
  const std::shared_ptr<Device> device_;
  const LoopDType dt_;
  const RotaryEmbedding rotary_;
  const int64_t head_dim_;
  Buffer ones_;             // act: the weight of norms that have none
  Buffer embedding_scale_;  // of the embed step: act, then real; empty when it is 1
  Buffer rope_table_;
  int64_t rope_positions_ = 0;
};

}  // namespace looplm

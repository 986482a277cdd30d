// When gradients are final on the way back: the parameters of a loop take part in every loop, so a layer's gradient is final when
// the first loop that carries gradient has passed it. From then on other ranks may have it (data_parallel.h).
#pragma once
#include <cstddef>
#include <vector>

#include "model.h"

namespace looplm {

class FinalGradients {
 public:
  // order: the steps in the order of the way back. What no step touches (the head, the exit gate) is final before it.
  FinalGradients(const Model& model, const std::vector<const Step*>& order);
  // When the first `done` of the steps are behind us; all elements of a model without parameters in the others.
  size_t from(size_t done) const { return from_[done]; }

 private:
  std::vector<size_t> from_;  // [steps + 1]
};

}  // namespace looplm

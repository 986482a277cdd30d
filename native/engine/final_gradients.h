// When gradients become final during the backward pass. The parameters of a loop take part in every loop, so a layer's
// gradient is final after the first loop that carries gradient. From then on it may be sent to other ranks (data_parallel.h).
#pragma once
#include <cstddef>
#include <vector>

#include "model.h"

namespace looplm {

class FinalGradients {
 public:
  // order: the steps in the order of the backward pass. Parameters that no step uses (the head, the exit gate) are final
  // before it starts.
  FinalGradients(const Model& model, const std::vector<const Step*>& order);
  // The gradients of elements from this index on are final once the first `done` steps of the order have finished.
  size_t from(size_t done) const { return from_[done]; }

 private:
  std::vector<size_t> from_;  // [steps + 1]
};

}  // namespace looplm

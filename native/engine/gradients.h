// The gradients of all trained parameters, in one arena that starts as zeros.
#pragma once
#include <memory>

#include "adapter.h"

namespace looplm {

struct Gradients {
  Buffer arena;      // real
  Buffer exit_gate;  // only with an adapter: gradient of the frozen exit gate, which is computed but never used
  Weights weights;   // pointers into the two buffers
};

// adapter: NULL if the model's own parameters are trained. weights: those of the model.
Gradients allocate_gradients(const std::shared_ptr<Device>& device, LoopDType real, const Architecture& config,
                             const std::vector<Parameter>& parameters, size_t elements, const Adapter* adapter,
                             const Weights& weights);

}  // namespace looplm

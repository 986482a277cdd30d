// The gradients of what a model trains: zeros at first, in one arena.
#pragma once
#include <memory>

#include "adapter.h"

namespace looplm {

struct Gradients {
  Buffer arena;      // real
  Buffer exit_gate;  // of a model with an adapter: of the frozen gate, which nobody reads
  Weights weights;   // places in them
};

// adapter: NULL when the parameters themselves are trained. weights: of the model.
Gradients allocate_gradients(const std::shared_ptr<Device>& device, LoopDType real, const Architecture& config,
                             const std::vector<Parameter>& parameters, size_t elements, const Adapter* adapter,
                             const Weights& weights);

}  // namespace looplm

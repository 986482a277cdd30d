#include "gradients.h"

namespace looplm {

Gradients allocate_gradients(const std::shared_ptr<Device>& device, LoopDType real, const Architecture& config,
                             const std::vector<Parameter>& parameters, size_t elements, const Adapter* adapter,
                             const Weights& weights) {
  const size_t real_bytes = loop_dtype_size(real);
  Gradients made;
  made.arena = Buffer(device, elements * real_bytes);
  made.arena.zero(made.arena.bytes());
  if (!adapter) {
    made.weights = weights_in(made.arena, real, config, parameters);
    return made;
  }
  made.exit_gate = Buffer(device, size_t(config.hidden + 1) * real_bytes);
  made.exit_gate.zero(made.exit_gate.bytes());
  Weights& w = made.weights;
  w.norms.assign(weights.norms.size(), nullptr);
  w.injections.resize(weights.injections.size());
  w.gate_weight = made.exit_gate.at(real_bytes), w.gate_bias = made.exit_gate.as<>();
  w.layers.resize(size_t(config.layers));
  adapter->attach(w, made.arena, real, config, parameters);
  return made;
}

}  // namespace looplm

// Low-rank adapters (LoRA) of a model's matrices, and shifts (shift.h). Both have their own parameters; the base model is
// frozen.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "weights.h"

namespace looplm {

struct AdapterOptions {
  int64_t rank = 16;
  double alpha = 32;                 // scale = alpha / rank
  std::vector<std::string> modules;  // last parts of the names, such as "q_proj"; applies to every layer
  bool per_loop = false;             // layers inside the loop get separate matrices for each loop
  int64_t shift_rank = 0;            // rank of the shift, which lets MLPs see the previous token (shift.h); shared by
                                     // loops; 0: no shift
};

struct Adapter {
  // Initially A is uniform in ±1/sqrt(in), a pure function of (seed, parameter, element), and B is zero, so the model's
  // output does not change. The tensors are named …q_proj.lora_A.weight, or …q_proj.lora_A.loop_1.weight with `per_loop`.
  // base: the model's parameters.
  Adapter(const std::shared_ptr<Device>& device, LoopDType dt, const Architecture& config, const std::vector<Parameter>& base,
          const AdapterOptions& options, uint64_t seed);
  // Adds pointers to the adapter's matrices to `weights`. `arena` is laid out like the adapter's parameters: it holds their
  // values or their gradients.
  void attach(Weights& weights, Buffer& arena, LoopDType type, const Architecture& config,
              const std::vector<Parameter>& base) const;
  bool same_as(const Adapter& other) const;  // same matrices, compared by name, and same scale

  const AdapterOptions options;
  std::vector<Parameter> parameters;
  size_t elements = 0;
  Buffer values, scale;
  uint64_t version = 1;

 private:
  void add_parameters(const Architecture& config, const std::vector<Parameter>& base);
  void initialize(LoopDType dt, uint64_t seed);
  std::vector<bool> begins_as_zeros_;  // one entry per parameter
};

}  // namespace looplm

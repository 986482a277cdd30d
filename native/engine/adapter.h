// Low-rank adapters of a model's matrices, and shifts (shift.h): their own parameters, beside a frozen base.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "weights.h"

namespace looplm {

struct AdapterOptions {
  int64_t rank = 16;
  double alpha = 32;                 // scale = alpha / rank
  std::vector<std::string> modules;  // by the last part of their names, q_proj for example: of every layer
  bool per_loop = false;             // its own matrices for every loop, in the layers that the loops run
  int64_t shift_rank = 0;            // the MLP of every layer sees the token before (shift.h), which all loops share; 0: not
};

struct Adapter {
  // A is uniform in ±1/sqrt(in), a pure function of (seed, parameter, element), B is zero: at first nothing changes. Its matrices
  // are called …q_proj.lora_A.weight or, of a loop, …q_proj.lora_A.loop_1.weight. base: parameters of the model.
  Adapter(const std::shared_ptr<Device>& device, LoopDType dt, const Architecture& config, const std::vector<Parameter>& base,
          const AdapterOptions& options, uint64_t seed);
  // The places of the adapter's matrices in an arena laid out as its parameters are.
  void attach(Weights& weights, Buffer& arena, LoopDType type, const Architecture& config,
              const std::vector<Parameter>& base) const;
  bool same_as(const Adapter& other) const;  // the same matrices, by name, and scale

  const AdapterOptions options;
  std::vector<Parameter> parameters;
  size_t elements = 0;
  Buffer values, scale;
  uint64_t version = 1;

 private:
  void add_parameters(const Architecture& config, const std::vector<Parameter>& base);
  void initialize(LoopDType dt, uint64_t seed);
  std::vector<bool> begins_as_zeros_;  // of the parameters
};

}  // namespace looplm

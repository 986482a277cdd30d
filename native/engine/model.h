// The looped model: its configuration, its parameters in one arena, and their gradients.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "device.h"

namespace looplm {

struct ModelConfig {  // math.md §1, Hugging Face's field names without the prefix num_
  int64_t vocabulary = 0, hidden = 0, intermediate = 0;
  int32_t layers = 0, heads = 0, kv_heads = 0, head_dim = 0, loops = 0;
  double norm_eps = 1e-6, rope_theta = 1e6;
  bool tied = false;
  int64_t qkv_width() const { return int64_t(heads + 2 * kv_heads) * head_dim; }
  int64_t attention_width() const { return int64_t(heads) * head_dim; }
};

struct Parameter {
  std::string name;  // Hugging Face's tensor name
  std::vector<int64_t> shape;
  size_t offset = 0;  // in elements of the arena
  size_t count = 0;
  bool decays() const { return shape.size() > 1; }  // AdamW's weight decay is for matrices
};

// Pointers into one arena (parameters: act, gradients: real). q, k, v lie side by side as one [qkv_width, D] matrix, gate and up
// as [2F, D].
struct LayerWeights {
  void *qkv, *output, *gate_up, *down;
  void *attention_norm, *attention_norm_2, *mlp_norm, *mlp_norm_2;  // input_layernorm(_2), post_attention_layernorm(_2)
};
struct Weights {
  void *embedding, *head /* the embedding when tied */, *norm, *gate_weight, *gate_bias;
  std::vector<LayerWeights> layers;
};

// Device copies of the weights laid out for products with few rows (decoding); empty when the backend has no use for them.
struct PackedLayer {
  Buffer qkv, output, gate_up, down;
};
struct PackedWeights {
  std::vector<PackedLayer> layers;
  Buffer head;
  uint64_t version = 0;
};

class Workspace;

class Model {
 public:
  Model(std::shared_ptr<Device> device, LoopDType dt, const ModelConfig& config);
  ~Model();
  Model(const Model&) = delete;

  const ModelConfig config;
  const LoopDType dt;
  const std::shared_ptr<Device> device;
  LoopDType real() const { return loop_real(dt); }

  const std::vector<Parameter>& parameters() const { return parameters_; }
  const Parameter& parameter(const std::string& name) const;  // throws NOT_FOUND
  size_t arena_elements() const { return arena_elements_; }

  // Normal(0, range) for matrices and the gate, ones for norms, zero for the gate's bias; a pure function of (seed, parameter,
  // element).
  void initialize(uint64_t seed, double range);
  // A fresh model of the same configuration with the same parameters (a frozen reference, a teacher).
  std::unique_ptr<Model> clone() const;
  void copy_parameters_from(const Model& other);

  // One parameter or gradient as float64 host values (every dtype converts exactly or by rounding to nearest).
  std::vector<double> read(const Parameter& p) const;
  void write(const Parameter& p, const double* values);
  std::vector<double> read_gradient(const Parameter& p) const;  // zeros when nothing was accumulated
  // Raw values in the arena's own dtype, for safetensors.
  void read_raw(const Parameter& p, void* host) const;
  void write_raw(const Parameter& p, const void* host);

  const Weights& weights() const { return weights_; }
  const Weights& gradients();  // allocated, and zeroed, on first use
  bool has_gradients() const { return bool(gradient_arena_); }
  void zero_gradients();
  void* parameter_data(const Parameter& p) const { return arena_.at(p.offset * loop_dtype_size(dt)); }
  void* gradient_data(const Parameter& p) const { return gradient_arena_.at(p.offset * loop_dtype_size(real())); }

  // Raised by whoever changes parameters; packed copies are remade when it moved on.
  uint64_t version() const { return version_; }
  void touch() { version_++; }
  const PackedWeights& packed();

  // cos and sin of every position below `positions`, real [positions, head_dim].
  const void* rope_table(int64_t positions);
  Workspace& workspace() { return *workspace_; }  // buffers that are kept from call to call

 private:
  Weights pointers(const Buffer& arena, LoopDType type) const;
  std::vector<Parameter> parameters_;
  size_t arena_elements_ = 0;
  Buffer arena_, gradient_arena_, rope_table_;
  int64_t rope_positions_ = 0;
  Weights weights_, gradients_;
  std::unique_ptr<PackedWeights> packed_;
  std::unique_ptr<Workspace> workspace_;
  uint64_t version_ = 1;
};

}  // namespace looplm

// The looped model: its configuration, its parameters in one arena, and their gradients.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "gradients.h"
#include "model_constants.h"
#include "quantized_matrices.h"
#include "stack_memory.h"

namespace looplm {

struct OperationMemory;

// Hears that the gradients of what is trained are final from element `begin` of their arena on: nothing more is added to them.
using GradientsFinal = std::function<void(size_t begin)>;

class Model {
 public:
  // Quantized, the matrices of the blocks and the head are codes with scales from the start: no copy of them in `dt` ever exists,
  // but of a tied head the embedding, which stays as it is. Such a model only infers; what would train or change its parameters
  // is refused.
  Model(std::shared_ptr<Device> device, LoopDType dt, const Architecture& config, Quantization quantization = {})
      : Model(std::move(device), dt, config, quantization, nullptr) {}
  ~Model();
  Model(const Model&) = delete;

  const Architecture config;
  const LoopDType dt;
  const std::shared_ptr<Device> device;
  const Quantization quantization;
  LoopDType real() const { return loop_real(dt); }

  const std::vector<Parameter>& parameters() const { return parameters_; }  // without the adapter's
  const Parameter& parameter(const std::string& name) const;                // of either; throws NOT_FOUND
  const Parameter& embedding() const;
  size_t arena_elements() const { return arena_elements_; }

  // With an adapter the model's own parameters are frozen: gradients, optimizers and averages are those of the adapter alone.
  // At first nothing changes (adapter.h).
  void add_adapter(const AdapterOptions& options, uint64_t seed);
  void remove_adapter();
  const AdapterOptions* adapter() const { return adapter_ ? &adapter_->options : nullptr; }
  // What is trained: the adapter's parameters (model.layers.0.self_attn.q_proj.lora_A.weight, ...) where there is one, else all
  // but frozen vectors.
  const std::vector<Parameter>& trained() const { return adapter_ ? adapter_->parameters : trained_; }
  size_t trained_elements() const { return adapter_ ? adapter_->elements : arena_elements_; }
  uint64_t layout() const { return layout_; }  // another number when what is trained has changed

  // The codes and scales behind parameters whose `matrix` is not negative.
  QuantizedMatrices& quantized() { return *quantized_; }
  const QuantizedMatrices& quantized() const { return *quantized_; }
  void refuse_quantized(const char* operation) const;  // throws UNSUPPORTED where the model is
  // logits, real [rows, vocabulary] = hidden W_headᵀ
  void head(int64_t rows, const void* hidden, void* logits);

  // As the description says of each parameter; a pure function of (seed, parameter, element).
  void initialize(uint64_t seed);
  void initialize(const Parameter& p, uint64_t seed);
  // A fresh model of the same configuration with the same parameters and adapter (a frozen reference, a teacher). With an adapter
  // the model's own parameters are shared until somebody writes to them.
  std::unique_ptr<Model> clone() const;
  void copy_parameters_from(const Model& other);
  void copy_base_from(const Model& other);  // the model's own parameters alone
  bool same_adapter(const Model& other) const;

  // One parameter or gradient as float64 host values (every dtype converts exactly or by rounding to nearest).
  std::vector<double> read(const Parameter& p) const;
  void write(const Parameter& p, const double* values);
  std::vector<double> read_gradient(const Parameter& p) const;  // zeros when nothing was accumulated
  // Raw values in the arena's own dtype, for safetensors.
  void read_raw(const Parameter& p, void* host) const;
  void write_raw(const Parameter& p, const void* host);

  const Weights& weights() const { return weights_; }
  const Weights& gradients();  // allocated, and zeroed, on first use
  bool has_gradients() const { return bool(gradients_.arena); }
  void zero_gradients();
  // Who hears of the next accumulation of gradients, and of no later one, when they are final (final_gradients.h).
  GradientsFinal next_final;
  const void* parameter_data(const Parameter& p) const { return arena_of(p).at(p.offset * loop_dtype_size(dt)); }
  void* writable_data(const Parameter& p) { return writable_arena(p).at(p.offset * loop_dtype_size(dt)); }
  // Takes the arena of p from clones that read it, as any write does: then several threads may write.
  void unshare(const Parameter& p) { writable_arena(p); }
  void* gradient_data(const Parameter& p) { return gradients_.arena.at(p.offset * loop_dtype_size(real())); }  // p trained
  const void* gradient_data(const Parameter& p) const { return gradients_.arena.at(p.offset * loop_dtype_size(real())); }

  // Of what is trained. Raised by whoever changes parameters: one, or all that are trained.
  uint64_t version() const { return adapter_ ? adapter_->version : version_; }
  void touch(const Parameter& p) { (p.adapter ? adapter_->version : version_)++; }
  void touch() { touch(trained().front()); }

  uint64_t placement() const { return placement_; }  // another number when weights() point elsewhere

  const void* rope_table(int64_t positions) { return constants_->rope_table(positions); }
  StackMemory& stack_memory() { return *stack_memory_; }
  OperationMemory& memory() { return *memory_; }  // operation_memory.h

 private:
  Model(std::shared_ptr<Device> device, LoopDType dt, const Architecture& config, Quantization quantization,
        std::shared_ptr<Buffer> arena);
  void lay_out();
  void point();  // weights_ at what there is
  template <class Owner>
  void replace(Owner& owner, Owner other);
  const Buffer& arena_of(const Parameter& p) const { return p.adapter ? adapter_->values : *arena_; }
  Buffer& writable_arena(const Parameter& p);

  std::vector<Parameter> parameters_, trained_;
  size_t arena_elements_ = 0;
  std::shared_ptr<Buffer> arena_;  // shared among the clones of a model with an adapter
  Weights weights_;
  Gradients gradients_;
  std::unique_ptr<OperationMemory> memory_;
  std::unique_ptr<StackMemory> stack_memory_;
  std::unique_ptr<Adapter> adapter_;
  std::unique_ptr<QuantizedMatrices> quantized_;
  std::unique_ptr<ModelConstants> constants_;
  uint64_t version_ = 1 /* of the model's own parameters */, layout_ = 0, adapters_made_ = 0, placement_ = 0;
};

}  // namespace looplm

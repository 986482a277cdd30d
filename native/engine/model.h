// The looped model: its architecture, its parameters in one arena, and their gradients.
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

// Called when the gradients of all trained elements from `begin` on (in their arena) are final.
using GradientsFinal = std::function<void(size_t begin)>;

class Model {
 public:
  // A quantized model stores the matrices of the blocks and the head as codes with scales from the start; they never exist in
  // `dt`. Only the embedding of a tied head is also kept in `dt`. A quantized model supports inference only, and refuses to
  // be trained or to have its parameters changed.
  Model(std::shared_ptr<Device> device, LoopDType dt, const Architecture& config, Quantization quantization = {})
      : Model(std::move(device), dt, config, quantization, nullptr) {}
  ~Model();
  Model(const Model&) = delete;

  const Architecture config;
  const LoopDType dt;
  const std::shared_ptr<Device> device;
  const Quantization quantization;
  LoopDType real() const { return loop_real(dt); }

  const std::vector<Parameter>& parameters() const { return parameters_; }  // without the adapter's parameters
  const Parameter& parameter(const std::string& name) const;                // of the model or its adapter; throws NOT_FOUND
  const Parameter& embedding() const;
  size_t arena_elements() const { return arena_elements_; }

  // With an adapter, the model's own parameters are frozen: gradients, optimizers and averages cover only the adapter. A new
  // adapter does not change the model's output (adapter.h).
  void add_adapter(const AdapterOptions& options, uint64_t seed);
  void remove_adapter();
  const AdapterOptions* adapter() const { return adapter_ ? &adapter_->options : nullptr; }
  // The trained parameters: those of the adapter (model.layers.0.self_attn.q_proj.lora_A.weight, ...) if there is one, else
  // all except constant vectors.
  const std::vector<Parameter>& trained() const { return adapter_ ? adapter_->parameters : trained_; }
  size_t trained_elements() const { return adapter_ ? adapter_->elements : arena_elements_; }
  uint64_t layout() const { return layout_; }  // changes whenever the set of trained parameters changes

  // Codes and scales of the parameters whose `matrix` is not negative.
  QuantizedMatrices& quantized() { return *quantized_; }
  const QuantizedMatrices& quantized() const { return *quantized_; }
  void refuse_quantized(const char* operation) const;  // throws UNSUPPORTED if the model is quantized
  // logits, real [rows, vocabulary] = hidden W_headᵀ
  void head(int64_t rows, const void* hidden, void* logits);

  // Sets initial values as the architecture describes them: a pure function of (seed, parameter, element).
  void initialize(uint64_t seed);
  void initialize(const Parameter& p, uint64_t seed);
  // A new model with the same configuration, parameters and adapter, for example a frozen reference or a teacher. With an
  // adapter, both models share the base parameters until one of them is written to.
  std::unique_ptr<Model> clone() const;
  void copy_parameters_from(const Model& other);
  void copy_base_from(const Model& other);  // copies the base parameters without the adapter
  bool same_adapter(const Model& other) const;

  // One parameter or gradient as float64 on the host. Reading is exact; writing rounds to nearest.
  std::vector<double> read(const Parameter& p) const;
  void write(const Parameter& p, const double* values);
  std::vector<double> read_gradient(const Parameter& p) const;  // zeros if nothing was accumulated
  // Values in the model's dtype, for safetensors.
  void read_raw(const Parameter& p, void* host) const;
  void write_raw(const Parameter& p, const void* host);

  const Weights& weights() const { return weights_; }
  const Weights& gradients();  // allocated and zeroed on first use
  bool has_gradients() const { return bool(gradients_.arena); }
  void zero_gradients();
  // Called during the next gradient accumulation when gradients become final (final_gradients.h), and cleared by it.
  GradientsFinal next_final;
  const void* parameter_data(const Parameter& p) const { return arena_of(p).at(p.offset * loop_dtype_size(dt)); }
  void* writable_data(const Parameter& p) { return writable_arena(p).at(p.offset * loop_dtype_size(dt)); }
  // Gives p's arena its own copy if clones share it, as the first write would. After that several threads may write.
  void unshare(const Parameter& p) { writable_arena(p); }
  // p must be a trained parameter
  void* gradient_data(const Parameter& p) { return gradients_.arena.at(p.offset * loop_dtype_size(real())); }
  const void* gradient_data(const Parameter& p) const { return gradients_.arena.at(p.offset * loop_dtype_size(real())); }

  // Version of the trained parameters. Code that changes parameters must call touch().
  uint64_t version() const { return adapter_ ? adapter_->version : version_; }
  uint64_t base_version() const { return version_; }  // of the model's own parameters
  void touch(const Parameter& p) { (p.adapter ? adapter_->version : version_)++; }
  void touch() { touch(trained().front()); }

  uint64_t placement() const { return placement_; }  // changes whenever weights() points elsewhere

  const void* rope_table(int64_t positions) { return constants_->rope_table(positions); }
  StackMemory& stack_memory() { return *stack_memory_; }
  OperationMemory& memory() { return *memory_; }  // operation_memory.h

 private:
  Model(std::shared_ptr<Device> device, LoopDType dt, const Architecture& config, Quantization quantization,
        std::shared_ptr<Buffer> arena);
  void lay_out();
  void point();  // updates weights_ to the current arenas
  template <class Owner>
  void replace(Owner& owner, Owner other);
  const Buffer& arena_of(const Parameter& p) const { return p.adapter ? adapter_->values : *arena_; }
  Buffer& writable_arena(const Parameter& p);

  std::vector<Parameter> parameters_, trained_;
  size_t arena_elements_ = 0;
  std::shared_ptr<Buffer> arena_;  // shared by clones while the model has an adapter
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

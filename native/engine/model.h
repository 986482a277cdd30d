// The looped model: its configuration, its parameters in one arena, and their gradients.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "architecture.h"
#include "linear.h"
#include "shift.h"

namespace looplm {

// What products with quantized weights take of activations: as they are, or 8 bits. by_device: what its properties prefer.
enum class Activations { by_device, as_they_are, int8 };

// Weights in 8 or 4 bits with a scale for every `group` neighbours of a row (quantize.h); bits 0: none. head: the head's too.
struct Quantization {
  int bits = 0, group = 0;
  bool head = true;
  Activations activations = Activations::by_device;
  explicit operator bool() const { return bits != 0; }
};

struct Parameter {
  std::string name;  // of the published tensor
  std::vector<int64_t> shape;
  size_t offset = 0;  // in elements of the arena
  size_t count = 0;
  Role role = Role::embedding;
  int32_t index = 0;                                          // of the role: layer, norm, …
  int64_t first_row = 0;                                      // of the role's matrix
  bool adapter = false;                                       // of the adapter's arena
  int32_t matrix = -1;                                        // of a quantized model: which of its matrices this is a part of
  bool decays() const { return adapter || is_matrix(role); }  // AdamW's weight decay
};

// Pointers into arenas (parameters: act, gradients: real).
struct LayerWeights {
  Linear qkv, output, gate_up, down;
  void *attention_norm = nullptr, *attention_norm_2 = nullptr, *mlp_norm = nullptr, *mlp_norm_2 = nullptr;
  void *query_norm = nullptr, *key_norm = nullptr;
  Shift shift;  // of an adapter
};
// As gradients: NULL for what is not trained (of a model with an adapter: for all but the adapters, and the exit gate, whose
// place nobody reads).
struct Weights {
  void *embedding = nullptr, *head = nullptr /* the embedding when tied; NULL when quantized */;
  const void* ones = nullptr;                         // act [D]
  void *gate_weight = nullptr, *gate_bias = nullptr;  // of the exit gate
  std::vector<void*> norms, starts;                   // of the steps that name them
  std::vector<Linear> injections;                     // [D, 2 D]
  std::vector<LayerWeights> layers;
  int64_t rank = 0;                                                        // of the adapters
  int64_t shift_rank = 0;                                                  // of the layers' shifts; 0: there are none
  int32_t adapter_loops = 0;                                               // that have adapters of their own; 0: they share one
  const void* scale = nullptr;                                             // and alpha / rank: real, on the device
  const void *embedding_scale = nullptr, *embedding_scale_real = nullptr;  // one number each; NULL: 1
  const LoopQuantized* quantized_head = nullptr;
};

struct AdapterOptions {
  int64_t rank = 16;
  double alpha = 32;                 // scale = alpha / rank
  std::vector<std::string> modules;  // by the last part of their names, q_proj for example: of every layer
  bool per_loop = false;             // matrices of its own for every loop, in the layers that the loops run
  int64_t shift_rank = 0;            // the MLP of every layer sees the token before (shift.h), which all loops share; 0: not
};

struct OperationMemory;

// Hears that the gradients of what is trained are final from element `begin` of their arena on: nothing more is added to them.
using GradientsFinal = std::function<void(size_t begin)>;

// Host values as `dt`.
std::vector<uint8_t> rounded(LoopDType dt, const std::vector<double>& values);

// What a stack works in, kept from call to call (stack.h, block.h).
struct StackBuffers {
  Buffer registers, hidden, boundaries, values, blocks;    // act
  Buffer x, activation;                                    // act
  Buffer d_activation, d_branch, d_x, d_attention, d_qkv;  // act
  Buffer d_registers, real;                                // real; the last one scratch
  Buffer projected, heads;                                 // act, of a block: all projections, and heads apart
  Buffer extended, extended_out, extended_lse;             // attention behind cached prefixes
  Buffer replay_kept, replay_mixed;                        // act: exit_replay.h
  Buffer replay_gradients, replay_waiting;                 // act
  Buffer replay_index;                                     // int32
  LinearMemory linear;
  ShiftMemory shift;
};
struct StackMemory : StackBuffers {
  explicit StackMemory(std::shared_ptr<Device> device) : device(std::move(device)) {}
  // At least that many bytes, and some that vectors may read behind them. When there is no memory for them, all of it is given
  // back: the call has failed, and the next one is likely to need less.
  void* reserve(Buffer& buffer, size_t bytes) {
    if (bytes + 64 > buffer.bytes()) generation++;
    try {
      buffer.reserve(device, bytes + 64);
    } catch (...) {
      release();
      throw;
    }
    return buffer.as<>();
  }
  void release() { static_cast<StackBuffers&>(*this) = {}; }
  const std::shared_ptr<Device> device;
  uint64_t generation = 0;  // another number when a buffer has moved
};

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
  // A is uniform in ±1/sqrt(in), a pure function of (seed, parameter, element), B is zero: at first nothing changes. Its matrices
  // are called …q_proj.lora_A.weight or, of a loop, …q_proj.lora_A.loop_1.weight.
  void add_adapter(const AdapterOptions& options, uint64_t seed);
  void remove_adapter();
  const AdapterOptions* adapter() const { return adapter_ ? &adapter_->options : nullptr; }
  // A fresh model without adapter whose matrices are W + scale·B A. Throws UNSUPPORTED when loops have adapters of their own.
  std::unique_ptr<Model> merged() const;
  // What is trained: the adapter's parameters (model.layers.0.self_attn.q_proj.lora_A.weight, ...) where there is one, else all
  // but frozen vectors.
  const std::vector<Parameter>& trained() const { return adapter_ ? adapter_->parameters : trained_; }
  size_t trained_elements() const { return adapter_ ? adapter_->elements : arena_elements_; }
  uint64_t layout() const { return layout_; }  // another number when what is trained has changed

  // Rows [first, first + rows) of a quantized parameter (p.matrix >= 0): from values of dtype `dt`, or as they lie in files,
  // codes [rows, in · bits / 8] and scales [rows, in / group].
  void quantize_rows(const Parameter& p, int64_t first, int64_t rows, const void* values);
  // The rows of a tied head, which are quantized from those of the embedding; NULL when there are none.
  const Parameter* tied_head() const { return tied_head_.matrix >= 0 ? &tied_head_ : nullptr; }
  void write_codes(const Parameter& p, int64_t first, int64_t rows, const void* codes);
  void write_scales(const Parameter& p, int64_t first, int64_t rows, const float* scales);
  std::vector<uint8_t> read_codes(const Parameter& p) const;
  std::vector<float> read_scales(const Parameter& p) const;
  // logits, real [rows, vocabulary] = hidden W_headᵀ
  void head(int64_t rows, const void* hidden, void* logits);

  // As the description says of each parameter; a pure function of (seed, parameter, element).
  void initialize(uint64_t seed);
  void initialize(const Parameter& p, uint64_t seed);
  // A fresh model of the same configuration with the same parameters and adapter (a frozen reference, a teacher). With an adapter
  // the model's own parameters are shared until somebody writes to them.
  std::unique_ptr<Model> clone() const;
  void copy_parameters_from(const Model& other);
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
  bool has_gradients() const { return bool(gradient_arena()); }
  void zero_gradients();
  // Who hears of the next accumulation of gradients, and of no later one, when they are final (final_gradients.h).
  GradientsFinal next_final;
  const void* parameter_data(const Parameter& p) const { return arena_of(p).at(p.offset * loop_dtype_size(dt)); }
  void* writable_data(const Parameter& p) { return writable_arena(p).at(p.offset * loop_dtype_size(dt)); }
  void* gradient_data(const Parameter& p) { return gradient_arena().at(p.offset * loop_dtype_size(real())); }  // p trained
  const void* gradient_data(const Parameter& p) const { return gradient_arena().at(p.offset * loop_dtype_size(real())); }

  // Of what is trained. Raised by whoever changes parameters: one, or all that are trained.
  uint64_t version() const { return adapter_ ? adapter_->version : version_; }
  void touch(const Parameter& p) { (p.adapter ? adapter_->version : version_)++; }
  void touch() { touch(trained().front()); }

  uint64_t placement() const { return placement_; }  // another number when weights() point elsewhere

  // cos and sin of every position below `positions`, real [positions, head_dim].
  const void* rope_table(int64_t positions);
  StackMemory& stack_memory() { return *stack_memory_; }
  OperationMemory& memory() { return *memory_; }  // operation_memory.h

 private:
  struct Adapter {
    AdapterOptions options;
    std::vector<Parameter> parameters;
    size_t elements = 0;
    Buffer values, gradients, exit_gate /* its gradient, which nobody reads */, scale;
    uint64_t version = 1;
  };
  Model(std::shared_ptr<Device> device, LoopDType dt, const Architecture& config, Quantization quantization,
        std::shared_ptr<Buffer> arena);
  struct QuantizedMatrix {
    QuantizedMatrix(Role role, int32_t index) : role(role), index(index) {}
    Role role;
    int32_t index;
    Buffer codes, scales;
    int64_t out = 0, in = 0;
    LoopQuantized view{};
    int64_t groups() const { return in / view.group; }
    size_t row_bytes() const { return size_t(in) * size_t(view.bits) / 8; }
  };
  int activation_bits() const;
  void check_quantization() const;
  void refuse_quantized(const char* operation) const;
  int32_t adapter_loops(const AdapterOptions& options, const Parameter& p) const;
  Weights pointers(Buffer& arena, LoopDType type) const;
  void clear_gaps();
  void point();  // weights_ at what there is
  template <class Owner>
  void replace(Owner& owner, Owner other);
  void make_constants();
  void attach(Weights& weights, Buffer& arena, LoopDType type) const;
  void copy_base_from(const Model& other);
  const Buffer& arena_of(const Parameter& p) const { return p.adapter ? adapter_->values : *arena_; }
  Buffer& writable_arena(const Parameter& p);
  const Buffer& gradient_arena() const { return adapter_ ? adapter_->gradients : gradient_arena_; }
  Buffer& gradient_arena() { return adapter_ ? adapter_->gradients : gradient_arena_; }
  std::vector<Parameter> parameters_, trained_;
  Parameter tied_head_;  // of a quantized model; in no file
  size_t arena_elements_ = 0;
  std::shared_ptr<Buffer> arena_;  // shared among the clones of a model with an adapter
  Buffer gradient_arena_, rope_table_;
  Buffer ones_;             // act: the weight of norms that have none
  Buffer embedding_scale_;  // of the embed step: act, then real; empty when it is 1
  int64_t rope_positions_ = 0;
  Weights weights_, gradients_;
  std::unique_ptr<OperationMemory> memory_;
  std::unique_ptr<StackMemory> stack_memory_;
  std::unique_ptr<Adapter> adapter_;
  std::vector<std::unique_ptr<QuantizedMatrix>> matrices_;  // as in `parameters`
  uint64_t version_ = 1 /* of the model's own parameters */, layout_ = 0, adapters_made_ = 0, placement_ = 0;
};

}  // namespace looplm

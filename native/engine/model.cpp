#include "model.h"

#include <algorithm>
#include <cstring>

#include "operation_memory.h"

namespace looplm {

Model::Model(std::shared_ptr<Device> device_in, LoopDType dt_in, const Architecture& config_in, Quantization quantization_in,
             std::shared_ptr<Buffer> arena)
    : config(config_in),
      dt(dt_in),
      device(std::move(device_in)),
      quantization(quantization_in),
      arena_(std::move(arena)),
      memory_(std::make_unique<OperationMemory>()),
      stack_memory_(std::make_unique<StackMemory>(device)) {
  config.check();
  if (!device->supports(dt))
    throw Error("UNSUPPORTED", "model",
                "device \"" + device->name() + "\" does not have this dtype: cpu has float32 and bfloat16, reference float64");
  quantized_ = std::make_unique<QuantizedMatrices>(device, dt, config, quantization);
  lay_out();
  if (!arena_) {
    arena_ = std::make_shared<Buffer>(device, arena_elements_ * loop_dtype_size(dt));
    clear_gaps(*arena_, parameters_, arena_elements_, dt);
  }
  quantized_->allocate();
  constants_ = std::make_unique<ModelConstants>(device, dt, config);
  point();
}
Model::~Model() = default;

void Model::lay_out() {
  ParameterLayout layout(parameters_);
  for (const ParameterForm& form : config.parameters) {
    Parameter p{form.name, form.shape, 0, parameter_elements(form.name, form.shape), form.role, form.index, form.first_row};
    const bool continues = form.first_row > 0;
    if (continues && (parameters_.empty() || parameters_.back().role != p.role || parameters_.back().index != p.index))
      throw Error("INVALID_CONFIG", "model", p.name + " must directly follow the parameter with the rows before its own");
    if (quantized_->take(p.role)) {
      quantized_->add(p, continues);
      parameters_.push_back(std::move(p));
      continue;
    }
    layout.add(std::move(p), continues);
    // Vectors are padded with zeros to the full length of their role.
    if (!is_matrix(form.role)) layout.reserve(parameters_.back().offset + size_t(config.rows(form.role) - form.first_row));
  }
  std::copy_if(parameters_.begin(), parameters_.end(), std::back_inserter(trained_),
               [](const Parameter& p) { return p.role != Role::start; });
  arena_elements_ = layout.aligned();
}

const Parameter& Model::parameter(const std::string& name) const {
  for (auto& p : parameters_)
    if (p.name == name) return p;
  if (adapter_)
    for (auto& p : adapter_->parameters)
      if (p.name == name) return p;
  throw Error("NOT_FOUND", "parameter", "the model has no parameter \"" + name + "\": model.parameters() lists them");
}

const Parameter& Model::embedding() const {
  return *std::find_if(parameters_.begin(), parameters_.end(), [](const Parameter& p) { return p.role == Role::embedding; });
}

void Model::initialize(uint64_t seed) {
  for (const Parameter& p : parameters_) initialize(p, seed);
}
void Model::initialize(const Parameter& p, uint64_t seed) {
  const size_t i = size_t(&p - parameters_.data());
  const bool in_place = p.matrix < 0 && device->host_visible();
  std::vector<uint8_t> raw(in_place ? 0 : p.count * loop_dtype_size(dt));
  void* const values = in_place ? writable_data(p) : raw.data();
  draw_initial(*device, dt, config.parameters[i], uint32_t(i), p.count, seed, values);
  if (p.matrix >= 0) return quantized_->quantize_rows(p, 0, p.shape[0], values);
  if (const Parameter* head = quantized_->tied_head(); head && p.role == Role::embedding)
    quantized_->quantize_rows(*head, 0, p.shape[0], values);
  if (!in_place) writable_arena(p).upload(values, raw.size(), p.offset * loop_dtype_size(dt));
  touch(p);
}

void Model::point() {
  placement_++;
  Weights weights = weights_in(*arena_, dt, config, parameters_);
  quantized_->point(weights);
  constants_->point(weights);
  if (adapter_) adapter_->attach(weights, adapter_->values, dt, config, parameters_);
  weights_ = std::move(weights);
}
// Installs another arena or adapter. If updating the pointers fails for lack of memory, restores the previous one.
template <class Owner>
void Model::replace(Owner& owner, Owner other) {
  std::swap(owner, other);
  try {
    point();
  } catch (...) {
    std::swap(owner, other);
    throw;
  }
}

Buffer& Model::writable_arena(const Parameter& p) {
  if (p.adapter) return adapter_->values;
  if (arena_.use_count() > 1) {
    auto own = std::make_shared<Buffer>(device, arena_->bytes());
    device->run(&LoopBackend::copy, "copy", own->as<>(), arena_->as<>(), arena_->bytes());
    replace(arena_, std::move(own));
  }
  return *arena_;
}

void Model::add_adapter(const AdapterOptions& options, uint64_t seed) {
  refuse_quantized("adapter");
  if (adapter_)
    throw Error("INVALID_ARGUMENT", "adapter", "the model already has an adapter: merge it into a copy, or remove it");
  replace(adapter_, std::make_unique<Adapter>(device, dt, config, parameters_, options, seed));
  gradients_ = {};
  layout_ = ++adapters_made_;
}

void Model::remove_adapter() {
  if (!adapter_) return;
  replace(adapter_, std::unique_ptr<Adapter>());
  gradients_ = {};
  layout_ = 0;
}

void Model::refuse_quantized(const char* operation) const {
  if (quantization)
    throw Error("UNSUPPORTED", operation,
                "a quantized model supports inference only: load the original checkpoint without quantize");
}
void Model::head(int64_t rows, const void* hidden, void* logits) {
  const int64_t D = config.hidden, V = config.vocabulary;
  if (weights_.quantized_head)
    device->run(&LoopBackend::gemm_quantized, "head", dt, rows, V, D, hidden, D, weights_.quantized_head, logits, V,
                int(LOOP_GEMM_REAL_OUT));
  else
    device->run(&LoopBackend::gemm, "head", dt, 0, 1, rows, V, D, hidden, D, weights_.head, D, logits, V,
                int(LOOP_GEMM_REAL_OUT));
}

std::unique_ptr<Model> Model::clone() const {
  refuse_quantized("clone");
  std::unique_ptr<Model> copy(new Model(device, dt, config, {}, adapter_ ? arena_ : nullptr));
  if (adapter_) copy->add_adapter(adapter_->options, 0);
  copy->copy_parameters_from(*this);
  return copy;
}
void Model::copy_base_from(const Model& other) {
  refuse_quantized("copy_parameters");
  other.refuse_quantized("copy_parameters");
  if (other.dt != dt || other.config != config || other.device != device)
    throw Error("INVALID_ARGUMENT", "copy_parameters", "both models must have the same configuration, dtype and device");
  if (arena_ == other.arena_) return;
  Buffer& own = writable_arena(parameters_.front());
  device->run(&LoopBackend::copy, "copy", own.as<>(), other.arena_->as<>(), own.bytes());
  touch(parameters_.front());
}
void Model::copy_parameters_from(const Model& other) {
  if (!same_adapter(other)) throw Error("INVALID_ARGUMENT", "copy_parameters", "both models must have the same adapter or none");
  copy_base_from(other);
  if (!adapter_) return;
  device->run(&LoopBackend::copy, "copy", adapter_->values.as<>(), other.adapter_->values.as<>(), adapter_->values.bytes());
  touch();
}
bool Model::same_adapter(const Model& other) const {
  if (!adapter_ || !other.adapter_) return !adapter_ && !other.adapter_;
  return adapter_->same_as(*other.adapter_);
}

void Model::read_raw(const Parameter& p, void* host) const {
  if (p.matrix >= 0) {
    const std::vector<uint8_t> raw = rounded(dt, read(p));
    std::memcpy(host, raw.data(), raw.size());
    return;
  }
  arena_of(p).download(host, p.count * loop_dtype_size(dt), p.offset * loop_dtype_size(dt));
}
void Model::write_raw(const Parameter& p, const void* host) {
  refuse_quantized("write");
  writable_arena(p).upload(host, p.count * loop_dtype_size(dt), p.offset * loop_dtype_size(dt));
  touch(p);
}
std::vector<double> Model::read(const Parameter& p) const {
  return p.matrix >= 0 ? quantized_->read(p) : download_values(arena_of(p), dt, p.count, p.offset);
}
void Model::write(const Parameter& p, const double* values) {
  refuse_quantized("write");
  upload_values(writable_arena(p), dt, values, p.count, p.offset);
  touch(p);
}

const Weights& Model::gradients() {
  refuse_quantized("gradients");
  if (!has_gradients())
    gradients_ = allocate_gradients(device, real(), config, parameters_, trained_elements(), adapter_.get(), weights_);
  return gradients_.weights;
}
void Model::zero_gradients() {
  if (has_gradients()) gradients_.arena.zero(gradients_.arena.bytes());
}
std::vector<double> Model::read_gradient(const Parameter& p) const {
  if (p.adapter != bool(adapter_))
    throw Error("NOT_FOUND", "gradient", "the model has an adapter: " + p.name + " is frozen and has no gradient");
  if (!has_gradients()) return std::vector<double>(p.count, 0.0);
  return download_reals(gradients_.arena, dt, p.count, p.offset);
}

}  // namespace looplm

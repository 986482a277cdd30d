#include "model.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "../numeric/half.h"
#include "../numeric/philox.h"
#include "quantize.h"
#include "operation_memory.h"

namespace looplm {

namespace {
constexpr size_t ALIGN = 32;  // elements: every matrix starts on a 64-byte line

// Elements of all parameters: so few that their bytes can be counted.
constexpr size_t MOST = size_t(1) << 58;
[[noreturn]] void too_many(const std::string& name) {
  throw Error("OUT_OF_MEMORY", "model",
              "with " + name + " the model has more parameters than any memory holds: use smaller sizes");
}
size_t elements(const std::string& name, const std::vector<int64_t>& shape) {
  size_t count = 1;
  for (int64_t n : shape)
    if (__builtin_mul_overflow(count, size_t(n), &count) || count > MOST) too_many(name);
  return count;
}

// The arena: parameters in order, the parts of a matrix or vector one behind the other.
class Layout {
 public:
  explicit Layout(std::vector<Parameter>& out) : out_(out) {}
  void add(Parameter p, bool continues = false) {
    p.offset = continues ? out_.back().offset + out_.back().count : aligned();
    if (p.count > MOST - p.offset) too_many(p.name);
    reserve(p.offset + p.count);
    out_.push_back(std::move(p));
  }
  void reserve(size_t end) { end_ = std::max(end_, end); }  // nothing else may lie before `end`
  size_t aligned() const { return (end_ + ALIGN - 1) / ALIGN * ALIGN; }

 private:
  std::vector<Parameter>& out_;
  size_t end_ = 0;
};

// The place of a layer's role; NULL when it is another one.
Linear LayerWeights::*matrix_of(Role role) {
  switch (role) {
    case Role::attention:
      return &LayerWeights::qkv;
    case Role::attention_output:
      return &LayerWeights::output;
    case Role::gate_up:
      return &LayerWeights::gate_up;
    case Role::down:
      return &LayerWeights::down;
    default:
      return nullptr;
  }
}
Linear LayerWeights::*biased_by(Role role) {
  switch (role) {
    case Role::attention_bias:
      return &LayerWeights::qkv;
    case Role::attention_output_bias:
      return &LayerWeights::output;
    case Role::gate_up_bias:
      return &LayerWeights::gate_up;
    case Role::down_bias:
      return &LayerWeights::down;
    default:
      return nullptr;
  }
}
void* LayerWeights::*vector_of(Role role) {
  switch (role) {
    case Role::query_norm:
      return &LayerWeights::query_norm;
    case Role::key_norm:
      return &LayerWeights::key_norm;
    case Role::attention_norm:
      return &LayerWeights::attention_norm;
    case Role::attention_norm_2:
      return &LayerWeights::attention_norm_2;
    case Role::mlp_norm:
      return &LayerWeights::mlp_norm;
    case Role::mlp_norm_2:
      return &LayerWeights::mlp_norm_2;
    default:
      return nullptr;
  }
}
bool is_layer_matrix(Role role) { return matrix_of(role) != nullptr; }

constexpr char WEIGHT[] = ".weight";
// What adapters are named after: the tensor without ".weight", and the last part of that.
std::string module_path(const Parameter& p) {
  return p.name.ends_with(WEIGHT) ? p.name.substr(0, p.name.size() - sizeof WEIGHT + 1) : p.name;
}
std::string module_name(const Parameter& p) {
  const std::string path = module_path(p);
  return path.substr(path.rfind('.') + 1);
}

bool contains(const std::vector<std::string>& words, const std::string& word) {
  return std::find(words.begin(), words.end(), word) != words.end();
}
}  // namespace

std::vector<uint8_t> rounded(LoopDType dt, const std::vector<double>& values) {
  std::vector<uint8_t> out(values.size() * loop_dtype_size(dt));
  for (size_t i = 0; i < values.size(); i++) {
    if (dt == LOOP_F64) reinterpret_cast<double*>(out.data())[i] = values[i];
    else if (dt == LOOP_F32) reinterpret_cast<float*>(out.data())[i] = float(values[i]);
    else reinterpret_cast<uint16_t*>(out.data())[i] = float_to_bf16(float(values[i]));
  }
  return out;
}

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
  if (quantization) check_quantization();
  Layout layout(parameters_);
  for (const ParameterForm& form : config.parameters) {
    Parameter p{form.name, form.shape, 0, elements(form.name, form.shape), form.role, form.index, form.first_row};
    const bool continues = form.first_row > 0;
    if (continues && (parameters_.empty() || parameters_.back().role != p.role || parameters_.back().index != p.index))
      throw Error("INVALID_CONFIG", "model", p.name + " must come right behind the rows before its own");
    if (quantization && (is_layer_matrix(p.role) || (p.role == Role::head && quantization.head))) {
      if (!continues) matrices_.push_back(std::make_unique<QuantizedMatrix>(p.role, p.index));
      matrices_.back()->in = p.shape[1];
      matrices_.back()->out += p.shape[0];
      p.matrix = int32_t(matrices_.size()) - 1;
      parameters_.push_back(std::move(p));
      continue;
    }
    layout.add(std::move(p), continues);
    // What a vector leaves out is zero.
    if (!is_matrix(form.role)) layout.reserve(parameters_.back().offset + size_t(config.rows(form.role) - form.first_row));
  }
  if (config.tied && quantization && quantization.head) {
    matrices_.push_back(std::make_unique<QuantizedMatrix>(Role::head, 0));
    matrices_.back()->in = config.hidden;
    matrices_.back()->out = config.vocabulary;
    tied_head_ = {"head", {config.vocabulary, config.hidden}, 0, size_t(config.vocabulary * config.hidden), Role::head};
    tied_head_.matrix = int32_t(matrices_.size()) - 1;
  }
  std::copy_if(parameters_.begin(), parameters_.end(), std::back_inserter(trained_),
               [](const Parameter& p) { return p.role != Role::start; });
  arena_elements_ = layout.aligned();
  if (!arena_) {
    arena_ = std::make_shared<Buffer>(device, arena_elements_ * loop_dtype_size(dt));
    clear_gaps();
  }
  for (auto& matrix : matrices_) {
    matrix->view = {quantization.bits, quantization.group, nullptr, nullptr, activation_bits()};
    const int64_t side = device->quantized_rows(), rows = (matrix->out + side - 1) / side * side;
    matrix->codes = Buffer(device, size_t(rows) * matrix->row_bytes() + 64);
    matrix->codes.zero(matrix->codes.bytes());
    matrix->scales = Buffer(device, size_t(matrix->groups() * rows) * 4);
    matrix->scales.zero(matrix->scales.bytes());
    matrix->view.codes = matrix->codes.as<>();
    matrix->view.scales = matrix->scales.as<float>();
  }
  make_constants();
  point();
}
Model::~Model() = default;

// What lies between parameters: sums over the whole arena see it. The parameters themselves are written by whoever makes the
// model.
void Model::clear_gaps() {
  const size_t size = loop_dtype_size(dt);
  size_t end = 0;
  const auto clear_to = [&](size_t next) {
    if (next > end) arena_->zero((next - end) * size, end * size);
  };
  for (const Parameter& p : parameters_) {
    if (p.matrix >= 0) continue;
    clear_to(p.offset);
    end = p.offset + p.count;
  }
  clear_to(arena_elements_);
}

Weights Model::pointers(Buffer& arena, LoopDType type) const {
  Weights w;
  w.layers.resize(size_t(config.layers));
  for (LayerWeights& layer : w.layers)
    for (const Role role : {Role::attention, Role::attention_output, Role::gate_up, Role::down}) {
      Linear& linear = layer.*matrix_of(role);
      linear.in = config.columns(role);
      linear.out = config.rows(role);
    }
  const auto place = [](auto& list, int32_t index) -> auto& {
    list.resize(std::max(list.size(), size_t(index) + 1));
    return list[size_t(index)];
  };
  for (const Parameter& p : parameters_) {
    if (p.matrix >= 0) continue;
    void* at = arena.at(p.offset * loop_dtype_size(type));
    if (p.first_row > 0 && is_matrix(p.role)) continue;
    if (const auto matrix = matrix_of(p.role)) {
      (w.layers[size_t(p.index)].*matrix).weight = at;
    } else if (const auto biased = biased_by(p.role)) {
      Linear& linear = w.layers[size_t(p.index)].*biased;
      if (p.first_row == 0) linear.bias = at;
      linear.biased = p.first_row + int64_t(p.count);
    } else if (const auto vector = vector_of(p.role)) {
      w.layers[size_t(p.index)].*vector = at;
    } else if (p.role == Role::embedding) {
      w.embedding = at;
    } else if (p.role == Role::head) {
      w.head = at;
    } else if (p.role == Role::exit_gate) {
      w.gate_weight = at;
    } else if (p.role == Role::exit_gate_bias) {
      w.gate_bias = at;
    } else if (p.role == Role::norm) {
      place(w.norms, p.index) = at;
    } else if (p.role == Role::start) {
      place(w.starts, p.index) = at;
    } else if (p.role == Role::inject) {
      place(w.injections, p.index) = {at, 2 * config.hidden, config.hidden};
    }
  }
  if (config.tied && !tied_head()) w.head = w.embedding;
  for (const auto& matrix : matrices_) {
    if (matrix->role == Role::head) w.quantized_head = &matrix->view;
    else (w.layers[size_t(matrix->index)].*matrix_of(matrix->role)).quantized = &matrix->view;
  }
  return w;
}

const Parameter& Model::parameter(const std::string& name) const {
  for (auto& p : parameters_)
    if (p.name == name) return p;
  if (adapter_)
    for (auto& p : adapter_->parameters)
      if (p.name == name) return p;
  throw Error("NOT_FOUND", "parameter", "the model has no parameter \"" + name + "\"");
}

const Parameter& Model::embedding() const {
  return *std::find_if(parameters_.begin(), parameters_.end(), [](const Parameter& p) { return p.role == Role::embedding; });
}

void Model::initialize(uint64_t seed) {
  for (const Parameter& p : parameters_) initialize(p, seed);
}
void Model::initialize(const Parameter& p, uint64_t seed) {
  const size_t i = size_t(&p - parameters_.data());
  const ParameterForm& form = config.parameters[i];
  std::vector<double> values(p.count, form.initial == Initial::ones ? 1.0 : 0.0);
  const bool truncated = form.initial == Initial::truncated_normal;
  const size_t part = p.count / form.deviations.size();
  if (truncated || form.initial == Initial::normal)
    for (size_t j = 0; j < p.count; j++)
      values[j] = form.deviations[j / part] * (truncated ? truncated_normal : normal)(seed, uint32_t(i), 0, uint32_t(j));
  const std::vector<uint8_t> raw = rounded(dt, values);
  if (p.matrix >= 0) return quantize_rows(p, 0, p.shape[0], raw.data());
  if (tied_head() && p.role == Role::embedding) quantize_rows(tied_head_, 0, p.shape[0], raw.data());
  writable_arena(p).upload(raw.data(), raw.size(), p.offset * loop_dtype_size(dt));
  touch(p);
}

// How many pairs of matrices an adapter has for a parameter.
int32_t Model::adapter_loops(const AdapterOptions& options, const Parameter& p) const {
  const auto runs = [&](const Step& step) { return step.kind == Step::Kind::block && step.index == p.index; };
  const bool looped = std::any_of(config.loop.begin(), config.loop.end(), runs);
  return options.per_loop && looped ? config.loops : 1;
}

// The places of the adapter's matrices in an arena laid out as its parameters are.
void Model::attach(Weights& weights, Buffer& arena, LoopDType type) const {
  const size_t size = loop_dtype_size(type);
  const Parameter* next = adapter_->parameters.data();
  for (const Parameter& p : parameters_) {
    if (!is_layer_matrix(p.role) || !contains(adapter_->options.modules, module_name(p))) continue;
    LowRank part{arena.at(next[0].offset * size), arena.at(next[1].offset * size), p.first_row, p.shape[0]};
    const int32_t loops = adapter_loops(adapter_->options, p);
    if (loops > 1) part.loop_bytes = (next[2].offset - next[0].offset) * size;
    (weights.layers[size_t(p.index)].*matrix_of(p.role)).adapters.push_back(part);
    next += 2 * loops;
  }
  if (adapter_->options.shift_rank > 0)
    for (LayerWeights& layer : weights.layers) {
      const auto take = [&] { return arena.at(next++->offset * size); };
      layer.shift.a = take(), layer.shift.b = take(), layer.shift.c = take();
      layer.shift.rank = weights.shift_rank = adapter_->options.shift_rank;
    }
  weights.rank = adapter_->options.rank;
  weights.adapter_loops = adapter_->options.per_loop ? config.loops : 0;
  weights.scale = adapter_->scale.as<>();
}

void Model::point() {
  placement_++;
  Weights weights = pointers(*arena_, dt);
  for (LayerWeights& layer : weights.layers)
    for (void** norm : {&layer.attention_norm, &layer.attention_norm_2, &layer.mlp_norm, &layer.mlp_norm_2})
      if (!*norm) *norm = ones_.as<>();
  weights.ones = ones_.as<>();
  if (embedding_scale_) {
    weights.embedding_scale = embedding_scale_.as<>();
    weights.embedding_scale_real = embedding_scale_.at(sizeof(double));
  }
  if (adapter_) attach(weights, adapter_->values, dt);
  weights_ = std::move(weights);
}
// Another arena or adapter, or the one before when there is no memory to point at it.
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

// Numbers that no parameter holds: the weight of norms without one, and the scale of the embedding.
void Model::make_constants() {
  const std::vector<uint8_t> ones = rounded(dt, std::vector<double>(size_t(config.hidden), 1.0));
  ones_ = Buffer(device, ones.size() + 64);
  ones_.upload(ones.data(), ones.size());
  for (const Step& step : config.begin) {
    if (step.kind != Step::Kind::embed || step.scale == 1) continue;
    const std::vector<uint8_t> act = rounded(dt, {step.scale}), accurate = rounded(real(), {step.scale});
    embedding_scale_ = Buffer(device, 2 * sizeof(double));
    embedding_scale_.upload(act.data(), act.size());
    embedding_scale_.upload(accurate.data(), accurate.size(), sizeof(double));
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
  auto require = [](bool ok, const std::string& what) {
    if (!ok) throw Error("INVALID_ARGUMENT", "adapter", what);
  };
  refuse_quantized("adapter");
  require(!adapter_, "the model has an adapter already; merge it into a copy or remove it first");
  require(options.rank >= 1, "rank must be at least 1");
  require(!options.modules.empty(), "an adapter needs at least one module");
  auto made = std::make_unique<Adapter>();
  made->options = options;
  Layout layout(made->parameters);
  std::vector<std::string> known;
  for (const Parameter& p : parameters_)
    if (is_layer_matrix(p.role)) known.push_back(module_name(p));
  for (const std::string& module : options.modules) require(contains(known, module), "no module is called \"" + module + "\"");
  const auto add = [&](const std::string& name, int64_t rows, int64_t columns) {
    Parameter p{name, {rows, columns}, 0, elements(name, {rows, columns})};
    p.adapter = true;
    layout.add(std::move(p));
  };
  for (const Parameter& p : parameters_) {
    if (!is_layer_matrix(p.role) || !contains(options.modules, module_name(p))) continue;
    const int32_t loops = adapter_loops(options, p);
    for (int32_t t = 1; t <= loops; t++) {
      const std::string of = loops > 1 ? ".loop_" + std::to_string(t) : "";
      add(module_path(p) + ".lora_A" + of + ".weight", options.rank, p.shape[1]);
      add(module_path(p) + ".lora_B" + of + ".weight", p.shape[0], options.rank);
    }
  }
  if (const int64_t r = options.shift_rank; r > 0) {
    const int64_t D = config.hidden;
    std::vector<std::string> of_layer(size_t(config.layers));  // beside the last matrix of its MLP
    for (const Parameter& p : parameters_)
      if (p.role == Role::down) of_layer[size_t(p.index)] = module_path(p).substr(0, module_path(p).rfind('.')) + ".shift_ffn.";
    for (const std::string& path : of_layer)
      add(path + "a.weight", r, D), add(path + "b.weight", r, 2 * D), add(path + "c.weight", D, r);
  }
  made->elements = layout.aligned();
  made->values = Buffer(device, made->elements * loop_dtype_size(dt));
  made->values.zero(made->values.bytes());
  made->scale = Buffer(device, sizeof(double));
  const double scale = options.alpha / double(options.rank);
  upload_reals(made->scale, dt, &scale, 1);
  for (size_t i = 0; i < made->parameters.size(); i++) {
    const Parameter& p = made->parameters[i];
    if (p.name.find(".lora_B.") != std::string::npos || p.name.ends_with(".shift_ffn.c.weight")) continue;  // stays zero
    const double bound = 1 / std::sqrt(double(p.shape[1]));
    std::vector<double> values(p.count);
    for (size_t j = 0; j < p.count; j++) values[j] = bound * (2 * uniform(seed, uint32_t(i), uint32_t(j), ADAPTER_STREAM) - 1);
    const std::vector<uint8_t> raw = rounded(dt, values);
    made->values.upload(raw.data(), raw.size(), p.offset * loop_dtype_size(dt));
  }
  replace(adapter_, std::move(made));
  gradient_arena_ = Buffer();
  layout_ = ++adapters_made_;
}

void Model::remove_adapter() {
  if (!adapter_) return;
  replace(adapter_, std::unique_ptr<Adapter>());
  layout_ = 0;
}

void Model::refuse_quantized(const char* operation) const {
  if (quantization)
    throw Error("UNSUPPORTED", operation,
                "the model is quantized, which is for inference: use its checkpoint as it was before, without `quantize`");
}
void Model::check_quantization() const {
  if (!device->has(&LoopBackend::gemm_quantized))
    throw Error("UNSUPPORTED", "quantize",
                "device \"" + device->name() + "\" has no products with quantized weights; cpu and cuda have");
  if (quantization.bits != 4 && quantization.bits != 8) throw Error("INVALID_ARGUMENT", "quantize", "bits must be 4 or 8");
  const int group = quantization.group;
  for (int64_t width : {config.hidden, config.attention_width(), config.intermediate})
    if (group < 32 || group % 32 != 0 || width % group != 0)
      throw Error("INVALID_ARGUMENT", "quantize",
                  "groups of " + std::to_string(group) + " do not fit: a group is a multiple of 32 and divides the widths " +
                      std::to_string(config.hidden) + ", " + std::to_string(config.attention_width()) + " and " +
                      std::to_string(config.intermediate));
}

int Model::activation_bits() const {
  const int has = device->int8_activations();
  if (quantization.activations == Activations::int8 && has == 0)
    throw Error("UNSUPPORTED", "quantize",
                "device \"" + device->name() +
                    "\" multiplies activations as they are: omit activations, or say 'float'; cpu and reference have 'int8'");
  return quantization.activations == Activations::int8 || (quantization.activations == Activations::by_device && has == 2) ? 8
                                                                                                                           : 0;
}

void Model::quantize_rows(const Parameter& p, int64_t first, int64_t rows, const void* values) {
  const int bits = quantization.bits, group = quantization.group;
  const size_t in = size_t(p.shape[1]), row_codes = in * size_t(bits) / 8, groups = in / size_t(group);
  std::vector<float> row(in), scales(size_t(rows) * groups);
  std::vector<uint8_t> codes(size_t(rows) * row_codes);
  for (size_t i = 0; i < size_t(rows); i++) {
    to_floats(dt, static_cast<const char*>(values) + i * in * loop_dtype_size(dt), in, row.data());
    quantize_row(bits, group, row.data(), int64_t(in), &codes[i * row_codes], &scales[i * groups]);
  }
  write_codes(p, first, rows, codes.data());
  write_scales(p, first, rows, scales.data());
}
// Where R > 1 rows lie side by side in the host's memory: calls f with the place of a unit (of 32 bits) or of a scale, and with
// its place among `rows` rows of `units` each.
template <class F>
static void side_by_side(int64_t side, int64_t first, int64_t rows, int64_t units, F f) {
  for (int64_t i = 0; i < rows; i++) {
    const int64_t row = first + i, begin = row / side * units * side + row % side;
    for (int64_t u = 0; u < units; u++) f(size_t(begin + u * side), size_t(i * units + u));
  }
}
void Model::write_codes(const Parameter& p, int64_t first, int64_t rows, const void* codes) {
  QuantizedMatrix& m = *matrices_[size_t(p.matrix)];
  const size_t row = m.row_bytes();
  const int64_t side = device->quantized_rows();
  if (side == 1) return m.codes.upload(codes, size_t(rows) * row, size_t(p.first_row + first) * row);
  side_by_side(side, p.first_row + first, rows, int64_t(row / 4),
               [&](size_t place, size_t i) { std::memcpy(m.codes.at(4 * place), static_cast<const char*>(codes) + 4 * i, 4); });
}
void Model::write_scales(const Parameter& p, int64_t first, int64_t rows, const float* scales) {
  QuantizedMatrix& m = *matrices_[size_t(p.matrix)];
  const int64_t groups = m.groups(), side = device->quantized_rows();
  if (side > 1)
    return side_by_side(side, p.first_row + first, rows, groups,
                        [&](size_t place, size_t i) { m.scales.as<float>()[place] = scales[i]; });
  std::vector<float> column(static_cast<size_t>(rows));  // the scales of a group lie side by side
  for (int64_t g = 0; g < groups; g++) {
    for (int64_t i = 0; i < rows; i++) column[size_t(i)] = scales[i * groups + g];
    m.scales.upload(column.data(), size_t(rows) * 4, size_t(g * m.out + p.first_row + first) * 4);
  }
}
std::vector<uint8_t> Model::read_codes(const Parameter& p) const {
  const QuantizedMatrix& m = *matrices_[size_t(p.matrix)];
  const size_t row = m.row_bytes();
  const int64_t side = device->quantized_rows();
  std::vector<uint8_t> codes(size_t(p.shape[0]) * row);
  if (side == 1) m.codes.download(codes.data(), codes.size(), size_t(p.first_row) * row);
  else
    side_by_side(side, p.first_row, p.shape[0], int64_t(row / 4),
                 [&](size_t place, size_t i) { std::memcpy(&codes[4 * i], m.codes.at(4 * place), 4); });
  return codes;
}
std::vector<float> Model::read_scales(const Parameter& p) const {
  const QuantizedMatrix& m = *matrices_[size_t(p.matrix)];
  const size_t rows = size_t(p.shape[0]), groups = size_t(m.groups());
  const int64_t side = device->quantized_rows();
  std::vector<float> column(rows), scales(rows * groups);
  if (side > 1) {
    side_by_side(side, p.first_row, p.shape[0], m.groups(),
                 [&](size_t place, size_t i) { scales[i] = m.scales.as<float>()[place]; });
    return scales;
  }
  for (size_t g = 0; g < groups; g++) {
    m.scales.download(column.data(), rows * 4, (g * size_t(m.out) + size_t(p.first_row)) * 4);
    for (size_t i = 0; i < rows; i++) scales[i * groups + g] = column[i];
  }
  return scales;
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

std::unique_ptr<Model> Model::merged() const {
  refuse_quantized("merge");
  auto copy = std::make_unique<Model>(device, dt, config);
  copy->copy_base_from(*this);
  if (!adapter_) return copy;
  if (adapter_->options.shift_rank > 0)
    throw Error("UNSUPPORTED", "merge",
                "the adapter lets the MLP see the token before (shiftRank), which no matrix of the model can: keep the adapter "
                "beside the model, with saveAdapter and loadAdapter");
  if (adapter_->options.per_loop)
    throw Error("UNSUPPORTED", "merge",
                "every loop has an adapter of its own (perLoop), and the loops share the matrices that they would be added to: "
                "keep the adapter beside the model, with saveAdapter and loadAdapter");
  const int64_t r = adapter_->options.rank, stride = 1;
  for (const Parameter& p : parameters_) {
    if (!is_layer_matrix(p.role)) continue;
    const Linear& own = weights_.layers[size_t(p.index)].*matrix_of(p.role);
    for (const LowRank& part : own.adapters) {
      if (part.first != p.first_row) continue;
      const int64_t count = int64_t(p.count), out = p.shape[0], in = p.shape[1];
      void* target = copy->writable_data(p);
      // The sum is real and rounded once.
      Buffer sum(device, size_t(std::max(count, out * r)) * loop_dtype_size(real()));
      auto cast = [&](LoopDType from, LoopDType to, const void* source, void* result, int64_t n) {
        device->run(&LoopBackend::copy_strided, "merge", from, to, 1, &n, source, &stride, result, &stride);
      };
      cast(dt, real(), part.b, sum.as<>(), out * r);
      const void* b = scaled(device, stack_memory_->linear, dt, sum.as<>(), out * r, weights_.scale);
      cast(dt, real(), target, sum.as<>(), count);
      device->run(&LoopBackend::gemm, "merge", dt, 0, 0, out, in, r, b, r, part.a, in, sum.as<>(), in, int(LOOP_GEMM_ACCUMULATE));
      cast(real(), dt, sum.as<>(), target, count);
    }
  }
  return copy;
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
  const AdapterOptions &a = adapter_->options, &b = other.adapter_->options;
  const auto same = [](const Parameter& x, const Parameter& y) { return x.name == y.name && x.shape == y.shape; };
  return a.alpha == b.alpha && std::equal(adapter_->parameters.begin(), adapter_->parameters.end(),
                                          other.adapter_->parameters.begin(), other.adapter_->parameters.end(), same);
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
  if (p.matrix >= 0)
    return dequantize_rows(quantization.bits, quantization.group, p.shape[0], p.shape[1], read_codes(p).data(),
                           read_scales(p).data());
  if (dt != LOOP_BF16) return download_reals(arena_of(p), dt, p.count, p.offset);
  std::vector<uint16_t> bits(p.count);
  read_raw(p, bits.data());
  std::vector<double> out(p.count);
  for (size_t i = 0; i < p.count; i++) out[i] = double(bf16_to_float(bits[i]));
  return out;
}
void Model::write(const Parameter& p, const double* values) {
  refuse_quantized("write");
  if (dt == LOOP_BF16) {
    std::vector<uint16_t> bits(p.count);
    for (size_t i = 0; i < p.count; i++) bits[i] = float_to_bf16(float(values[i]));
    write_raw(p, bits.data());
    return;
  }
  upload_reals(writable_arena(p), dt, values, p.count, p.offset);
  touch(p);
}

const Weights& Model::gradients() {
  refuse_quantized("gradients");
  if (has_gradients()) return gradients_;
  // Arenas that are there count as zeroed and pointed at, so they come last, when nothing can fail any more.
  const size_t real_bytes = loop_dtype_size(real());
  Buffer arena(device, trained_elements() * real_bytes);
  arena.zero(arena.bytes());
  if (!adapter_) {
    gradients_ = pointers(arena, real());
  } else {
    Buffer exit_gate(device, size_t(config.hidden + 1) * real_bytes);
    exit_gate.zero(exit_gate.bytes());
    Weights made;
    made.norms.assign(weights_.norms.size(), nullptr);
    made.injections.resize(weights_.injections.size());
    made.gate_weight = exit_gate.at(real_bytes), made.gate_bias = exit_gate.as<>();
    made.layers.resize(size_t(config.layers));
    attach(made, arena, real());
    gradients_ = std::move(made);
    adapter_->exit_gate = std::move(exit_gate);
  }
  gradient_arena() = std::move(arena);
  return gradients_;
}
void Model::zero_gradients() {
  if (has_gradients()) gradient_arena().zero(gradient_arena().bytes());
}
std::vector<double> Model::read_gradient(const Parameter& p) const {
  if (p.adapter != bool(adapter_))
    throw Error("NOT_FOUND", "gradient", "the model has an adapter: " + p.name + " is frozen and has no gradient");
  if (!has_gradients()) return std::vector<double>(p.count, 0.0);
  return download_reals(gradient_arena(), dt, p.count, p.offset);
}

const void* Model::rope_table(int64_t positions) {
  if (positions > rope_positions_) {
    int64_t n = 64;
    while (n < positions) n *= 2;
    const int64_t half = config.head_dim / 2;
    std::vector<double> table(size_t(n * 2 * half));
    for (int64_t p = 0; p < n; p++)
      for (int64_t j = 0; j < half; j++) {
        const double angle = double(p) * config.rotary.frequency(j, config.head_dim);
        table[size_t(p * 2 * half + j)] = std::cos(angle);
        table[size_t(p * 2 * half + half + j)] = std::sin(angle);
      }
    Buffer larger(device, table.size() * loop_dtype_size(real()));
    upload_reals(larger, dt, table.data(), table.size());
    rope_table_ = std::move(larger);
    rope_positions_ = n;
  }
  return rope_table_.as<>();
}

}  // namespace looplm

#include "model.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "half.h"
#include "philox.h"
#include "quantize.h"
#include "workspace.h"

namespace looplm {

const void* scaled(Device& device, Workspace& workspace, LoopDType dt, const void* x, int64_t elements, const void* factor) {
  const int64_t one = 1, none = 0;
  const LoopDType real = loop_real(dt);
  void* product = workspace.get("adapter.product", size_t(elements) * loop_dtype_size(real)).as<>();
  device.run(&LoopBackend::binary, "scale", real, LOOP_MULTIPLY, 1, &elements, x, &one, factor, &none, product);
  if (real == dt) return product;
  void* out = workspace.get("adapter.scaled", size_t(elements) * loop_dtype_size(dt)).as<>();
  device.run(&LoopBackend::copy_strided, "cast", real, dt, 1, &elements, static_cast<const void*>(product), &one, out, &one);
  return out;
}

namespace {
constexpr size_t ALIGN = 32;  // elements: every matrix starts on a 64-byte line

void check_config(const ModelConfig& c) {
  auto require = [](bool ok, const std::string& what) {
    if (!ok) throw Error("INVALID_CONFIG", "model", what);
  };
  require(c.vocabulary >= 1 && c.hidden >= 1 && c.intermediate >= 1,
          "vocab_size, hidden_size and intermediate_size must be at least 1");
  require(c.layers >= 1 && c.loops >= 1, "num_hidden_layers and total_ut_steps must be at least 1");
  require(c.head_dim >= 2 && c.head_dim % 2 == 0, "head_dim must be even and at least 2: rotary positions turn pairs");
  require(c.heads >= 1 && c.kv_heads >= 1 && c.heads % c.kv_heads == 0,
          "num_attention_heads must be a multiple of num_key_value_heads, both at least 1");
}

struct Layout {
  std::vector<Parameter>& out;
  bool adapter = false;
  size_t end = 0;
  void add(const std::string& name, std::vector<int64_t> shape, bool joined = false) {
    size_t count = 1;
    for (int64_t s : shape) count *= size_t(s);
    if (!joined) end = aligned();
    out.push_back({name, std::move(shape), end, count, adapter});
    end += count;
  }
  // Rows [first, first + shape[0]) of a quantized matrix, outside the arena.
  void add_quantized(const std::string& name, std::vector<int64_t> shape, int32_t matrix, int64_t first) {
    const size_t count = size_t(shape[0] * shape[1]);
    out.push_back({name, std::move(shape), 0, count, adapter, matrix, first});
  }
  size_t aligned() const { return (end + ALIGN - 1) / ALIGN * ALIGN; }
};

std::string layer_prefix(int l) { return "model.layers." + std::to_string(l) + "."; }

// The projections that an adapter can be given, in the order of its parameters.
struct Projection {
  const char *group, *module;
  int64_t in, first, out;
  Linear LayerWeights::*matrix;  // rows [first, first + out) of it
};
std::vector<Projection> projections(const ModelConfig& c) {
  const int64_t D = c.hidden, F = c.intermediate, q = c.attention_width(), kv = int64_t(c.kv_heads) * c.head_dim;
  return {{"self_attn", "q_proj", D, 0, q, &LayerWeights::qkv},       {"self_attn", "k_proj", D, q, kv, &LayerWeights::qkv},
          {"self_attn", "v_proj", D, q + kv, kv, &LayerWeights::qkv}, {"self_attn", "o_proj", q, 0, D, &LayerWeights::output},
          {"mlp", "gate_proj", D, 0, F, &LayerWeights::gate_up},      {"mlp", "up_proj", D, F, F, &LayerWeights::gate_up},
          {"mlp", "down_proj", F, 0, D, &LayerWeights::down}};
}
constexpr Linear LayerWeights::*MATRICES[] = {&LayerWeights::qkv, &LayerWeights::output, &LayerWeights::gate_up,
                                              &LayerWeights::down};

// Host values as `dt`.
std::vector<uint8_t> rounded(LoopDType dt, const std::vector<double>& values) {
  std::vector<uint8_t> out(values.size() * loop_dtype_size(dt));
  for (size_t i = 0; i < values.size(); i++) {
    if (dt == LOOP_F64) reinterpret_cast<double*>(out.data())[i] = values[i];
    else if (dt == LOOP_F32) reinterpret_cast<float*>(out.data())[i] = float(values[i]);
    else reinterpret_cast<uint16_t*>(out.data())[i] = float_to_bf16(float(values[i]));
  }
  return out;
}

bool contains(const std::vector<std::string>& words, const std::string& word) {
  return std::find(words.begin(), words.end(), word) != words.end();
}
}  // namespace

Model::Model(std::shared_ptr<Device> device_in, LoopDType dt_in, const ModelConfig& config_in, Quantization quantization_in,
             std::shared_ptr<Buffer> arena)
    : config(config_in),
      dt(dt_in),
      device(std::move(device_in)),
      quantization(quantization_in),
      arena_(std::move(arena)),
      workspace_(std::make_unique<Workspace>(device)) {
  check_config(config);
  if (!device->supports(dt))
    throw Error("UNSUPPORTED", "model",
                "device \"" + device->name() + "\" does not have this dtype: cpu has float32 and bfloat16, reference float64");
  if (quantization) check_quantization();
  const int64_t D = config.hidden, F = config.intermediate, V = config.vocabulary, q = config.attention_width(),
                kv = int64_t(config.kv_heads) * config.head_dim;
  Layout layout{parameters_};
  // joined: its rows continue those of the matrix before
  const auto add_matrix = [&](const std::string& name, int64_t out, int64_t in, bool joined = false) {
    if (!quantization) return layout.add(name, {out, in}, joined);
    if (!joined) matrices_.push_back(std::make_unique<QuantizedMatrix>());
    QuantizedMatrix& matrix = *matrices_.back();
    layout.add_quantized(name, {out, in}, int32_t(matrices_.size()) - 1, matrix.out);
    matrix.in = in;
    matrix.out += out;
  };
  layout.add("model.embed_tokens.weight", {V, D});
  for (int l = 0; l < config.layers; l++) {
    const std::string p = layer_prefix(l);
    add_matrix(p + "self_attn.q_proj.weight", q, D);
    add_matrix(p + "self_attn.k_proj.weight", kv, D, true);
    add_matrix(p + "self_attn.v_proj.weight", kv, D, true);
    add_matrix(p + "self_attn.o_proj.weight", D, q);
    add_matrix(p + "mlp.gate_proj.weight", F, D);
    add_matrix(p + "mlp.up_proj.weight", F, D, true);
    add_matrix(p + "mlp.down_proj.weight", D, F);
    for (const char* norm : {"input_layernorm", "input_layernorm_2", "post_attention_layernorm", "post_attention_layernorm_2"})
      layout.add(p + norm + ".weight", {D});
  }
  layout.add("model.norm.weight", {D});
  layout.add("model.early_exit_gate.weight", {1, D});
  layout.add("model.early_exit_gate.bias", {1});
  if (!config.tied) add_matrix("lm_head.weight", V, D);
  if (config.tied && quantization) {
    add_matrix("lm_head.weight", V, D);
    tied_head_ = std::move(parameters_.back());
    parameters_.pop_back();
  }
  arena_elements_ = layout.aligned();
  if (!arena_) {
    arena_ = std::make_shared<Buffer>(device, arena_elements_ * loop_dtype_size(dt));
    clear_gaps();
  }
  for (auto& matrix : matrices_) {
    matrix->codes = Buffer(device, size_t(matrix->out * matrix->in) * size_t(quantization.bits) / 8 + 64);
    matrix->codes.zero(matrix->codes.bytes());
    matrix->scales = Buffer(device, size_t(matrix->in / quantization.group * matrix->out) * 4);
    matrix->scales.zero(matrix->scales.bytes());
    matrix->view = {quantization.bits, quantization.group, matrix->codes.as<>(), matrix->scales.as<float>()};
  }
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

Weights Model::pointers(const Buffer& arena, LoopDType type) const {
  size_t next = 0;
  auto take = [&]() -> void* {
    const Parameter& p = parameters_[next++];
    return p.matrix < 0 ? arena.at(p.offset * loop_dtype_size(type)) : nullptr;
  };
  Weights w;
  w.embedding = take();
  for (int l = 0; l < config.layers; l++) {
    LayerWeights layer;
    const int64_t D = config.hidden, F = config.intermediate;
    layer.qkv = {take(), D, config.qkv_width(), {}};
    next += 2;  // k and v continue q
    layer.output = {take(), config.attention_width(), D, {}};
    layer.gate_up = {take(), D, 2 * F, {}};
    next += 1;  // up continues gate
    layer.down = {take(), F, D, {}};
    layer.attention_norm = take();
    layer.attention_norm_2 = take();
    layer.mlp_norm = take();
    layer.mlp_norm_2 = take();
    w.layers.push_back(layer);
  }
  w.norm = take();
  w.gate_weight = take();
  w.gate_bias = take();
  w.head = !config.tied ? take() : quantization ? nullptr : w.embedding;
  for (size_t i = 0; i < matrices_.size(); i++) {
    const LoopQuantized* view = &matrices_[i]->view;
    if (i / 4 == w.layers.size()) w.quantized_head = view;
    else (w.layers[i / 4].*MATRICES[i % 4]).quantized = view;
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

void Model::initialize(uint64_t seed, double range) {
  for (size_t i = 0; i < parameters_.size(); i++) {
    const Parameter& p = parameters_[i];
    const bool norm = p.name.find("norm") != std::string::npos, bias = p.name.find("bias") != std::string::npos;
    std::vector<double> values(p.count, norm ? 1.0 : 0.0);
    if (!norm && !bias)
      for (size_t j = 0; j < p.count; j++) values[j] = range * normal(seed, uint32_t(i), 0, uint32_t(j));
    const std::vector<uint8_t> raw = rounded(dt, values);
    if (p.matrix >= 0) quantize_rows(p, 0, p.shape[0], raw.data());
    else {
      if (tied_head() && i == 0) quantize_rows(tied_head_, 0, p.shape[0], raw.data());
      writable_arena(p).upload(raw.data(), raw.size(), p.offset * loop_dtype_size(dt));
      touch(p);
    }
  }
}

// The places of the adapter's matrices in an arena laid out as its parameters are.
void Model::attach(Weights& weights, const Buffer& arena, LoopDType type) const {
  size_t next = 0;
  auto take = [&] { return arena.at(adapter_->parameters[next++].offset * loop_dtype_size(type)); };
  for (LayerWeights& layer : weights.layers)
    for (const Projection& p : projections(config))
      if (contains(adapter_->options.modules, p.module)) {
        void* a = take();
        (layer.*p.matrix).adapters.push_back({a, take(), p.first, p.out});
      }
  weights.rank = adapter_->options.rank;
  weights.scale = adapter_->scale.as<>();
}

void Model::point() {
  placement_++;
  weights_ = pointers(*arena_, dt);
  if (adapter_) attach(weights_, adapter_->values, dt);
}
Buffer& Model::writable_arena(const Parameter& p) {
  if (p.adapter) return adapter_->values;
  if (arena_.use_count() > 1) {
    auto own = std::make_shared<Buffer>(device, arena_->bytes());
    device->run(&LoopBackend::copy, "copy", own->as<>(), static_cast<const void*>(arena_->as<>()), arena_->bytes());
    arena_ = std::move(own);
    point();
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
  Layout layout{made->parameters, true};
  std::vector<std::string> known;
  for (const Projection& p : projections(config)) known.push_back(p.module);
  for (const std::string& module : options.modules) require(contains(known, module), "no module is called \"" + module + "\"");
  for (int l = 0; l < config.layers; l++)
    for (const Projection& p : projections(config)) {
      if (!contains(options.modules, p.module)) continue;
      const std::string name = layer_prefix(l) + p.group + "." + p.module;
      layout.add(name + ".lora_A.weight", {options.rank, p.in});
      layout.add(name + ".lora_B.weight", {p.out, options.rank});
    }
  made->elements = layout.aligned();
  made->values = Buffer(device, made->elements * loop_dtype_size(dt));
  made->values.zero(made->values.bytes());
  made->scale = Buffer(device, sizeof(double));
  const double scale = options.alpha / double(options.rank);
  upload_reals(made->scale, dt, &scale, 1);
  adapter_ = std::move(made);
  point();
  gradient_arena_ = Buffer();
  layout_ = ++adapters_made_;
  for (size_t i = 0; i < adapter_->parameters.size(); i += 2) {  // the A of each pair
    const Parameter& p = adapter_->parameters[i];
    const double bound = 1 / std::sqrt(double(p.shape[1]));
    std::vector<double> values(p.count);
    for (size_t j = 0; j < p.count; j++) values[j] = bound * (2 * uniform(seed, uint32_t(i), uint32_t(j), ADAPTER_STREAM) - 1);
    write(p, values.data());
  }
}

void Model::remove_adapter() {
  if (!adapter_) return;
  adapter_.reset();
  point();
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

void Model::quantize_rows(const Parameter& p, int64_t first, int64_t rows, const void* values) {
  const auto [bits, group] = quantization;
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
void Model::write_codes(const Parameter& p, int64_t first, int64_t rows, const void* codes) {
  QuantizedMatrix& m = *matrices_[size_t(p.matrix)];
  const size_t row = size_t(m.in) * size_t(m.view.bits) / 8;
  m.codes.upload(codes, size_t(rows) * row, size_t(p.first_row + first) * row);
}
void Model::write_scales(const Parameter& p, int64_t first, int64_t rows, const float* scales) {
  QuantizedMatrix& m = *matrices_[size_t(p.matrix)];
  const int64_t groups = m.in / m.view.group;
  std::vector<float> column(static_cast<size_t>(rows));  // the scales of a group lie side by side
  for (int64_t g = 0; g < groups; g++) {
    for (int64_t i = 0; i < rows; i++) column[size_t(i)] = scales[i * groups + g];
    m.scales.upload(column.data(), size_t(rows) * 4, size_t(g * m.out + p.first_row + first) * 4);
  }
}
std::vector<uint8_t> Model::read_codes(const Parameter& p) const {
  const QuantizedMatrix& m = *matrices_[size_t(p.matrix)];
  const size_t row = size_t(m.in) * size_t(m.view.bits) / 8;
  std::vector<uint8_t> codes(size_t(p.shape[0]) * row);
  m.codes.download(codes.data(), codes.size(), size_t(p.first_row) * row);
  return codes;
}
std::vector<float> Model::read_scales(const Parameter& p) const {
  const QuantizedMatrix& m = *matrices_[size_t(p.matrix)];
  const size_t rows = size_t(p.shape[0]), groups = size_t(m.in / m.view.group);
  std::vector<float> column(rows), scales(rows * groups);
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
    device->run(&LoopBackend::gemm, "head", dt, 0, 1, rows, V, D, hidden, D, static_cast<const void*>(weights_.head), D, logits,
                V, int(LOOP_GEMM_REAL_OUT));
}

std::unique_ptr<Model> Model::merged() const {
  refuse_quantized("merge");
  auto copy = std::make_unique<Model>(device, dt, config);
  copy->copy_base_from(*this);
  if (!adapter_) return copy;
  const int64_t r = adapter_->options.rank, stride = 1;
  const size_t act = loop_dtype_size(dt);
  for (int l = 0; l < config.layers; l++)
    for (const Projection& p : projections(config))
      for (const LowRank& part : (weights_.layers[size_t(l)].*p.matrix).adapters) {
        if (part.first != p.first) continue;
        const int64_t elements = p.out * p.in;
        void* target = static_cast<char*>((copy->weights_.layers[size_t(l)].*p.matrix).weight) + size_t(p.first * p.in) * act;
        // The sum is real and rounded once.
        void* sum = workspace_->get("adapter.sum", size_t(std::max(elements, p.out * r)) * loop_dtype_size(real())).as<>();
        auto cast = [&](LoopDType from, LoopDType to, const void* source, void* out, int64_t count) {
          device->run(&LoopBackend::copy_strided, "merge", from, to, 1, &count, source, &stride, out, &stride);
        };
        cast(dt, real(), part.b, sum, p.out * r);
        const void* b = scaled(*device, *workspace_, dt, sum, p.out * r, weights_.scale);
        cast(dt, real(), target, sum, elements);
        device->run(&LoopBackend::gemm, "merge", dt, 0, 0, p.out, p.in, r, b, r, static_cast<const void*>(part.a), p.in, sum,
                    p.in, int(LOOP_GEMM_ACCUMULATE));
        cast(real(), dt, sum, target, elements);
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
  device->run(&LoopBackend::copy, "copy", own.as<>(), static_cast<const void*>(other.arena_->as<>()), own.bytes());
  touch(parameters_.front());
}
void Model::copy_parameters_from(const Model& other) {
  if (!same_adapter(other)) throw Error("INVALID_ARGUMENT", "copy_parameters", "both models must have the same adapter or none");
  copy_base_from(other);
  if (!adapter_) return;
  device->run(&LoopBackend::copy, "copy", adapter_->values.as<>(), static_cast<const void*>(other.adapter_->values.as<>()),
              adapter_->values.bytes());
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
  const size_t real_bytes = loop_dtype_size(real());
  if (!adapter_) {
    gradient_arena_ = Buffer(device, arena_elements_ * real_bytes);
    gradients_ = pointers(gradient_arena_, real());
  } else {
    // Kernels write the gradients of norms and gate together with others: they go to one place each that nobody reads.
    Buffer& nowhere = adapter_->thrown_away;
    const size_t row = (size_t(config.hidden) + ALIGN) / ALIGN * ALIGN * real_bytes;
    nowhere = Buffer(device, 7 * row);
    nowhere.zero(nowhere.bytes());
    LayerWeights layer{{nullptr, 0, 0, {}}, {nullptr, 0, 0, {}}, {nullptr, 0, 0, {}}, {nullptr, 0, 0, {}},
                       nowhere.at(0),       nowhere.at(row),     nowhere.at(2 * row), nowhere.at(3 * row)};
    gradients_ = {nullptr, nullptr, nowhere.at(4 * row), nowhere.at(5 * row), nowhere.at(6 * row), {}, 0, nullptr};
    gradients_.layers.assign(size_t(config.layers), layer);
    adapter_->gradients = Buffer(device, adapter_->elements * real_bytes);
    attach(gradients_, adapter_->gradients, real());
  }
  zero_gradients();
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
        double angle = double(p) * std::pow(config.rope_theta, -2.0 * double(j) / config.head_dim);
        table[size_t(p * 2 * half + j)] = std::cos(angle);
        table[size_t(p * 2 * half + half + j)] = std::sin(angle);
      }
    rope_table_.reserve(device, table.size() * loop_dtype_size(real()));
    upload_reals(rope_table_, dt, table.data(), table.size());
    rope_positions_ = n;
  }
  return rope_table_.as<>();
}

}  // namespace looplm

#include "model.h"

#include <cmath>
#include <cstring>

#include "half.h"
#include "philox.h"
#include "workspace.h"

namespace looplm {

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
  size_t end = 0;
  void add(const std::string& name, std::vector<int64_t> shape, bool joined = false) {
    size_t count = 1;
    for (int64_t s : shape) count *= size_t(s);
    if (!joined) end = (end + ALIGN - 1) / ALIGN * ALIGN;
    out.push_back({name, std::move(shape), end, count});
    end += count;
  }
};
}  // namespace

Model::Model(std::shared_ptr<Device> device_in, LoopDType dt_in, const ModelConfig& config_in)
    : config(config_in), dt(dt_in), device(std::move(device_in)), workspace_(std::make_unique<Workspace>(device)) {
  check_config(config);
  if (!device->supports(dt))
    throw Error("UNSUPPORTED", "model",
                "device \"" + device->name() + "\" does not have this dtype: cpu has float32 and bfloat16, reference float64");
  const int64_t D = config.hidden, F = config.intermediate, V = config.vocabulary, q = config.attention_width(),
                kv = int64_t(config.kv_heads) * config.head_dim;
  Layout layout{parameters_};
  layout.add("model.embed_tokens.weight", {V, D});
  for (int l = 0; l < config.layers; l++) {
    std::string p = "model.layers." + std::to_string(l) + ".";
    layout.add(p + "self_attn.q_proj.weight", {q, D});
    layout.add(p + "self_attn.k_proj.weight", {kv, D}, true);
    layout.add(p + "self_attn.v_proj.weight", {kv, D}, true);
    layout.add(p + "self_attn.o_proj.weight", {D, q});
    layout.add(p + "mlp.gate_proj.weight", {F, D});
    layout.add(p + "mlp.up_proj.weight", {F, D}, true);
    layout.add(p + "mlp.down_proj.weight", {D, F});
    for (const char* norm : {"input_layernorm", "input_layernorm_2", "post_attention_layernorm", "post_attention_layernorm_2"})
      layout.add(p + norm + ".weight", {D});
  }
  layout.add("model.norm.weight", {D});
  layout.add("model.early_exit_gate.weight", {1, D});
  layout.add("model.early_exit_gate.bias", {1});
  if (!config.tied) layout.add("lm_head.weight", {V, D});
  arena_elements_ = (layout.end + ALIGN - 1) / ALIGN * ALIGN;
  arena_ = Buffer(device, arena_elements_ * loop_dtype_size(dt));
  arena_.zero(arena_.bytes());
  weights_ = pointers(arena_, dt);
}
Model::~Model() = default;

Weights Model::pointers(const Buffer& arena, LoopDType type) const {
  size_t next = 0;
  auto take = [&] { return arena.at(parameters_[next++].offset * loop_dtype_size(type)); };
  Weights w;
  w.embedding = take();
  for (int l = 0; l < config.layers; l++) {
    LayerWeights layer;
    layer.qkv = take();
    next += 2;  // k and v continue q
    layer.output = take();
    layer.gate_up = take();
    next += 1;  // up continues gate
    layer.down = take();
    layer.attention_norm = take();
    layer.attention_norm_2 = take();
    layer.mlp_norm = take();
    layer.mlp_norm_2 = take();
    w.layers.push_back(layer);
  }
  w.norm = take();
  w.gate_weight = take();
  w.gate_bias = take();
  w.head = config.tied ? w.embedding : take();
  return w;
}

const Parameter& Model::parameter(const std::string& name) const {
  for (auto& p : parameters_)
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
    write(p, values.data());
  }
}

std::unique_ptr<Model> Model::clone() const {
  auto copy = std::make_unique<Model>(device, dt, config);
  copy->copy_parameters_from(*this);
  return copy;
}
void Model::copy_parameters_from(const Model& other) {
  if (other.dt != dt || other.arena_elements_ != arena_elements_ || other.device != device)
    throw Error("INVALID_ARGUMENT", "copy_parameters", "both models must have the same configuration, dtype and device");
  device->run(&LoopBackend::copy, "copy", arena_.as<>(), static_cast<const void*>(other.arena_.as<>()), arena_.bytes());
  touch();
}

void Model::read_raw(const Parameter& p, void* host) const {
  arena_.download(host, p.count * loop_dtype_size(dt), p.offset * loop_dtype_size(dt));
}
void Model::write_raw(const Parameter& p, const void* host) {
  arena_.upload(host, p.count * loop_dtype_size(dt), p.offset * loop_dtype_size(dt));
  touch();
}
std::vector<double> Model::read(const Parameter& p) const {
  if (dt != LOOP_BF16) return download_reals(arena_, dt, p.count, p.offset);
  std::vector<uint16_t> bits(p.count);
  read_raw(p, bits.data());
  std::vector<double> out(p.count);
  for (size_t i = 0; i < p.count; i++) out[i] = double(bf16_to_float(bits[i]));
  return out;
}
void Model::write(const Parameter& p, const double* values) {
  if (dt == LOOP_BF16) {
    std::vector<uint16_t> bits(p.count);
    for (size_t i = 0; i < p.count; i++) bits[i] = float_to_bf16(float(values[i]));
    write_raw(p, bits.data());
    return;
  }
  upload_reals(arena_, dt, values, p.count, p.offset);
  touch();
}

const Weights& Model::gradients() {
  if (!gradient_arena_) {
    gradient_arena_ = Buffer(device, arena_elements_ * loop_dtype_size(real()));
    gradients_ = pointers(gradient_arena_, real());
    gradient_arena_.zero(gradient_arena_.bytes());
  }
  return gradients_;
}
void Model::zero_gradients() {
  if (gradient_arena_) gradient_arena_.zero(gradient_arena_.bytes());
}
std::vector<double> Model::read_gradient(const Parameter& p) const {
  if (!gradient_arena_) return std::vector<double>(p.count, 0.0);
  return download_reals(gradient_arena_, dt, p.count, p.offset);
}

const PackedWeights& Model::packed() {
  if (packed_ && packed_->version == version_) return *packed_;
  packed_.reset();
  auto made = std::make_unique<PackedWeights>();
  const int64_t D = config.hidden, F = config.intermediate;
  auto pack = [&](int64_t n, int64_t k, const void* w) {
    void* p = device->pack_b(dt, 1, n, k, w, k);
    return p ? Buffer::adopt(device, p, size_t(n * k) * loop_dtype_size(dt)) : Buffer();
  };
  for (auto& layer : weights_.layers)
    made->layers.push_back({pack(config.qkv_width(), D, layer.qkv), pack(D, config.attention_width(), layer.output),
                            pack(2 * F, D, layer.gate_up), pack(D, F, layer.down)});
  made->head = pack(config.vocabulary, D, weights_.head);
  made->version = version_;
  packed_ = std::move(made);
  return *packed_;
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

#include "adapter.h"

#include <algorithm>
#include <cmath>

#include "../numeric/philox.h"

namespace looplm {

namespace {

constexpr char WEIGHT[] = ".weight";
// An adapter is named after its matrix: the tensor's path without ".weight". Users select modules by the last part of that
// path, such as "q_proj".
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

void refuse_unless(bool ok, const std::string& what) {
  if (!ok) throw Error("INVALID_ARGUMENT", "adapter", what);
}

// The number of (A, B) pairs for a parameter: one per loop if `per_loop` is set and the loop steps run its layer, else one.
int32_t adapter_loops(const Architecture& config, const AdapterOptions& options, const Parameter& p) {
  const auto runs = [&](const Step& step) { return step.kind == Step::Kind::block && step.index == p.index; };
  const bool looped = std::any_of(config.loop.begin(), config.loop.end(), runs);
  return options.per_loop && looped ? config.loops : 1;
}

}  // namespace

Adapter::Adapter(const std::shared_ptr<Device>& device, LoopDType dt, const Architecture& config,
                 const std::vector<Parameter>& base, const AdapterOptions& options_in, uint64_t seed)
    : options(options_in) {
  refuse_unless(options.rank >= 1, "rank must be at least 1");
  refuse_unless(!options.modules.empty(), "an adapter needs at least one module");
  add_parameters(config, base);
  values = Buffer(device, elements * loop_dtype_size(dt));
  values.zero(values.bytes());
  scale = Buffer(device, sizeof(double));
  const double factor = options.alpha / double(options.rank);
  upload_reals(scale, dt, &factor, 1);
  initialize(dt, seed);
}

void Adapter::add_parameters(const Architecture& config, const std::vector<Parameter>& base) {
  ParameterLayout layout(parameters);
  std::vector<std::string> known;
  for (const Parameter& p : base)
    if (is_layer_matrix(p.role)) known.push_back(module_name(p));
  for (const std::string& module : options.modules)
    refuse_unless(contains(known, module), "no module is called \"" + module + "\"");
  const auto add = [&](const std::string& name, int64_t rows, int64_t columns, bool zeros) {
    begins_as_zeros_.push_back(zeros);
    Parameter p{name, {rows, columns}, 0, parameter_elements(name, {rows, columns})};
    p.adapter = true;
    layout.add(std::move(p));
  };
  for (const Parameter& p : base) {
    if (!is_layer_matrix(p.role) || !contains(options.modules, module_name(p))) continue;
    const int32_t loops = adapter_loops(config, options, p);
    for (int32_t t = 1; t <= loops; t++) {
      const std::string of = loops > 1 ? ".loop_" + std::to_string(t) : "";
      add(module_path(p) + ".lora_A" + of + ".weight", options.rank, p.shape[1], false);
      add(module_path(p) + ".lora_B" + of + ".weight", p.shape[0], options.rank, true);
    }
  }
  if (const int64_t r = options.shift_rank; r > 0) {
    const int64_t D = config.hidden;
    std::vector<std::string> of_layer(size_t(config.layers));  // per layer: the prefix of its shift's names, next to the
                                                               // MLP's down projection
    for (const Parameter& p : base)
      if (p.role == Role::down) of_layer[size_t(p.index)] = module_path(p).substr(0, module_path(p).rfind('.')) + ".shift_ffn.";
    for (const std::string& path : of_layer)
      add(path + "a.weight", r, D, false), add(path + "b.weight", r, 2 * D, false), add(path + "c.weight", D, r, true);
  }
  elements = layout.aligned();
}

void Adapter::initialize(LoopDType dt, uint64_t seed) {
  for (size_t i = 0; i < parameters.size(); i++) {
    if (begins_as_zeros_[i]) continue;
    const Parameter& p = parameters[i];
    const double bound = 1 / std::sqrt(double(p.shape[1]));
    std::vector<double> drawn(p.count);
    for (size_t j = 0; j < p.count; j++) drawn[j] = bound * (2 * uniform(seed, uint32_t(i), uint32_t(j), ADAPTER_STREAM) - 1);
    const std::vector<uint8_t> raw = rounded(dt, drawn);
    values.upload(raw.data(), raw.size(), p.offset * loop_dtype_size(dt));
  }
}

void Adapter::attach(Weights& weights, Buffer& arena, LoopDType type, const Architecture& config,
                     const std::vector<Parameter>& base) const {
  const size_t size = loop_dtype_size(type);
  const Parameter* next = parameters.data();
  for (const Parameter& p : base) {
    if (!is_layer_matrix(p.role) || !contains(options.modules, module_name(p))) continue;
    LowRank part{arena.at(next[0].offset * size), arena.at(next[1].offset * size), p.first_row, p.shape[0]};
    const int32_t loops = adapter_loops(config, options, p);
    if (loops > 1) part.loop_bytes = (next[2].offset - next[0].offset) * size;
    (weights.layers[size_t(p.index)].*matrix_of(p.role)).adapters.push_back(part);
    next += 2 * loops;
  }
  if (options.shift_rank > 0)
    for (LayerWeights& layer : weights.layers) {
      const auto take = [&] { return arena.at(next++->offset * size); };
      layer.shift.a = take(), layer.shift.b = take(), layer.shift.c = take();
      layer.shift.rank = weights.shift_rank = options.shift_rank;
    }
  weights.rank = options.rank;
  weights.adapter_loops = options.per_loop ? config.loops : 0;
  weights.scale = scale.as<>();
}

bool Adapter::same_as(const Adapter& other) const {
  const auto same = [](const Parameter& x, const Parameter& y) { return x.name == y.name && x.shape == y.shape; };
  return options.alpha == other.options.alpha &&
         std::equal(parameters.begin(), parameters.end(), other.parameters.begin(), other.parameters.end(), same);
}

}  // namespace looplm

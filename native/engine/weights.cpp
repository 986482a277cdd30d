#include "weights.h"

#include <algorithm>

namespace looplm {

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

namespace {

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

}  // namespace

Weights weights_in(Buffer& arena, LoopDType type, const Architecture& config, const std::vector<Parameter>& parameters) {
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
  for (const Parameter& p : parameters) {
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
  if (config.tied) w.head = w.embedding;
  return w;
}

}  // namespace looplm

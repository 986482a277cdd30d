// An architecture for native tests: one stack of blocks of Ouro's form, with Ouro's names.
#pragma once
#include "../engine/architecture.h"

namespace looplm {

struct SmallSizes {
  int64_t vocabulary, hidden, intermediate;
  int32_t layers, heads, kv_heads, head_dim, loops;
  bool tied = false;
  double deviation = 0.02;  // standard deviation of the initial matrices
};

inline Architecture small_architecture(const SmallSizes& s) {
  Architecture a;
  a.family = "small";
  a.vocabulary = s.vocabulary, a.hidden = s.hidden, a.intermediate = s.intermediate;
  a.layers = s.layers, a.heads = s.heads, a.kv_heads = s.kv_heads, a.head_dim = s.head_dim, a.loops = s.loops;
  a.tied = s.tied, a.exit_gate = true, a.shared_planes = true;
  const int64_t D = s.hidden, F = s.intermediate, q = a.attention_width(), kv = a.kv_width();
  const auto matrix = [&](const std::string& name, int64_t out, int64_t in, Role role, int32_t index = 0, int64_t first = 0) {
    a.parameters.push_back({name, {out, in}, role, index, first, Initial::normal, {s.deviation}});
  };
  const auto norm = [&](const std::string& name, Role role, int32_t index) {
    a.parameters.push_back({name, {D}, role, index, 0, Initial::ones});
  };
  a.begin.push_back({Step::Kind::embed});
  matrix("model.embed_tokens.weight", s.vocabulary, D, Role::embedding);
  for (int32_t l = 0; l < s.layers; l++) {
    const std::string p = "model.layers." + std::to_string(l) + ".";
    matrix(p + "self_attn.q_proj.weight", q, D, Role::attention, l);
    matrix(p + "self_attn.k_proj.weight", kv, D, Role::attention, l, q);
    matrix(p + "self_attn.v_proj.weight", kv, D, Role::attention, l, q + kv);
    matrix(p + "self_attn.o_proj.weight", D, q, Role::attention_output, l);
    matrix(p + "mlp.gate_proj.weight", F, D, Role::gate_up, l);
    matrix(p + "mlp.up_proj.weight", F, D, Role::gate_up, l, F);
    matrix(p + "mlp.down_proj.weight", D, F, Role::down, l);
    norm(p + "input_layernorm.weight", Role::attention_norm, l);
    norm(p + "input_layernorm_2.weight", Role::attention_norm_2, l);
    norm(p + "post_attention_layernorm.weight", Role::mlp_norm, l);
    norm(p + "post_attention_layernorm_2.weight", Role::mlp_norm_2, l);
    a.loop.push_back({Step::Kind::block, 0, 0, l});
  }
  a.loop.push_back({Step::Kind::norm});
  norm("model.norm.weight", Role::norm, 0);
  matrix("model.early_exit_gate.weight", 1, D, Role::exit_gate);
  a.parameters.push_back({"model.early_exit_gate.bias", {1}, Role::exit_gate_bias, 0, 0, Initial::zeros});
  if (!s.tied) matrix("lm_head.weight", s.vocabulary, D, Role::head);
  return a;
}

// A model with two registers. A prelude computes e, the loop runs on W [x ; e] from an initial state x, and a coda reads x.
// Each has one layer of Llama's form.
inline Architecture small_prelude_architecture(const SmallSizes& s) {
  Architecture a = small_architecture(
      {s.vocabulary, s.hidden, s.intermediate, 3, s.heads, s.kv_heads, s.head_dim, s.loops, false, s.deviation});
  a.family = "small_prelude";
  a.residual = Residual::pre;
  a.exit_gate = false, a.shared_planes = false;
  a.registers = 2, a.state_deviation = 0.5;
  std::erase_if(a.parameters, [](const ParameterForm& p) {
    return p.role == Role::attention_norm_2 || p.role == Role::mlp_norm_2 || p.role == Role::exit_gate ||
           p.role == Role::exit_gate_bias;
  });
  a.parameters.push_back({"adapter.weight", {s.hidden, 2 * s.hidden}, Role::inject, 0, 0, Initial::normal, {s.deviation}});
  a.begin = {{Step::Kind::embed, 1}, {Step::Kind::block, 1, 1, 0}, {Step::Kind::state, 0}};
  a.loop = {{Step::Kind::inject, 0, 1}, {Step::Kind::block, 0, 0, 1}};
  a.read = {{Step::Kind::block, 0, 0, 2}, {Step::Kind::norm}};
  return a;
}

}  // namespace looplm

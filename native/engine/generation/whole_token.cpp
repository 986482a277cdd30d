#include "whole_token.h"

#include <cmath>

#include "speculation.h"

namespace looplm {

// Whether the backend has such a call, and the row's exit rule works without the head.
bool WholeToken::allows(const ActiveToken& token, std::vector<LoopDecodeLayer>& layers) const {
  if (token.loop > 0 || token.readouts.wanted) return false;
  const Row& row = *token.row;
  const unsigned needs = entry_of(row.request.exit.rule).needs;
  if (Speculation::drafts(row) || (needs & ~unsigned(exit_needs::gate)) || !g_.architecture().is_plain_sandwich()) return false;
  const Weights& w = g_.model.weights();
  if (w.shift_rank > 0 || g_.cache.coded()) return false;
  for (int32_t l = 0; l < g_.architecture().layers; l++) {
    const LayerWeights& of = w.layers[size_t(l)];
    for (const Linear* linear : {&of.qkv, &of.output, &of.gate_up, &of.down})
      if (linear->quantized || !linear->adapters.empty()) return false;
    const auto [keys, values] = g_.cache.planes(l);
    layers.push_back({of.attention_norm, of.qkv.weight, of.output.weight, of.attention_norm_2, of.mlp_norm, of.gate_up.weight,
                      of.down.weight, of.mlp_norm_2, keys, values});
  }
  return true;
}

std::optional<int> WholeToken::run(const ActiveToken& token) {
  std::vector<LoopDecodeLayer> layers;
  if (!allows(token, layers)) return std::nullopt;
  Model& model = g_.model;
  const Row& row = *token.row;
  const Weights& w = model.weights();
  const Architecture& c = model.config;
  const ExitOptions& exit = row.request.exit;
  const int32_t position = token.position();
  state_.reserve(model.device, g_.state_bytes + 64);
  exit_loop_.reserve(model.device, sizeof(int32_t));
  LoopDecodeToken t{};
  t.layers = c.layers, t.heads = c.heads, t.kv_heads = c.kv_heads, t.head_dim = c.head_dim;
  t.hidden = c.hidden, t.intermediate = c.intermediate;
  t.norm_eps = c.norm_eps, t.scale = 1.0 / std::sqrt(double(c.head_dim));
  t.host_layers = layers.data();
  t.norm = w.norms[0], t.gate_weight = w.gate_weight, t.gate_bias = w.gate_bias;
  t.cos_sin = model.rope_table(position + 1);
  t.embedded = static_cast<const char*>(w.embedding) + size_t(token.token) * g_.state_bytes;
  t.position = position;
  t.slot = g_.cache.slot_at(0, row.slot + row.made - 1);
  t.context = row.context(row.prompt->length(), row.made, g_.cache.slot_at(0, 0));
  t.plane = g_.cache.slot_at(1, 0);
  t.loops = row.max_loops, t.min_loops = exit.min_loops, t.threshold = exit.threshold;
  if (exit.rule == ExitRule::sampled) t.threshold = exit_draw(row, token.made());
  t.with_gate = exit.rule != ExitRule::fixed;
  t.state = state_.as<>();
  t.exit_loop = exit_loop_.as<int32_t>();
  if (!model.device->attempt(&LoopBackend::decode_token, "decode token", model.dt, static_cast<const LoopDecodeToken*>(&t)))
    return std::nullopt;
  int32_t loops = row.max_loops;
  if (t.with_gate) exit_loop_.download(&loops, sizeof loops);
  g_.count([&](SchedulerStats& s) {
    s.passes += loops;
    s.pass_rows += loops;
    s.whole_tokens++;
  });
  return loops;
}

}  // namespace looplm

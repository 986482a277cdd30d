#include "architecture.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numbers>
#include <utility>

#include "error.h"

namespace looplm {

double RotaryEmbedding::frequency(int64_t pair, int64_t head_dim) const {
  const double f = std::pow(theta, -2.0 * double(pair) / double(head_dim));
  if (factor == 1) return f;
  const double turns = original * f / (2 * std::numbers::pi), kept = std::clamp((turns - low) / (high - low), 0.0, 1.0);
  return (1 - kept) * f / factor + kept * f;
}

bool is_matrix(Role role) {
  switch (role) {
    case Role::embedding:
    case Role::head:
    case Role::exit_gate:
    case Role::inject:
    case Role::attention:
    case Role::attention_output:
    case Role::gate_up:
    case Role::down:
      return true;
    default:
      return false;
  }
}

int32_t Architecture::blocks(const std::vector<Step>& steps) const {
  return int32_t(std::count_if(steps.begin(), steps.end(), [](const Step& s) { return s.kind == Step::Kind::block; }));
}

int64_t Architecture::rows(Role role) const {
  const bool per_head = query_key_norm == QueryKeyNorm::head;
  switch (role) {
    case Role::embedding:
    case Role::head:
      return vocabulary;
    case Role::exit_gate:
    case Role::exit_gate_bias:
      return 1;
    case Role::attention:
    case Role::attention_bias:
      return attention_rows();
    case Role::gate_up:
    case Role::gate_up_bias:
      return 2 * intermediate;
    case Role::query_norm:
      return per_head ? head_dim : attention_width();
    case Role::key_norm:
      return per_head ? head_dim : kv_width();
    default:
      return hidden;
  }
}
int64_t Architecture::columns(Role role) const {
  if (!is_matrix(role)) return 1;
  if (role == Role::inject) return 2 * hidden;
  if (role == Role::attention_output) return attention_width();
  return role == Role::down ? intermediate : hidden;
}

bool Architecture::is_plain_sandwich() const {
  const bool closed = !loop.empty() && loop.back().kind == Step::Kind::norm && blocks(loop) + 1 == int32_t(loop.size());
  const bool plain = std::none_of(parameters.begin(), parameters.end(), [](const ParameterForm& p) {
    return p.role == Role::attention_bias || p.role == Role::attention_output_bias || p.role == Role::gate_up_bias ||
           p.role == Role::down_bias;
  });
  return residual == Residual::sandwich && closed && plain && registers == 1 && begin.size() == 1 && read.empty() &&
         begin[0].scale == 1 && !attention_gate && query_key_norm == QueryKeyNorm::none && !rotary.neighbours;
}

namespace {

void require(bool ok, const std::string& what) {
  if (!ok) throw Error("INVALID_CONFIG", "model", what);
}

// Checks the list of parameters: everything that the steps and layers need is there, complete and only once, and nothing else
// is.
class ParameterCheck {
 public:
  explicit ParameterCheck(const Architecture& a) : a_(a) {
    for (const ParameterForm& p : a.parameters) take(p);
  }
  void need(Role role, int32_t index, int64_t least) {
    const auto found = filled_.find({role, index});
    const int64_t rows = found == filled_.end() ? 0 : found->second;
    require(rows >= least && rows <= a_.rows(role), "the parameters of role " + std::to_string(int(role)) + ", index " +
                                                        std::to_string(index) + " fill " + std::to_string(rows) + " rows of " +
                                                        std::to_string(a_.rows(role)));
    if (found != filled_.end()) filled_.erase(found);
  }
  void need(Role role, int32_t index = 0) { need(role, index, a_.rows(role)); }
  void may(Role role, int32_t index) {
    if (filled_.count({role, index})) need(role, index, 1);
  }
  void finish() const { require(filled_.empty(), "the description has parameters that no step reads"); }

 private:
  void take(const ParameterForm& p) {
    int64_t count = 1;
    bool possible = !p.shape.empty();
    for (int64_t n : p.shape) possible &= n >= 1 && !__builtin_mul_overflow(count, n, &count);
    require(possible, p.name + " has an impossible shape");
    require(!p.deviations.empty() && p.shape[0] % int64_t(p.deviations.size()) == 0,
            p.name + " has " + std::to_string(p.deviations.size()) + " deviations, which do not divide its rows");
    const int64_t columns = a_.columns(p.role);
    require(!is_matrix(p.role) || (p.shape.size() == 2 && p.shape[1] == columns),
            p.name + " must be a matrix with " + std::to_string(columns) + " columns");
    int64_t& rows = filled_[{p.role, p.index}];
    require(p.first_row == rows, p.name + " does not continue the rows before it");
    rows += count / columns;
  }
  const Architecture& a_;
  std::map<std::pair<Role, int32_t>, int64_t> filled_;  // rows
};

void check_sizes(const Architecture& a) {
  require(a.vocabulary >= 1 && a.hidden >= 1 && a.intermediate >= 1,
          "vocab_size, hidden_size and intermediate_size must be at least 1");
  require(a.layers >= 1 && a.loops >= 1, "a looped model needs at least 1 layer and 1 loop");
  require(a.head_dim >= 2 && a.head_dim % 2 == 0, "head_dim must be even and at least 2: rotary positions turn pairs");
  require(a.heads >= 1 && a.kv_heads >= 1 && a.heads % a.kv_heads == 0,
          "num_attention_heads must be a multiple of num_key_value_heads, both at least 1");
  require(a.registers >= 1 && a.registers <= 8, "a program has 1 to 8 registers");
}

void check_steps(const Architecture& a, ParameterCheck& parameters) {
  std::vector<int> layer_used(size_t(a.layers), 0);
  std::map<std::pair<Role, int32_t>, bool> used;
  for (const auto* program : {&a.begin, &a.loop, &a.read})
    for (const Step& s : *program) {
      require(s.to >= 0 && s.to < a.registers && s.from >= 0 && s.from < a.registers,
              "a step names a register outside the " + std::to_string(a.registers) + " of the program");
      const bool first = program == &a.begin;
      switch (s.kind) {
        case Step::Kind::block:
          require(s.index >= 0 && s.index < a.layers, "a step names a layer that the model does not have");
          layer_used[size_t(s.index)] = 1;
          break;
        case Step::Kind::norm:
          require(s.index >= -1, "a step names a norm below -1");
          if (s.index >= 0) used[{Role::norm, s.index}] = true;
          break;
        case Step::Kind::inject:
          used[{Role::inject, s.index}] = true;
          break;
        case Step::Kind::start:
          used[{Role::start, s.index}] = true;
          [[fallthrough]];
        case Step::Kind::embed:
        case Step::Kind::state:
          require(first, "registers are begun before the loops: embed, start and state are steps of `begin`");
          break;
        case Step::Kind::add:
        case Step::Kind::copy:
          require(s.to != s.from, "a step adds or copies a register to itself");
          break;
      }
    }
  for (const auto& [key, yes] : used) parameters.need(key.first, key.second);
  require(std::count(layer_used.begin(), layer_used.end(), 0) == 0, "the description has layers that no step runs");
  require(a.blocks(a.loop) >= 1, "no step of the loop runs a layer");
  require(std::any_of(a.begin.begin(), a.begin.end(), [](const Step& s) { return s.kind == Step::Kind::embed; }),
          "no step embeds the tokens");
}

}  // namespace

void Architecture::check() const {
  check_sizes(*this);
  ParameterCheck of(*this);
  of.need(Role::embedding);
  if (!tied) of.need(Role::head);
  if (exit_gate) of.need(Role::exit_gate), of.need(Role::exit_gate_bias);
  for (int32_t l = 0; l < layers; l++) {
    for (Role role : {Role::attention, Role::attention_output, Role::gate_up, Role::down}) of.need(role, l);
    for (Role role : {Role::attention_bias, Role::attention_output_bias, Role::gate_up_bias, Role::down_bias}) of.may(role, l);
    // The norms of a layer may have no weight.
    if (norms_input(residual)) of.may(Role::attention_norm, l), of.may(Role::mlp_norm, l);
    if (norms_output(residual)) of.may(Role::attention_norm_2, l), of.may(Role::mlp_norm_2, l);
    if (query_key_norm != QueryKeyNorm::none) of.need(Role::query_norm, l), of.need(Role::key_norm, l);
  }
  check_steps(*this, of);
  of.finish();
}

}  // namespace looplm

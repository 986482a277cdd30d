// A looped model as data: its sizes, its parameters, and the steps that a token takes through them (docs/families.md). Whoever
// makes a model gives a description; nothing else in the engine knows a family by name.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace looplm {

// How a branch f (attention or MLP) joins the residual stream h. N and N' are norms with their own weights.
enum class Residual {
  pre,       // h + f(N h)
  sandwich,  // h + N' f(N h)       Ouro
  normed,    // N'(h + f(N h))      Huginn: the stream itself is normed
  post,      // h + N' f(h)         OLMo 2
};
inline bool norms_input(Residual r) { return r != Residual::post; }
inline bool norms_output(Residual r) { return r != Residual::pre; }

// RMS norms of queries and keys before the rotary embedding: none, of every head, or of all heads at once.
enum class QueryKeyNorm { none, head, all };

struct RotaryEmbedding {
  double theta = 1e6;
  bool neighbours = false;  // pairs are channels (2j, 2j+1) instead of (j, j + head_dim/2)
  // llama3 scaling: a frequency f makes original · f / 2π turns within the original context; below `low` turns it is divided by
  // `factor`, above `high` it is kept, between them it is mixed linearly. factor 1: no scaling.
  double factor = 1, low = 1, high = 4, original = 0;
  double frequency(int64_t pair, int64_t head_dim) const;  // radians per position
  bool operator==(const RotaryEmbedding&) const = default;
};

// What a parameter is for. The first row of the table of a role is what the engine reads; published tensors may be parts of it.
enum class Role {
  embedding,              // [V, D]
  head,                   // [V, D]; absent when tied
  exit_gate,              // [1, D]
  exit_gate_bias,         // [1]
  norm,                   // [D], index: which norm of the steps
  inject,                 // [D, 2 D], index: which injection
  start,                  // [D], index: which register begins with it; never trained
  attention,              // [(gate heads + heads + 2 kv_heads) · head_dim, D], index: layer; rows: output gate, q, k, v
  attention_bias,         // [up to the rows of attention]
  attention_output,       // [D, heads · head_dim]
  attention_output_bias,  // [D]
  gate_up,                // [2 F, D]: gate, then up
  gate_up_bias,           // [2 F]
  down,                   // [D, F]
  down_bias,              // [D]
  attention_norm,         // [D]: N of attention,
  attention_norm_2,       //      and N'
  mlp_norm,               // [D]: N of the MLP,
  mlp_norm_2,             //      and N'
  query_norm,             // [head_dim], or [heads · head_dim]
  key_norm,               // [head_dim], or [kv_heads · head_dim]
};
bool is_matrix(Role role);

enum class Initial { normal, truncated_normal /* redrawn outside ±3 deviations */, ones, zeros };

struct ParameterForm {
  std::string name;  // of the published tensor
  std::vector<int64_t> shape;
  Role role;
  int32_t index = 0;
  int64_t first_row = 0;  // of the role's matrix, or element of its vector
  Initial initial = Initial::normal;
  std::vector<double> deviations{0.02};            // of normals; several: of equal parts of the rows, in order
  bool operator==(const ParameterForm& o) const {  // initial values are not compared: a model computes the same from others
    return name == o.name && shape == o.shape && role == o.role && index == o.index && first_row == o.first_row;
  }
};

// One step of a program. Registers hold a vector of D per token.
struct Step {
  enum class Kind {
    embed,   // to = scale · E[ids]
    start,   // to = the frozen vector `index`
    state,   // to = the sequence's initial state: given, drawn from its seed, or zeros
    block,   // to = layer `index` of to
    norm,    // to = RMS(to; norm `index`); index -1: without a weight
    add,     // to = to + from
    inject,  // to = W [to ; from], W = injection `index`
    copy,    // to = from
  };
  Kind kind;
  int32_t to = 0, from = 0, index = 0;
  double scale = 1;
  bool operator==(const Step&) const = default;
};

struct Architecture {
  std::string family;
  int64_t vocabulary = 0, hidden = 0, intermediate = 0;                  // V, D, F
  int32_t layers = 0, heads = 0, kv_heads = 0, head_dim = 0, loops = 0;  // layers: of all stacks
  double norm_eps = 1e-6;
  RotaryEmbedding rotary;
  Residual residual = Residual::sandwich;
  QueryKeyNorm query_key_norm = QueryKeyNorm::none;
  bool attention_gate = false;      // σ(W x) multiplies the heads before the output projection
  bool prefix_sees_itself = false;  // a prompt's tokens attend to all of the prompt
  bool tied = false, exit_gate = false;
  bool fixed_loops = false;    // trained with `loops` alone: generation and trainers refuse more
  bool shared_planes = false;  // loops may share their planes of keys and values
  double state_deviation = 0;  // of `state` steps: normals redrawn outside ±3 deviations
  int32_t registers = 1;
  // begin: once. loop: T times. read: what the head reads after a loop; it begins with registers as the loop left them and
  // changes none of them, for it works on copies. The head reads register 0.
  std::vector<Step> begin, loop, read;
  std::vector<ParameterForm> parameters;
  std::vector<std::string> ignored;  // ends of names of tensors that files may hold and nobody reads

  int64_t qkv_width() const { return int64_t(heads + 2 * kv_heads) * head_dim; }
  int64_t attention_width() const { return int64_t(heads) * head_dim; }
  int64_t kv_width() const { return int64_t(kv_heads) * head_dim; }
  int64_t attention_rows() const { return qkv_width() + (attention_gate ? attention_width() : 0); }
  // Blocks that the steps run: every one has separate keys and values in each loop.
  int32_t blocks(const std::vector<Step>& steps) const;
  // The rows of a role's matrix, or the elements of its vector; 0 where the architecture has none.
  int64_t rows(Role role) const;
  int64_t columns(Role role) const;  // of a matrix; 1 of a vector

  // One stack with sandwich norms and a norm that closes every loop, with or without an exit gate, and nothing more: what
  // whole-token kernels know.
  bool is_plain_sandwich() const;

  // Throws INVALID_CONFIG: sizes that do not fit, steps that name what is not there, parameters that leave a gap.
  void check() const;

  bool operator==(const Architecture&) const = default;
};

}  // namespace looplm

// A looped model as data: its sizes, its parameters, and the steps that every token runs through (docs/families.md). The
// caller describes the model; no other code in the engine knows a model family by name.
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

// RMS norm of queries and keys before the rotary embedding: none, per head, or over all heads together.
enum class QueryKeyNorm { none, head, all };

struct RotaryEmbedding {
  double theta = 1e6;
  bool neighbours = false;  // pairs are channels (2j, 2j+1) instead of (j, j + head_dim/2)
  // llama3 scaling. A frequency f makes original · f / 2π turns within the original context. Below `low` turns it is divided
  // by `factor`, above `high` turns it is kept, in between the two are interpolated linearly. factor 1: no scaling.
  double factor = 1, low = 1, high = 4, original = 0;
  double frequency(int64_t pair, int64_t head_dim) const;  // radians per position
  bool operator==(const RotaryEmbedding&) const = default;
};

// What a parameter is used for. The shape of each role is the matrix that the engine reads. A published tensor may be a part
// of that matrix (first_row).
enum class Role {
  embedding,              // [V, D]
  head,                   // [V, D]; absent when tied
  exit_gate,              // [1, D]
  exit_gate_bias,         // [1]
  norm,                   // [D], index: number of the norm
  inject,                 // [D, 2 D], index: number of the injection
  start,                  // [D], index: number of the constant vector that a `start` step loads; never trained
  attention,              // [(gate heads + heads + 2 kv_heads) · head_dim, D], index: layer; row order: output gate, q, k, v
  attention_bias,         // [at most the rows of attention]
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
  std::string name;  // name of the published tensor
  std::vector<int64_t> shape;
  Role role;
  int32_t index = 0;
  int64_t first_row = 0;  // first row in the role's matrix, or first element in its vector
  Initial initial = Initial::normal;
  std::vector<double> deviations{0.02};  // of the normal distribution; several values apply to equal parts of the rows, in
                                         // order
  bool operator==(const ParameterForm& o) const {  // initial values do not count: they do not change what the model computes
    return name == o.name && shape == o.shape && role == o.role && index == o.index && first_row == o.first_row;
  }
};

// One step of a program. A register holds one vector of D values per token.
struct Step {
  enum class Kind {
    embed,   // to = scale · E[ids]
    start,   // to = the constant vector `index`
    state,   // to = the initial state of the sequence: given by the caller, drawn from its seed, or zeros
    block,   // to = layer `index` applied to `to`
    norm,    // to = RMS(to; norm `index`); index -1: a norm without weight
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
  int32_t layers = 0, heads = 0, kv_heads = 0, head_dim = 0, loops = 0;  // layers: in all stacks together
  double norm_eps = 1e-6;
  RotaryEmbedding rotary;
  Residual residual = Residual::sandwich;
  QueryKeyNorm query_key_norm = QueryKeyNorm::none;
  bool attention_gate = false;      // σ(W x) multiplies the attention output before the output projection
  bool prefix_sees_itself = false;  // the tokens of a prompt attend to the whole prompt (prefix LM)
  bool tied = false, exit_gate = false;
  bool fixed_loops = false;    // trained only with `loops` loops: generation and training refuse more
  bool shared_planes = false;  // loops may share one KV cache plane
  double state_deviation = 0;  // standard deviation of `state` steps: normal values, redrawn outside ±3 deviations
  int32_t registers = 1;
  // `begin` runs once, `loop` runs T times. `read` runs after every loop whose output is read: it starts from copies of the
  // loop's registers, so it never changes them. The head reads register 0.
  std::vector<Step> begin, loop, read;
  std::vector<ParameterForm> parameters;
  std::vector<std::string> ignored;  // name endings of tensors that checkpoints may contain and looplm ignores

  int64_t qkv_width() const { return int64_t(heads + 2 * kv_heads) * head_dim; }
  int64_t attention_width() const { return int64_t(heads) * head_dim; }
  int64_t kv_width() const { return int64_t(kv_heads) * head_dim; }
  int64_t attention_rows() const { return qkv_width() + (attention_gate ? attention_width() : 0); }
  // The number of blocks in `steps`. Every block has separate keys and values for each loop.
  int32_t blocks(const std::vector<Step>& steps) const;
  // Rows of the role's matrix, or elements of its vector; 0 if the architecture has no such parameter.
  int64_t rows(Role role) const;
  int64_t columns(Role role) const;  // of the role's matrix; 1 for a vector

  // One stack of blocks with sandwich norms, a norm at the end of every loop, an optional exit gate, and nothing else. The
  // whole-token kernels support only this form.
  bool is_plain_sandwich() const;

  // Throws INVALID_CONFIG for inconsistent sizes, for steps that name missing registers, layers or norms, and for missing,
  // repeated or unused parameters.
  void check() const;

  bool operator==(const Architecture&) const = default;
};

}  // namespace looplm

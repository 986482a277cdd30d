#include "pass.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "../numeric/half.h"
#include "../numeric/philox.h"

namespace looplm {

void check_sequences(const Model& model, const Sequences& s, const char* operation) {
  if (s.count() == 0) throw Error("INVALID_ARGUMENT", operation, "the batch holds no sequences");
  if (!s.states.empty() && s.states.size() != s.tokens.size() * size_t(model.config.hidden))
    throw Error("INVALID_SHAPE", operation,
                "initialStates must hold len × " + std::to_string(model.config.hidden) + " values per sequence");
  for (size_t i = 0; i < s.count(); i++) {
    if (s.length(i) < 1 || s.prompt(i) < 1 || s.prompt(i) > s.length(i))
      throw Error("INVALID_ARGUMENT", operation,
                  "sequence " + std::to_string(i) + " has " + std::to_string(s.length(i)) + " tokens and a prompt of " +
                      std::to_string(s.prompt(i)) + ": a prompt has at least 1 token and at most all of them");
    for (int64_t j = s.offsets[i]; j < s.offsets[i + 1]; j++)
      if (s.tokens[size_t(j)] < 0 || s.tokens[size_t(j)] >= model.config.vocabulary)
        throw Error("INVALID_ARGUMENT", operation,
                    "token id " + std::to_string(s.tokens[size_t(j)]) + " of sequence " + std::to_string(i) +
                        " is outside the vocabulary of " + std::to_string(model.config.vocabulary));
  }
}

const char* training_remedy(Recompute recompute) {
  return recompute == Recompute::layer
             ? "use shorter sequences, fewer loops, a lower tokensPerMicroBatch (trainers), or an adapter"
             : "use recompute 'layer', shorter sequences, fewer loops, a lower tokensPerMicroBatch "
               "(trainers), or an adapter";
}

int64_t default_budget(const Model& model, int loops) {
  const Architecture& c = model.config;
  const int64_t per_token = loops * c.layers * (c.qkv_width() + c.attention_width() + 4 * c.hidden + 2 * c.intermediate) *
                            int64_t(loop_dtype_size(model.dt));
  const int64_t least = model.device->micro_batch_tokens();
  return std::clamp<int64_t>(model.device->micro_batch_bytes() / per_token, least, 4 * least);
}

Stack::Keep keep_for(Recompute r) {
  return r == Recompute::none ? Stack::Keep::all : r == Recompute::loop ? Stack::Keep::per_loop : Stack::Keep::per_layer;
}

LoopPlan plan_of(const Model& model, const LoopOptions& o, const char* operation) {
  const auto require = [&](bool ok, const std::string& what) {
    if (!ok) throw Error("INVALID_ARGUMENT", operation, what);
  };
  const int loops = o.run > 0 ? o.run : model.config.loops;
  LoopPlan plan(o.read.empty() ? loops : int(o.read.back()));
  if (!o.read.empty()) plan.read.clear();
  for (size_t k = 0; k < o.read.size(); k++) {
    const int32_t before = k > 0 ? o.read[k - 1] : 0;
    require(o.read[k] > before && o.read[k] <= loops,
            "readLoops must be growing numbers from 1 to the " + std::to_string(loops) + " loops that run");
    plan.read.push_back(int(o.read[k]) - 1);
  }
  require(o.backward >= 0, "backwardLoops must be at least 1");
  plan.backward = o.backward;
  require(o.constant_steps.empty() || int(o.constant_steps.size()) >= plan.loops, "constantSteps must have one entry per loop");
  plan.constant_steps.assign(o.constant_steps.begin(), o.constant_steps.end());
  return plan;
}

namespace {

// Initial states of a sequence's tokens from `from` on, real [n, D]: of each position a function of the seed and the tokens up to
// it.
void draw_states(const Architecture& a, uint64_t seed, const int32_t* tokens, int64_t from, int64_t n, double* out) {
  uint64_t key = 0;
  for (int64_t j = 0; j < from + n; j++) {
    const PhiloxBlock mixed = philox4x32({uint32_t(tokens[j]), uint32_t(key), uint32_t(key >> 32), 1}, 0);
    key = uint64_t(mixed[0]) << 32 | mixed[1];
    if (j < from) continue;
    for (int64_t d = 0; d < a.hidden; d++)
      *out++ = a.state_deviation * truncated_normal(seed, uint32_t(key >> 32), uint32_t(key), uint32_t(d));
  }
}

}  // namespace

DeviceBatch device_batch(Model& model, const Sequences& s, const PackedBatch& packed) {
  DeviceBatch batch = upload(packed, model.workspace());
  const Architecture& a = model.config;
  const bool begins = std::any_of(a.begin.begin(), a.begin.end(), [](const Step& x) { return x.kind == Step::Kind::state; });
  if (!begins || s.zero_states) return batch;
  const size_t D = size_t(a.hidden);
  std::vector<double> values(packed.ids.size() * D);
  for (size_t i = 0; i < packed.ids.size();) {
    size_t end = i + 1;  // neighbours in a sequence
    while (end < packed.ids.size() && packed.sources[end] == packed.sources[i] &&
           packed.positions[end] == packed.positions[end - 1] + 1)
      end++;
    const int64_t first = s.offsets[size_t(packed.sources[i])];
    if (!s.states.empty())
      std::copy_n(s.states.begin() + (first + packed.positions[i]) * int64_t(D), (end - i) * D,
                  values.begin() + ptrdiff_t(i * D));
    else draw_states(a, s.state_seed, &s.tokens[size_t(first)], packed.positions[i], int64_t(end - i), &values[i * D]);
    i = end;
  }
  const std::vector<uint8_t> raw = rounded(model.dt, values);
  Buffer& states = model.workspace().get("batch.states", raw.size());
  states.upload(raw.data(), raw.size());
  batch.states = states.as<>();
  return batch;
}

void require_exit_gate(const Model& model, const char* operation, const char* what) {
  if (model.config.exit_gate) return;
  throw Error("UNSUPPORTED", operation,
              std::string(what) + " needs an exit gate, and models of family " + model.config.family +
                  " have none of their own: create or load the model with exitGate: true");
}

std::vector<int32_t> row_index(const PackedBatch& batch, const std::vector<int>& loops) {
  std::vector<int32_t> index;
  index.reserve(loops.size() * batch.rows.size());
  for (int t : loops)
    for (auto& row : batch.rows) index.push_back(int32_t(t * batch.tokens() + row.token));
  return index;
}

std::vector<int> all_loops(int loops) {
  std::vector<int> all(static_cast<size_t>(loops));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

const void* device_reals(Model& model, const char* name, const std::vector<double>& values) {
  if (values.empty()) return nullptr;
  Buffer& buffer = model.workspace().get(name, values.size() * loop_dtype_size(model.real()));
  upload_reals(buffer, model.dt, values.data(), values.size());
  return buffer.as<>();
}

ExitTable exit_table(Model& model, Stack& stack, const PackedBatch& batch, int loops) {
  Workspace& w = model.workspace();
  const size_t real = loop_dtype_size(model.real());
  ExitTable out{int64_t(batch.rows.size()), loops, nullptr, nullptr, {}, {}};
  const int64_t count = loops * out.rows;
  if (!model.config.exit_gate) {  // every token takes all loops
    out.pdf.assign(size_t(count), 0.0), out.log_pdf.assign(size_t(count), -std::numeric_limits<double>::infinity());
    std::fill(out.pdf.end() - out.rows, out.pdf.end(), 1.0), std::fill(out.log_pdf.end() - out.rows, out.log_pdf.end(), 0.0);
    return out;
  }
  out.index = upload_ints(w, "exit.index", row_index(batch, all_loops(loops)));
  void* all_gates = w.get("exit.all_gates", size_t(loops * batch.tokens()) * real).as<>();
  Buffer &gates = w.get("exit.gates", size_t(count) * real), &pdf = w.get("exit.pdf", size_t(count) * real),
         &log_pdf = w.get("exit.log_pdf", size_t(count) * real);
  stack.gate_logits(all_gates);
  model.device->run(&LoopBackend::gather_rows, "gather gates", model.real(), count, int64_t(1), out.index, all_gates,
                    gates.as<>());
  model.device->run(&LoopBackend::exit_pdf, "exit_pdf", model.dt, int64_t(loops), out.rows, gates.as<>(), log_pdf.as<>(),
                    pdf.as<>());
  out.gates = gates.as<>();
  out.pdf = download_reals(pdf, model.dt, size_t(count));
  out.log_pdf = download_reals(log_pdf, model.dt, size_t(count));
  return out;
}

HeadRows head_rows(Model& model, const Stack& stack, const PackedBatch& batch, const std::vector<int>& loops,
                   double temperature) {
  std::vector<int32_t> targets;
  for (size_t k = 0; k < loops.size(); k++)
    for (auto& row : batch.rows) targets.push_back(row.target);
  return {int64_t(targets.size()),
          stack.hidden(),
          upload_ints(model.workspace(), "head.index", row_index(batch, loops)),
          upload_ints(model.workspace(), "head.targets", targets),
          temperature,
          model.weights().head};
}

void exit_backward(Model& model, const Stack& stack, const PackedBatch& batch, const ExitTable& exits,
                   const std::vector<double>& d_pdf, void* d_hidden) {
  Workspace& w = model.workspace();
  const size_t real = loop_dtype_size(model.real()), tokens = size_t(exits.loops * batch.tokens());
  const void* d = device_reals(model, "exit.d_pdf", d_pdf);
  void* d_rows = w.get("exit.d_rows", d_pdf.size() * real).as<>();
  Buffer& d_gates = w.get("exit.d_gates", tokens * real);
  d_gates.zero(tokens * real);
  model.device->run(&LoopBackend::exit_pdf_backward, "exit_pdf backward", model.dt, int64_t(exits.loops), exits.rows, exits.gates,
                    d, d_rows);
  model.device->run(&LoopBackend::scatter_add_rows, "scatter gates", model.dt, int64_t(d_pdf.size()), int64_t(1), exits.index,
                    static_cast<const void*>(d_rows), d_gates.as<>());
  gate_backward(model, stack, int64_t(tokens), d_gates.as<>(), d_hidden);
}

void gate_backward(Model& model, const Stack& stack, int64_t rows, const void* d_gates, void* d_hidden) {
  const Weights &w = model.weights(), &g = model.gradients();
  model.device->run(&LoopBackend::gate_backward, "gate backward", model.dt, rows, model.config.hidden, d_gates,
                    static_cast<const void*>(stack.hidden()), w.gate_weight, d_hidden, g.gate_weight, g.gate_bias);
}

}  // namespace looplm

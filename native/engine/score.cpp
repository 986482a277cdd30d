#include "score.h"

#include <utility>

#include "micro_batch.h"
#include "pass.h"

namespace looplm {

constexpr const char* REMEDY =
    "sequences run a few at a time, so shorter sequences or fewer loops need less memory, fewer sequences do not";

namespace {

// Where the rows of a micro-batch go in the concatenated results.
struct Rectangle {  // per sequence: start of its loops × (len-1) block and of its loops × len block
  std::vector<int64_t> predictions, tokens;
  int64_t prediction_count = 0, token_count = 0;
  Rectangle(const Sequences& s, int prediction_loops, int token_loops) {
    for (size_t i = 0; i < s.count(); i++) {
      predictions.push_back(prediction_count);
      tokens.push_back(token_count);
      prediction_count += prediction_loops * (s.length(i) - 1);
      token_count += token_loops * s.length(i);
    }
  }
};

void place_scores(const Sequences& s, const PackedBatch& packed, const Rectangle& at, int rows_per,
                  const std::vector<double>& from, std::vector<double>& to) {
  const size_t R = packed.rows.size();
  for (int k = 0; k < rows_per; k++)
    for (size_t r = 0; r < R; r++) {
      const PredictionRow& row = packed.rows[r];
      const size_t i = size_t(row.sequence);
      to[size_t(at.predictions[i] + k * (s.length(i) - 1) + row.position)] = from[size_t(k) * R + r];
    }
}

void place_gates(const Sequences& s, const PackedBatch& packed, const Rectangle& at, int loops, const std::vector<double>& from,
                 std::vector<double>& to) {
  for (size_t i = packed.begin; i < packed.end; i++)
    for (int t = 0; t < loops; t++)
      for (int64_t j = 0; j < s.length(i); j++)
        to[size_t(at.tokens[i] + t * s.length(i) + j)] =
            from[size_t(t * packed.tokens() + packed.first_token[i - packed.begin] + j)];
}

// From the layout of the results to that of the micro-batch, [reads, N].
std::vector<double> packed_gates(const Sequences& s, const PackedBatch& packed, const Rectangle& at, int loops,
                                 const std::vector<double>& from) {
  std::vector<double> to(size_t(loops * packed.tokens()), 0.0);
  for (size_t i = packed.begin; i < packed.end; i++)
    for (int t = 0; t < loops; t++)
      for (int64_t j = 0; j < s.length(i); j++)
        to[size_t(t * packed.tokens() + packed.first_token[i - packed.begin] + j)] =
            from[size_t(at.tokens[i] + t * s.length(i) + j)];
  return to;
}

// A token's log P is the target's log P plus the margin. So if the target is among the top tokens, it has exactly its
// `logprobs` value.
void place_top(const PackedBatch& packed, const Rectangle& last, const HeadTop& top, const std::vector<double>& logprobs,
               Scores& out) {
  const size_t n = size_t(top.count);
  for (size_t r = 0; r < packed.rows.size() && n > 0; r++) {
    const PredictionRow& row = packed.rows[r];
    const size_t to = size_t(last.predictions[size_t(row.sequence)] + row.position) * n;
    for (size_t k = 0; k < n; k++) {
      out.top_tokens[to + k] = top.tokens[r * n + k];
      out.top_logprobs[to + k] = logprobs[size_t(top.first_row) + r] + top.margins[r * n + k];
    }
  }
}

// Which loops the results have, and which the stack reads. Without an exit gate the stack reads only the scored loops.
struct Pass {
  LoopPlan plan;
  int reads;                // number of loops in the results
  std::vector<int> scored;  // indices among the loops that the stack reads
  PackOptions pack;
};
Pass pass_of(const Model& model, const ScoreOptions& options, const char* operation) {
  Pass p{plan_of(model, options.loops, operation), 0, {}, {}};
  p.reads = p.plan.reads();
  if (options.last_loop && !model.config.exit_gate) p.plan.read = {p.plan.read.back()};
  for (int k = options.last_loop ? p.plan.reads() - 1 : 0; k < p.plan.reads(); k++) p.scored.push_back(k);
  p.pack = {default_budget(model, p.plan.loops, Stack::Keep::nothing), false, options.responses_only, true,
            model.config.prefix_sees_itself};
  return p;
}
}  // namespace

namespace {

void add_exits(MicroBatch& batch, const Sequences& sequences, const PackedBatch& packed, const Rectangle& at, Scores& out) {
  if (out.gate_logits.empty()) {  // the model has no exit gate
    place_gates(sequences, packed, at, out.reads, last_loop_exits(packed.tokens(), out.reads).pdf, out.exit_pdf);
    return;
  }
  const TokenExits exits = batch.token_exits();
  place_gates(sequences, packed, at, out.reads, exits.gate_logits, out.gate_logits);
  place_gates(sequences, packed, at, out.reads, exits.pdf, out.exit_pdf);
}

void add_values(Model& model, MicroBatch& batch, const Sequences& sequences, const PackedBatch& packed, const Rectangle& at,
                const Rectangle& last, const Pass& pass, const ScoreOptions& options, Scores& out) {
  const int K = int(pass.scored.size());
  const HeadRows head = batch.rows(pass.scored, options.temperature);
  const size_t count = size_t(head.rows), bytes = count * loop_dtype_size(model.real());
  HeadMemory& memory = model.memory().head;
  memory.values.reserve(model.device, 2 * bytes);
  if (options.predictions) memory.predicted.reserve(model.device, count * sizeof(int32_t));
  std::vector<int32_t> targets;
  for (const PredictionRow& row : packed.rows) targets.push_back(row.target);
  HeadTop top{head.rows - int64_t(packed.rows.size()), options.top, targets, {}, {}};
  head_forward(model, head, memory.values.as<>(), memory.values.at(bytes),
               options.predictions ? memory.predicted.as<int32_t>() : nullptr, options.top > 0 ? &top : nullptr);
  const std::vector<double> values = download_reals(memory.values, model.dt, count);
  place_scores(sequences, packed, at, K, values, out.logprobs);
  place_top(packed, last, top, values, out);
  place_scores(sequences, packed, at, K, download_reals(memory.values, model.dt, count, count), out.entropy);
  if (!options.predictions) return;
  std::vector<int32_t> tokens(count);
  memory.predicted.download(tokens.data(), tokens.size() * sizeof(int32_t));
  place_scores(sequences, packed, at, K, std::vector<double>(tokens.begin(), tokens.end()), out.predicted);
}

}  // namespace

Scores score(Model& model, const Sequences& sequences, const ScoreOptions& options) {
  const Remedy remedy(*model.device, REMEDY);
  if (options.top < 0 || options.top > model.config.vocabulary)
    throw Error("INVALID_ARGUMENT", "score",
                "the number of top tokens must be from 0 to " + std::to_string(model.config.vocabulary) + ", got " +
                    std::to_string(options.top));
  check_sequences(model, sequences, "score");
  const Pass pass = pass_of(model, options, "score");
  const Rectangle at(sequences, int(pass.scored.size()), pass.reads), last(sequences, 1, 1);
  Scores out;
  out.loops = pass.plan.loops;
  out.reads = pass.reads;
  out.logprobs.resize(size_t(at.prediction_count));
  out.entropy.resize(size_t(at.prediction_count));
  if (options.predictions) out.predicted.resize(size_t(at.prediction_count));
  out.top_tokens.resize(size_t(last.prediction_count) * size_t(options.top), -1);
  out.top_logprobs.resize(out.top_tokens.size());
  if (model.config.exit_gate) out.gate_logits.resize(size_t(at.token_count));
  out.exit_pdf.resize(size_t(at.token_count));
  for_micro_batches(sequences, pass.pack, [&](const PackedBatch& packed) {
    MicroBatch batch(model, model.weights(), sequences, packed, {pass.plan, Stack::Keep::nothing});
    batch.stack.forward_tokens();
    add_exits(batch, sequences, packed, at, out);
    if (!packed.rows.empty()) add_values(model, batch, sequences, packed, at, last, pass, options, out);
  });
  return out;
}

ResponseMeans response_means(Model& model, const Sequences& sequences, const ScoreOptions& options) {
  ScoreOptions scoring = options;
  scoring.responses_only = true;
  scoring.last_loop = false;
  const Scores s = score(model, sequences, scoring);
  ResponseMeans out{s.loops, {}, {}};
  size_t prediction = 0, token = 0;
  for (size_t i = 0; i < sequences.count(); i++) {
    const size_t length = size_t(sequences.length(i)), width = length - 1, first = size_t(sequences.prompt(i)) - 1;
    const double share = width > first ? 1 / double(width - first) : 0;
    double exit_loop = 0;
    for (size_t t = 0; t < size_t(s.loops); t++) {
      double logprob = 0;
      for (size_t j = first; j < width; j++) {
        logprob += share * s.logprobs[prediction + t * width + j];
        exit_loop += share * double(t + 1) * s.exit_pdf[token + t * length + j];
      }
      out.logprobs.push_back(logprob);
    }
    out.exit_loop.push_back(exit_loop);
    prediction += size_t(s.loops) * width;
    token += size_t(s.loops) * length;
  }
  return out;
}

std::vector<double> embed_sequences(Model& model, const Sequences& sequences, int loops) {
  const Remedy remedy(*model.device, REMEDY);
  check_sequences(model, sequences, "embed");
  LoopOptions last;
  last.run = loops;
  last.read = {loops > 0 ? loops : model.config.loops};
  const Pass pass = pass_of(model, {1, last, true, false}, "embed");
  const int64_t D = model.config.hidden;
  std::vector<double> out(sequences.count() * size_t(D), 0.0);
  for_micro_batches(sequences, pass.pack, [&](const PackedBatch& packed) {
    const int64_t elements = packed.tokens() * D, stride = 1;
    MicroBatch batch(model, model.weights(), sequences, packed, {pass.plan, Stack::Keep::nothing});
    batch.stack.forward_tokens();
    Buffer& states = model.memory().last_states;
    states.reserve(model.device, size_t(elements) * loop_dtype_size(model.real()));
    model.device->run(&LoopBackend::copy_strided, "states", model.dt, model.real(), 1, &elements, batch.stack.hidden(), &stride,
                      states.as<>(), &stride);
    const std::vector<double> h = download_reals(states, model.dt, size_t(elements));
    for (size_t i = packed.begin; i < packed.end; i++) {
      const int64_t length = sequences.length(i), from = sequences.prompt_lengths.empty() ? 0 : sequences.prompt(i);
      for (int64_t j = from; j < length; j++)
        for (int64_t d = 0; d < D; d++)
          out[i * size_t(D) + size_t(d)] += h[size_t((packed.first_token[i - packed.begin] + j) * D + d)] / double(length - from);
    }
  });
  return out;
}

std::vector<double> backward(Model& model, const Sequences& sequences, const std::vector<double>& coefficients,
                             const std::vector<double>& gate_coefficients, const ScoreOptions& options, Recompute recompute) {
  const Remedy remedy(*model.device, training_remedy(recompute));
  check_sequences(model, sequences, "backward");
  const Pass pass = pass_of(model, options, "backward");
  const Rectangle at(sequences, pass.reads, pass.reads);
  if (int64_t(coefficients.size()) != at.prediction_count ||
      (!gate_coefficients.empty() && int64_t(gate_coefficients.size()) != at.token_count))
    throw Error("INVALID_SHAPE", "backward",
                "coefficients must hold loops × (len-1) values per sequence (" + std::to_string(at.prediction_count) +
                    " in all, got " + std::to_string(coefficients.size()) + "), gate coefficients loops × len (" +
                    std::to_string(at.token_count) + ")");
  if (!gate_coefficients.empty()) require_exit_gate(model, "backward", "a gradient by gate logits");
  std::vector<double> d_vectors(sequences.vectors.values.size());
  const GradientsFinal final = std::exchange(model.next_final, {});
  for_micro_batches(sequences, pass.pack, [&](const PackedBatch& packed) {
    MicroBatch batch(model, model.weights(), sequences, packed, {pass.plan, keep_for(recompute)});
    batch.stack.forward_tokens();
    std::vector<double> scale;
    for (int k : pass.scored)
      for (const PredictionRow& row : packed.rows) {
        const size_t i = size_t(row.sequence);
        scale.push_back(coefficients[size_t(at.predictions[i] + k * (sequences.length(i) - 1) + row.position)]);
      }
    if (!scale.empty()) batch.backward_head(batch.rows(pass.scored, options.temperature), given_coefficients(std::move(scale)));
    if (!gate_coefficients.empty()) batch.backward_gates(packed_gates(sequences, packed, at, pass.reads, gate_coefficients));
    batch.backward(final);
    read_vector_gradients(model, sequences, packed, d_vectors);
  });
  return d_vectors;
}

}  // namespace looplm

#include "score.h"

#include "pass.h"

namespace looplm {

constexpr const char* REMEDY =
    "sequences run a few at a time, so shorter sequences or fewer loops need less memory, fewer sequences do not";

// One micro-batch of score or backward: its stack, and where its rows go in the concatenated results.
namespace {

struct Rectangle {  // per sequence: offsets of its loops × (len-1) and loops × len blocks
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

// A token's log P is the target's and the margin, so that the target among them has the very number of `logprobs`.
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

// Which loops are read, by the caller and by the stack: without an exit gate no other loop than the scored ones matters.
struct Pass {
  LoopPlan plan;
  int reads;                // that the results have rows of
  std::vector<int> scored;  // of those that the stack reads
  PackOptions pack;
};
Pass pass_of(const Model& model, const ScoreOptions& options, const char* operation) {
  Pass p{plan_of(model, options.loops, operation), 0, {}, {}};
  p.reads = p.plan.reads();
  if (options.last_loop && !model.config.exit_gate) p.plan.read = {p.plan.read.back()};
  for (int k = options.last_loop ? p.plan.reads() - 1 : 0; k < p.plan.reads(); k++) p.scored.push_back(k);
  p.pack = {default_budget(model, p.plan.loops), false, options.responses_only, true, model.config.prefix_sees_itself};
  return p;
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
  const int K = int(pass.scored.size());
  const Rectangle at(sequences, K, pass.reads);
  Workspace& w = model.workspace();
  const size_t real = loop_dtype_size(model.real());
  Scores out;
  out.loops = pass.plan.loops;
  out.reads = pass.reads;
  out.logprobs.resize(size_t(at.prediction_count));
  out.entropy.resize(size_t(at.prediction_count));
  if (options.predictions) out.predicted.resize(size_t(at.prediction_count));
  const Rectangle last(sequences, 1, 1);
  out.top_tokens.resize(size_t(last.prediction_count) * size_t(options.top), -1);
  out.top_logprobs.resize(out.top_tokens.size());
  if (model.config.exit_gate) out.gate_logits.resize(size_t(at.token_count));
  out.exit_pdf.resize(size_t(at.token_count));
  for (size_t begin = 0; begin < sequences.count();) {
    PackedBatch packed = pack(sequences, begin, pass.pack);
    const int64_t gates = pass.reads * packed.tokens();
    Stack stack(model, model.weights(), device_batch(model, sequences, packed), pass.plan, Stack::Keep::nothing);
    stack.forward_tokens();
    if (model.config.exit_gate) {
      Buffer &gate_logits = w.get("exit.all_gates", size_t(gates) * real), &pdf = w.get("exit.pdf", size_t(gates) * real);
      stack.gate_logits(gate_logits.as<>());
      model.device->run(&LoopBackend::exit_pdf, "exit_pdf", model.dt, int64_t(pass.reads), packed.tokens(),
                        static_cast<const void*>(gate_logits.as<>()), static_cast<void*>(nullptr), pdf.as<>());
      place_gates(sequences, packed, at, pass.reads, download_reals(gate_logits, model.dt, size_t(gates)), out.gate_logits);
      place_gates(sequences, packed, at, pass.reads, download_reals(pdf, model.dt, size_t(gates)), out.exit_pdf);
    } else {  // every token takes all loops
      std::vector<double> last(size_t(gates), 0.0);
      std::fill(last.end() - packed.tokens(), last.end(), 1.0);
      place_gates(sequences, packed, at, pass.reads, last, out.exit_pdf);
    }
    if (!packed.rows.empty()) {
      HeadRows head = head_rows(model, stack, packed, pass.scored, options.temperature);
      Buffer &logprobs = w.get("loss.logprobs", size_t(head.rows) * real),
             &entropies = w.get("loss.entropies", size_t(head.rows) * real);
      Buffer* predicted = options.predictions ? &w.get("score.predicted", size_t(head.rows) * sizeof(int32_t)) : nullptr;
      std::vector<int32_t> targets;
      if (options.top > 0)
        for (const PredictionRow& row : packed.rows) targets.push_back(row.target);
      HeadTop top{head.rows - int64_t(packed.rows.size()), options.top, targets, {}, {}};
      head_forward(model, head, logprobs.as<>(), entropies.as<>(), predicted ? predicted->as<int32_t>() : nullptr,
                   options.top > 0 ? &top : nullptr);
      const std::vector<double> values = download_reals(logprobs, model.dt, size_t(head.rows));
      place_scores(sequences, packed, at, K, values, out.logprobs);
      place_top(packed, last, top, values, out);
      place_scores(sequences, packed, at, K, download_reals(entropies, model.dt, size_t(head.rows)), out.entropy);
      if (predicted) {
        std::vector<int32_t> tokens(size_t(head.rows));
        predicted->download(tokens.data(), tokens.size() * sizeof(int32_t));
        place_scores(sequences, packed, at, K, std::vector<double>(tokens.begin(), tokens.end()), out.predicted);
      }
    }
    begin = packed.end;
  }
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
  const size_t real = loop_dtype_size(model.real()), act = loop_dtype_size(model.dt);
  Workspace& w = model.workspace();
  std::vector<double> out(sequences.count() * size_t(D), 0.0);
  for (size_t begin = 0; begin < sequences.count();) {
    const PackedBatch packed = pack(sequences, begin, pass.pack);
    const int64_t N = packed.tokens();
    Stack stack(model, model.weights(), device_batch(model, sequences, packed), pass.plan, Stack::Keep::nothing);
    stack.forward_tokens();
    Buffer& states = w.get("score.states", size_t(N * D) * real);
    const int64_t shape[] = {N * D}, strides[] = {1};
    model.device->run(&LoopBackend::copy_strided, "states", model.dt, model.real(), int32_t(1),
                      static_cast<const int64_t*>(shape), static_cast<const void*>(stack.hidden()), static_cast<const int64_t*>(strides), states.as<>(),
                      static_cast<const int64_t*>(strides));
    const std::vector<double> h = download_reals(states, model.dt, size_t(N * D));
    for (size_t i = packed.begin; i < packed.end; i++) {
      const int64_t length = sequences.length(i), from = sequences.prompt_lengths.empty() ? 0 : sequences.prompt(i);
      for (int64_t j = from; j < length; j++)
        for (int64_t d = 0; d < D; d++)
          out[i * size_t(D) + size_t(d)] += h[size_t((packed.first_token[i - packed.begin] + j) * D + d)] / double(length - from);
    }
    begin = packed.end;
  }
  return out;
}

void backward(Model& model, const Sequences& sequences, const std::vector<double>& coefficients,
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
  Workspace& w = model.workspace();
  const size_t real = loop_dtype_size(model.real());
  for (size_t begin = 0; begin < sequences.count();) {
    PackedBatch packed = pack(sequences, begin, pass.pack);
    const int64_t N = packed.tokens();
    Stack stack(model, model.weights(), device_batch(model, sequences, packed), pass.plan, keep_for(recompute));
    stack.forward_tokens();
    const size_t hidden_bytes = size_t(pass.reads * N * model.config.hidden) * real;
    Buffer& d_hidden = w.get("loss.d_hidden", hidden_bytes);
    d_hidden.zero(hidden_bytes);
    HeadRows head = head_rows(model, stack, packed, pass.scored, options.temperature);
    std::vector<double> scale;
    for (size_t k = 0; k < pass.scored.size(); k++)
      for (auto& row : packed.rows) {
        const size_t i = size_t(row.sequence);
        scale.push_back(coefficients[size_t(at.predictions[i] + int64_t(k) * (sequences.length(i) - 1) + row.position)]);
      }
    if (head.rows > 0) {
      Buffer& scales = w.get("loss.scale", scale.size() * real);
      upload_reals(scales, model.dt, scale.data(), scale.size());
      LoopLoss loss{};
      loss.surrogate = LOOP_GIVEN;
      loss.scale = scales.as<>();
      head_backward(model, head, loss, nullptr, nullptr, d_hidden.as<>());
    }
    if (!gate_coefficients.empty()) {
      require_exit_gate(model, "backward", "a gradient by gate logits");
      std::vector<double> d(size_t(pass.reads * N), 0.0);
      for (size_t i = packed.begin; i < packed.end; i++)
        for (int t = 0; t < pass.reads; t++)
          for (int64_t j = 0; j < sequences.length(i); j++)
            d[size_t(t * N + packed.first_token[i - packed.begin] + j)] =
                gate_coefficients[size_t(at.tokens[i] + t * sequences.length(i) + j)];
      Buffer& d_gates = w.get("exit.d_gates", d.size() * real);
      upload_reals(d_gates, model.dt, d.data(), d.size());
      gate_backward(model, stack, pass.reads * N, d_gates.as<>(), d_hidden.as<>());
    }
    stack.backward(model.gradients(), d_hidden.as<>());
    begin = packed.end;
  }
}

}  // namespace looplm

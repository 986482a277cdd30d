#include "loss.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "pass.h"

namespace looplm {

namespace {

class LossPass {
 public:
  LossPass(Model& model, const LossBatch& batch, const Objective& objective)
      : model_(model),
        batch_(batch),
        o_(objective),
        loops_(objective.loops > 0 ? objective.loops : model.config.loops),
        totals_(loops_) {
    check();
    if (o_.weights == LoopCredit::last) scored_ = {loops_ - 1};
    else
      for (int t = 0; t < loops_; t++) scored_.push_back(t);
    int64_t predictions = 0;
    for (size_t i = 0; i < batch_.sequences.count(); i++) {
      prediction_offsets_.push_back(predictions);
      predictions += batch_.sequences.length(i) - 1;
    }
    old_per_loop_ = per_loop(batch_.old_logprobs, predictions, "oldLogprobs");
    reference_per_loop_ = per_loop(batch_.reference_logprobs, predictions, "referenceLogprobs");
  }

  LossMetrics run() {
    model_.gradients();
    PackOptions options{o_.tokens_per_micro_batch > 0 ? o_.tokens_per_micro_batch : default_budget(model_, loops_),
                        o_.share_prompts, true, false};
    for (size_t begin = 0; begin < batch_.sequences.count();) {
      PackedBatch packed = pack(batch_.sequences, begin, options);
      if (!packed.rows.empty()) micro_batch(packed);
      begin = packed.end;
    }
    return totals_.means();
  }

 private:
  struct Totals {
    explicit Totals(int loops)
        : logprob(size_t(loops), 0.0), weight(size_t(loops), 0.0), exit(size_t(loops), 0.0), scored(size_t(loops), 0.0) {}
    LossMetrics m;
    double kl_rows = 0, rows = 0, entropy_rows = 0;
    std::vector<double> logprob, weight, exit, scored;

    LossMetrics means() {
      const double n = std::max(1.0, m.response_tokens);
      auto share = [](double a, double b) { return b > 0 ? a / b : 0; };
      m.kl = share(m.kl, kl_rows);
      m.ratio = share(m.ratio, rows);
      m.clip_low = share(m.clip_low, rows);
      m.clip_high = share(m.clip_high, rows);
      m.entropy = share(m.entropy, entropy_rows);
      m.exit_loop /= n;
      m.exit_entropy /= n;
      for (size_t t = 0; t < exit.size(); t++) {
        m.loop_logprob.push_back(scored[t] > 0 ? logprob[t] / scored[t] : std::numeric_limits<double>::quiet_NaN());
        m.loop_weight.push_back(weight[t] / n);
        m.loop_exit.push_back(exit[t] / n);
      }
      return m;
    }
  };

  void check() const {
    const Sequences& s = batch_.sequences;
    check_sequences(model_, s, "loss");
    auto require = [](bool ok, const char* what) {
      if (!ok) throw Error("INVALID_ARGUMENT", "loss", what);
    };
    require(batch_.advantages.size() == s.count() && batch_.norms.size() == s.count(),
            "a batch needs one advantage and one normaliser per sequence");
    require(o_.beta == 0 || !batch_.reference_logprobs.empty(), "beta > 0 needs referenceLogprobs");
    require(o_.detach_weights || o_.weights != LoopCredit::exit_pdf || o_.surrogate == LOOP_REINFORCE,
            "attached exit-pdf weights are defined for the reinforce surrogate: use detachWeights: true with ppo or cispo");
  }

  bool per_loop(const std::vector<double>& values, int64_t predictions, const char* name) const {
    if (values.empty() || int64_t(values.size()) == predictions) {
      if (!values.empty() && scored_.size() > 1 && &values == &batch_.old_logprobs && o_.surrogate != LOOP_REINFORCE)
        throw Error("INVALID_SHAPE", "loss",
                    std::string(name) + " needs loops × (len-1) values per sequence when several loops are weighted");
      return false;
    }
    if (int64_t(values.size()) == predictions * loops_) return true;
    throw Error("INVALID_SHAPE", "loss",
                std::string(name) + " holds " + std::to_string(values.size()) + " values: expected len-1 per sequence (" +
                    std::to_string(predictions) + " in all) or loops × (len-1)");
  }
  double given(const std::vector<double>& values, bool by_loop, const PredictionRow& row, int t) const {
    const size_t i = size_t(row.sequence);
    const int64_t width = batch_.sequences.length(i) - 1, base = prediction_offsets_[i];
    return values[size_t(by_loop ? base * loops_ + t * width + row.position : base + row.position)];
  }

  double weight(const ExitTable& exits, int t, size_t r) const {
    switch (o_.weights) {
      case LoopCredit::exit_pdf:
        return exits.pdf[size_t(t) * size_t(exits.rows) + r];
      case LoopCredit::uniform:
        return 1.0 / loops_;
      case LoopCredit::last:
        return t + 1 == loops_ ? 1 : 0;
      case LoopCredit::progressive:
        break;
    }
    double sum = 0;
    for (int s = 1; s <= loops_; s++) sum += std::pow(double(s), o_.alpha);
    return std::pow(double(t + 1), o_.alpha) / sum;
  }

  // The row arrays of the objective for the scored loops, loop by loop, and their device copies.
  struct Rows {
    std::vector<double> scale, advantage, old, reference, kl_scale;
  };
  Rows build_rows(const PackedBatch& packed, const ExitTable& exits) {
    Rows out;
    for (int t : scored_) {
      const double progressive = weight(exits, t, 0);
      for (size_t r = 0; r < packed.rows.size(); r++) {
        const PredictionRow& row = packed.rows[r];
        const double n = batch_.norms[size_t(row.sequence)],
                     w = o_.weights == LoopCredit::exit_pdf ? weight(exits, t, r) : progressive;
        totals_.weight[size_t(t)] += w;
        out.scale.push_back(n * w);
        out.advantage.push_back(batch_.advantages[size_t(row.sequence)]);
        if (o_.surrogate != LOOP_REINFORCE && !batch_.old_logprobs.empty())
          out.old.push_back(given(batch_.old_logprobs, old_per_loop_, row, t));
        if (o_.beta != 0) {
          const bool last = t + 1 == loops_;
          out.reference.push_back(last ? given(batch_.reference_logprobs, reference_per_loop_, row, t) : 0);
          out.kl_scale.push_back(last ? o_.beta * n : 0);
        }
      }
    }
    return out;
  }
  LoopLoss row_loss(const Rows& rows) {
    LoopLoss loss{};
    loss.surrogate = o_.surrogate;
    loss.epsilon_low = o_.epsilon_low;
    loss.epsilon_high = o_.epsilon_high;
    loss.dual_clip = o_.dual_clip;
    loss.cap = o_.cap;
    loss.scale = device_reals(model_, "loss.scale", rows.scale);
    loss.advantage = device_reals(model_, "loss.advantage", rows.advantage);
    loss.old_logprob = device_reals(model_, "loss.old", rows.old);
    loss.reference_logprob = device_reals(model_, "loss.reference", rows.reference);
    loss.kl_scale = device_reals(model_, "loss.kl_scale", rows.kl_scale);
    return loss;
  }

  void micro_batch(const PackedBatch& packed) {
    Workspace& w = model_.workspace();
    const size_t real = loop_dtype_size(model_.real());
    const int64_t D = model_.config.hidden, N = packed.tokens(), R = int64_t(packed.rows.size());
    Stack stack(model_.device, model_.dt, model_.config, model_.weights(), w, model_.rope_table(packed.max_position + 1),
                upload(packed, w), loops_, keep_for(o_.recompute));
    stack.forward_tokens();
    ExitTable exits = exit_table(model_, stack, packed, loops_);

    Rows rows = build_rows(packed, exits);
    LoopLoss loss = row_loss(rows);
    const HeadRows head = head_rows(model_, stack, packed, scored_, o_.temperature);
    Buffer &logprobs = w.get("loss.logprobs", size_t(head.rows) * real),
           &entropies = w.get("loss.entropies", size_t(head.rows) * real);
    Buffer& d_hidden = w.get("loss.d_hidden", size_t(loops_ * N * D) * real);
    d_hidden.zero(size_t(loops_ * N * D) * real);
    head_backward(model_, head, loss, logprobs.as<>(), entropies.as<>(), d_hidden.as<>());
    std::vector<double> values = download_reals(logprobs, model_.dt, size_t(head.rows));

    LoopLossSums sums{};
    model_.device->run(&LoopBackend::policy_gradient, "policy gradient", model_.dt, head.rows,
                       static_cast<const void*>(logprobs.as<>()), static_cast<const LoopLoss*>(&loss),
                       static_cast<void*>(nullptr), &sums);
    count(packed, exits, sums, values, download_reals(entropies, model_.dt, size_t(R), size_t(head.rows - R)));
    if ((o_.weights == LoopCredit::exit_pdf && !o_.detach_weights) || o_.exit_entropy != 0) {
      exit_backward(model_, stack, packed, exits, d_pdf(packed, exits, values), d_hidden.as<>());
    }
    stack.backward(model_.gradients(), d_hidden.as<>());
  }

  // ∂L/∂p_t = -n A ℓ_t (attached weights) + exit_entropy · n (log p_t + 1).
  std::vector<double> d_pdf(const PackedBatch& packed, const ExitTable& exits, const std::vector<double>& logprobs) const {
    const bool attached = o_.weights == LoopCredit::exit_pdf && !o_.detach_weights;
    std::vector<double> d(exits.pdf.size(), 0.0);
    for (size_t i = 0; i < d.size(); i++) {
      const size_t sequence = size_t(packed.rows[i % packed.rows.size()].sequence);
      const double n = batch_.norms[sequence];
      if (attached) d[i] -= n * batch_.advantages[sequence] * logprobs[i];
      d[i] += o_.exit_entropy * n * (exits.log_pdf[i] + 1);
    }
    return d;
  }

  void count(const PackedBatch& packed, const ExitTable& exits, const LoopLossSums& sums, const std::vector<double>& logprobs,
             const std::vector<double>& last_entropies) {
    LossMetrics& m = totals_.m;
    const size_t R = packed.rows.size();
    m.loss += sums.loss;
    m.policy_loss += sums.policy_loss;
    m.kl += sums.kl;
    m.ratio += sums.ratio;
    m.clip_low += sums.clipped_low;
    m.clip_high += sums.clipped_high;
    totals_.kl_rows += sums.kl_rows;
    totals_.rows += sums.rows;
    m.response_tokens += double(R);
    for (double e : last_entropies) m.entropy += e;
    totals_.entropy_rows += double(last_entropies.size());
    for (size_t k = 0; k < scored_.size(); k++) {
      for (size_t r = 0; r < R; r++) totals_.logprob[size_t(scored_[k])] += logprobs[k * R + r];
      totals_.scored[size_t(scored_[k])] += double(R);
    }
    for (size_t t = 0; t < size_t(loops_); t++)
      for (size_t r = 0; r < R; r++) {
        const double p = exits.pdf[t * R + r], log_p = exits.log_pdf[t * R + r], h = p > 0 ? -p * log_p : 0;
        totals_.exit[t] += p;
        m.exit_loop += double(t + 1) * p;
        m.exit_entropy += h;
        m.loss -= o_.exit_entropy * batch_.norms[size_t(packed.rows[r].sequence)] * h;
      }
  }

  Model& model_;
  const LossBatch& batch_;
  const Objective& o_;
  const int loops_;
  Totals totals_;
  std::vector<int> scored_;
  std::vector<int64_t> prediction_offsets_;
  bool old_per_loop_ = false, reference_per_loop_ = false;
};

}  // namespace

LossMetrics accumulate_loss(Model& model, const LossBatch& batch, const Objective& objective) {
  return LossPass(model, batch, objective).run();
}

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

struct Pass {
  int loops;
  std::vector<int> scored;
  PackOptions pack;
};
Pass plan(const Model& model, const ScoreOptions& options) {
  Pass p{options.loops > 0 ? options.loops : model.config.loops, {}, {}};
  for (int t = options.last_loop ? p.loops - 1 : 0; t < p.loops; t++) p.scored.push_back(t);
  p.pack = {default_budget(model, p.loops), false, options.responses_only, true};
  return p;
}
}  // namespace

Scores score(Model& model, const Sequences& sequences, const ScoreOptions& options) {
  check_sequences(model, sequences, "score");
  const Pass pass = plan(model, options);
  const int K = int(pass.scored.size());
  const Rectangle at(sequences, K, pass.loops);
  Workspace& w = model.workspace();
  const size_t real = loop_dtype_size(model.real());
  Scores out;
  out.loops = pass.loops;
  out.logprobs.resize(size_t(at.prediction_count));
  out.entropy.resize(size_t(at.prediction_count));
  out.gate_logits.resize(size_t(at.token_count));
  out.exit_pdf.resize(size_t(at.token_count));
  for (size_t begin = 0; begin < sequences.count();) {
    PackedBatch packed = pack(sequences, begin, pass.pack);
    const int64_t gates = pass.loops * packed.tokens();
    Stack stack(model.device, model.dt, model.config, model.weights(), w, model.rope_table(packed.max_position + 1),
                upload(packed, w), pass.loops, Stack::Keep::nothing);
    stack.forward_tokens();
    Buffer &gate_logits = w.get("exit.all_gates", size_t(gates) * real), &pdf = w.get("exit.pdf", size_t(gates) * real);
    stack.gate_logits(gate_logits.as<>());
    model.device->run(&LoopBackend::exit_pdf, "exit_pdf", model.dt, int64_t(pass.loops), packed.tokens(),
                      static_cast<const void*>(gate_logits.as<>()), static_cast<void*>(nullptr), pdf.as<>());
    place_gates(sequences, packed, at, pass.loops, download_reals(gate_logits, model.dt, size_t(gates)), out.gate_logits);
    place_gates(sequences, packed, at, pass.loops, download_reals(pdf, model.dt, size_t(gates)), out.exit_pdf);
    if (!packed.rows.empty()) {
      HeadRows head = head_rows(model, stack, packed, pass.scored, options.temperature);
      Buffer &logprobs = w.get("loss.logprobs", size_t(head.rows) * real),
             &entropies = w.get("loss.entropies", size_t(head.rows) * real);
      head_forward(model, head, logprobs.as<>(), entropies.as<>());
      place_scores(sequences, packed, at, K, download_reals(logprobs, model.dt, size_t(head.rows)), out.logprobs);
      place_scores(sequences, packed, at, K, download_reals(entropies, model.dt, size_t(head.rows)), out.entropy);
    }
    begin = packed.end;
  }
  return out;
}

void backward(Model& model, const Sequences& sequences, const std::vector<double>& coefficients,
              const std::vector<double>& gate_coefficients, const ScoreOptions& options, Recompute recompute) {
  check_sequences(model, sequences, "backward");
  Pass pass = plan(model, options);
  const Rectangle at(sequences, int(pass.scored.size()), pass.loops);
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
    Stack stack(model.device, model.dt, model.config, model.weights(), w, model.rope_table(packed.max_position + 1),
                upload(packed, w), pass.loops, keep_for(recompute));
    stack.forward_tokens();
    const size_t hidden_bytes = size_t(pass.loops * N * model.config.hidden) * real;
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
      std::vector<double> d(size_t(pass.loops * N), 0.0);
      for (size_t i = packed.begin; i < packed.end; i++)
        for (int t = 0; t < pass.loops; t++)
          for (int64_t j = 0; j < sequences.length(i); j++)
            d[size_t(t * N + packed.first_token[i - packed.begin] + j)] =
                gate_coefficients[size_t(at.tokens[i] + t * sequences.length(i) + j)];
      Buffer& d_gates = w.get("exit.d_gates", d.size() * real);
      upload_reals(d_gates, model.dt, d.data(), d.size());
      gate_backward(model, stack, pass.loops * N, d_gates.as<>(), d_hidden.as<>());
    }
    stack.backward(model.gradients(), d_hidden.as<>());
    begin = packed.end;
  }
}

}  // namespace looplm

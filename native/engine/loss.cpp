#include "loss.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "pass.h"
#include "../numeric/philox.h"
#include "segments.h"

namespace looplm {

namespace {

bool has_ratio(Surrogate s) { return s != Surrogate::reinforce; }

// Per-row values of one kind, loop by loop: [k·R + r] for the k-th scored loop.
using RowTable = std::vector<double>;

class LossPass {
 public:
  LossPass(Model& model, const LossBatch& batch, const Objective& objective)
      : model_(model),
        batch_(batch),
        o_(objective),
        plan_(plan_of(model, objective.loops, "loss")),
        loops_(plan_.reads()),
        totals_(loops_) {
    check();
    for (int t = 0; t < loops_; t++)
      if (scores(t)) scored_.push_back(t);
    if (!model_.config.exit_gate) {  // which would read every loop
      stack_plan_.read.clear();
      for (int t : scored_) stack_plan_.read.push_back(plan_.read[size_t(t)]);
    }
    int64_t predictions = 0;
    for (size_t i = 0; i < batch_.sequences.count(); i++) {
      prediction_offsets_.push_back(predictions);
      predictions += batch_.sequences.length(i) - 1;
    }
    auto one_term = [&](Surrogate s) { return s == Surrogate::reinforce || s == Surrogate::ppo || s == Surrogate::cispo; };
    int token_terms = 0;
    one_pass_ = !o_.lazy;
    for (const LossTerm& term : o_.terms) {
      token_terms += term.channel == Channel::token;
      one_pass_ = one_pass_ && one_term(term.surrogate) && !term.inner && !term.belief;
    }
    one_pass_ = one_pass_ && token_terms <= 1;
    ratios_needed_ = o_.lazy.has_value();
    for (const LossTerm& term : o_.terms) ratios_needed_ |= term.channel == Channel::token && has_ratio(term.surrogate);
    if (ratios_needed_) old_per_loop_ = per_loop(batch_.old_logprobs, predictions, "oldLogprobs", true);
    lazy_per_loop_ = per_loop(batch_.lazy_logprobs, predictions, "lazyLogprobs", true);
    reference_per_loop_ =
        per_loop(batch_.reference_logprobs, predictions, "referenceLogprobs", o_.beta_loops != LoopSet::last || teacher_belief());
    auto fits = [&](size_t size, int64_t expected, const char* name) {
      if (size != 0 && int64_t(size) != expected)
        throw Error("INVALID_SHAPE", "loss",
                    std::string(name) + " holds " + std::to_string(size) + " values, expected " + std::to_string(expected));
    };
    fits(batch_.exits.size(), predictions, "exits");
    fits(batch_.segments.size(), predictions, "segments");
    fits(batch_.mask.size(), predictions, "mask");
    fits(batch_.reference_entropy.size(), predictions, "referenceEntropy");
    fits(batch_.reference_exit_pdf.size(), predictions * loops_, "referenceExitPdf");
  }

  LossMetrics run() {
    model_.gradients();
    PackOptions options{o_.tokens_per_micro_batch > 0 ? o_.tokens_per_micro_batch : default_budget(model_, plan_.loops),
                        o_.share_prompts, true, false, model_.config.prefix_sees_itself};
    for (size_t begin = 0; begin < batch_.sequences.count();) {
      PackedBatch packed = pack(batch_.sequences, begin, options);
      begin = packed.end;
      if (!batch_.mask.empty()) std::erase_if(packed.rows, [&](const PredictionRow& row) { return batch_.mask[at(row)] == 0; });
      if (!packed.rows.empty()) micro_batch(packed);
    }
    LossMetrics metrics = totals_.means();
    for (int t : plan_.read) metrics.loops.push_back(t + 1);
    return metrics;
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
    void add(const LoopLossSums& sums) {
      m.loss += sums.loss;
      m.policy_loss += sums.policy_loss;
      m.kl += sums.kl;
      m.ratio += sums.ratio;
      m.clip_low += sums.clipped_low;
      m.clip_high += sums.clipped_high;
      kl_rows += sums.kl_rows;
      rows += sums.rows;
    }
  };

  void check() const {
    const Sequences& s = batch_.sequences;
    check_sequences(model_, s, "loss");
    auto require = [](bool ok, const char* what) {
      if (!ok) throw Error("INVALID_ARGUMENT", "loss", what);
    };
    require(!o_.terms.empty(), "an objective needs at least one term");
    require(batch_.norms.size() == s.count(), "a batch needs one normaliser per sequence");
    if (o_.exit_entropy != 0) require_exit_gate(model_, "loss", "an entropy of exits");
    for (const LossTerm& term : o_.terms) {
      if (term.channel == Channel::exit) require_exit_gate(model_, "loss", "a term of the exit channel");
      if (term.credit.kind == LoopCredit::exit_pdf || term.belief)
        require_exit_gate(model_, "loss", "credit by exit probabilities");
      require(term.norms.size() == s.count(), "a term needs one normaliser per sequence");
      require(term.advantages.size() == s.count() || term.advantages.size() == s.count() * size_t(loops_),
              "a term needs one advantage per sequence, or one per sequence and loop");
      require(
          !attached(term) || (term.surrogate == Surrogate::reinforce && term.credit.temperature == 1),
          "attached exit-pdf weights (detachWeights: false of a trainer, detach: false of a term) are defined for the reinforce "
          "surrogate at credit temperature 1: use those, or detached weights");
      require(term.channel == Channel::token || term.surrogate == Surrogate::reinforce,
              "the exit channel knows the reinforce surrogate alone");
      require(term.channel == Channel::token || term.draws > 0 || !batch_.exits.empty(),
              "an exit term needs the batch's exits, or draws of its own");
      require(!term.belief || term.belief->base != BeliefBase::teacher ||
                  (!batch_.reference_logprobs.empty() && !batch_.reference_exit_pdf.empty() && !batch_.reference_entropy.empty()),
              "a belief with base teacher needs the reference's logprobs, entropy and exit distribution");
      require(term.surrogate != Surrogate::k15 || (term.advantages.size() == s.count() && !term.belief),
              "k1.5 compares whole sequences: one advantage per sequence and no belief");
      require(term.credit.kind != LoopCredit::one_hot || one_hot(term.credit) < loops_,
              "one-hot credit names a loop that is not read");
      require(term.credit.kind != LoopCredit::given || int(term.credit.weights.size()) == loops_,
              "given credit needs one weight per loop that is read");
    }
    require(o_.beta == 0 || !batch_.reference_logprobs.empty(), "beta > 0 needs referenceLogprobs");
    require(!o_.lazy || o_.lazy->norms.size() == s.count(), "LLDS needs one normaliser per sequence");
  }

  static bool attached(const LossTerm& term) {
    return term.channel == Channel::token && term.credit.kind == LoopCredit::exit_pdf && !term.credit.detach;
  }
  bool teacher_belief() const {
    return std::any_of(o_.terms.begin(), o_.terms.end(),
                       [](const LossTerm& t) { return t.belief && t.belief->base == BeliefBase::teacher; });
  }
  int one_hot(const Credit& credit) const {  // loops_ where it is not read
    if (credit.loop == 0) return loops_ - 1;
    return int(std::find(plan_.read.begin(), plan_.read.end(), credit.loop - 1) - plan_.read.begin());
  }
  bool weighs(const Credit& credit, int t) const {
    if (credit.kind == LoopCredit::given) return credit.weights[size_t(t)] != 0;
    return credit.kind != LoopCredit::one_hot || one_hot(credit) == t;
  }
  const LossTerm* first_token_term() const {
    for (const LossTerm& term : o_.terms)
      if (term.channel == Channel::token) return &term;
    return nullptr;
  }
  bool in_set(LoopSet set, int t) const {
    if (set == LoopSet::last) return t + 1 == loops_;
    const LossTerm* term = first_token_term();
    return set == LoopSet::uniform || !term || weighs(term->credit, t);
  }
  // Whether the head must run at loop t.
  bool scores(int t) const {
    if (o_.beta != 0 && in_set(o_.beta_loops, t)) return true;
    if (o_.lazy && in_set(o_.lazy->loops, t)) return true;
    if (o_.token_entropy != 0 && in_set(LoopSet::credit, t)) return true;
    return std::any_of(o_.terms.begin(), o_.terms.end(), [&](const LossTerm& term) {
      return term.belief.has_value() || (term.channel == Channel::token && weighs(term.credit, t));
    });
  }

  bool per_loop(const std::vector<double>& values, int64_t predictions, const char* name, bool every_scored_loop) const {
    if (values.empty() || int64_t(values.size()) == predictions) {
      if (!values.empty() && every_scored_loop && scored_.size() > 1)
        throw Error("INVALID_SHAPE", "loss",
                    std::string(name) + " needs loops × (len-1) values per sequence when several loops are weighted");
      return false;
    }
    if (int64_t(values.size()) == predictions * loops_) return true;
    throw Error("INVALID_SHAPE", "loss",
                std::string(name) + " holds " + std::to_string(values.size()) + " values: expected len-1 per sequence (" +
                    std::to_string(predictions) + " in all) or loops × (len-1)");
  }
  size_t at(const PredictionRow& row) const { return size_t(prediction_offsets_[size_t(row.sequence)] + row.position); }
  double given(const std::vector<double>& values, bool by_loop, const PredictionRow& row, int t) const {
    const size_t i = size_t(row.sequence);
    const int64_t width = batch_.sequences.length(i) - 1, base = prediction_offsets_[i];
    return values[size_t(by_loop ? base * loops_ + t * width + row.position : base + row.position)];
  }

  // What one micro-batch knows.
  struct Micro {
    const PackedBatch& packed;
    const ExitTable& exits;
    size_t R() const { return packed.rows.size(); }
    RowTable logprobs, entropies;  // [K·R]
    std::vector<int32_t> sequence_of_row() const {
      std::vector<int32_t> ids;
      for (const PredictionRow& row : packed.rows) ids.push_back(int32_t(size_t(row.sequence) - packed.begin));
      return ids;
    }
  };

  // w of the scored loops. Σ over all loops is 1; a loop that is not scored has no weight.
  RowTable weights(const Micro& m, const Credit& credit) const {
    const size_t R = m.R();
    RowTable w(scored_.size() * R, 0.0);
    double sum = 0;
    for (int t : plan_.read) sum += std::pow(double(t + 1), credit.alpha);
    for (size_t k = 0; k < scored_.size(); k++) {
      const int t = scored_[k];
      const double fixed = credit.kind == LoopCredit::uniform       ? 1.0 / loops_
                           : credit.kind == LoopCredit::given ? credit.weights[size_t(t)]
                           : credit.kind == LoopCredit::progressive
                               ? std::pow(double(plan_.read[size_t(t)] + 1), credit.alpha) / sum
                                                                    : double(weighs(credit, t));
      for (size_t r = 0; r < R; r++) w[k * R + r] = credit.kind == LoopCredit::exit_pdf ? m.exits.pdf[size_t(t) * R + r] : fixed;
    }
    if (credit.kind == LoopCredit::exit_pdf && credit.temperature != 1)
      for (size_t r = 0; r < R; r++) {
        double largest = -std::numeric_limits<double>::infinity(), total = 0;
        auto log_p = [&](size_t t) { return m.exits.log_pdf[t * R + r] / credit.temperature; };
        for (size_t t = 0; t < size_t(loops_); t++) largest = std::max(largest, log_p(t));
        for (size_t t = 0; t < size_t(loops_); t++) total += std::exp(log_p(t) - largest);
        for (size_t k = 0; k < scored_.size(); k++) w[k * R + r] = std::exp(log_p(size_t(scored_[k])) - largest) / total;
      }
    return w;
  }
  RowTable set_weights(const Micro& m, LoopSet set) const {
    if (set == LoopSet::uniform) return weights(m, {LoopCredit::uniform});
    const LossTerm* term = first_token_term();
    return weights(m, set == LoopSet::credit && term ? term->credit : Credit{LoopCredit::one_hot});
  }

  // ℓ - ℓ_old at the scored loops; empty without old log-probabilities (every ratio is 1).
  RowTable log_ratios(const Micro& m, const std::vector<double>& old, bool by_loop) const {
    RowTable rho;
    if (old.empty()) return rho;
    for (size_t k = 0; k < scored_.size(); k++)
      for (size_t r = 0; r < m.R(); r++)
        rho.push_back(m.logprobs[k * m.R() + r] - given(old, by_loop, m.packed.rows[r], scored_[k]));
    return rho;
  }

  // Σ_t w_t ρ_t of each token.
  std::vector<double> weighted_sum(const Micro& m, const RowTable& w, const RowTable& rho) const {
    std::vector<double> sum(m.R(), 0.0);
    for (size_t i = 0; i < rho.size(); i++) sum[i % m.R()] += w[i] * rho[i];
    return sum;
  }

  double advantage(const LossTerm& term, const PredictionRow& row, int t) const {
    const size_t i = size_t(row.sequence);
    return term.advantages.size() == batch_.sequences.count() ? term.advantages[i]
                                                              : term.advantages[i * size_t(loops_) + size_t(t)];
  }

  // The belief's returns of a token, G_1..G_T; every loop is scored then.
  std::vector<double> returns(const Micro& m, const LossTerm& term, size_t r) const {
    const PredictionRow& row = m.packed.rows[r];
    BeliefRewards rewards = *term.belief;
    std::vector<double> log_belief{-std::log(double(model_.config.vocabulary))};  // before any loop: no token is likelier
    for (size_t t = 0; t < size_t(loops_); t++) log_belief.push_back(m.logprobs[t * m.R() + r]);
    double reference_log = 0;
    int reference_loop = loops_;
    if (rewards.base == BeliefBase::teacher) {
      double cdf = 0;
      for (int t = loops_ - 2; t >= 0; t--) {
        cdf = 0;
        for (int s = 0; s <= t; s++) cdf += given(batch_.reference_exit_pdf, true, row, s);
        if (cdf >= term.reference_threshold) reference_loop = t + 1;
      }
      reference_log = given(batch_.reference_logprobs, true, row, reference_loop - 1);
      const double share = batch_.reference_entropy[at(row)] / std::log(double(model_.config.vocabulary));
      rewards.cost *= 1 + term.cost_scale * (1 - std::clamp(share, 0.0, 1.0));
    }
    return belief_returns(rewards, log_belief, reference_log, reference_loop);
  }
  static void normalise(BeliefNorm norm, std::vector<double>& x) {
    if (norm == BeliefNorm::none) return;
    const std::vector<int32_t> one(x.size(), 0);
    const double mean = segment_reduce(Reduce::mean, x, one, 1)[0], deviation = segment_reduce(Reduce::deviation, x, one, 1)[0];
    for (double& v : x) {
      v = (v - mean) / (deviation + DEVIATION_EPSILON);
      if (norm == BeliefNorm::gain) v = std::max(0.0, v);
    }
  }

  // The row arrays of a token term.
  struct Rows {
    RowTable scale, advantage, old, reference, kl_scale, entropy_scale;
  };
  Rows term_rows(const Micro& m, const LossTerm& term, const RowTable& w) const {
    const size_t R = m.R();
    Rows out;
    for (size_t k = 0; k < scored_.size(); k++)
      for (size_t r = 0; r < R; r++) {
        out.scale.push_back(term.norms[size_t(m.packed.rows[r].sequence)] * w[k * R + r]);
        out.advantage.push_back(advantage(term, m.packed.rows[r], scored_[k]));
      }
    if (term.belief)
      for (size_t r = 0; r < R; r++) {
        std::vector<double> g = returns(m, term, r);
        normalise(term.belief_norm, g);
        for (size_t t = 0; t < g.size(); t++) out.advantage[t * R + r] += term.belief_scale * g[t];
      }
    if (!has_ratio(term.surrogate) || batch_.old_logprobs.empty()) return out;
    if (term.surrogate != Surrogate::gspo && term.surrogate != Surrogate::k15 && !term.inner) {
      for (int t : scored_)
        for (const PredictionRow& row : m.packed.rows) out.old.push_back(given(batch_.old_logprobs, old_per_loop_, row, t));
      return out;
    }
    // One ratio for several rows: an "old" value that gives each of them that ratio.
    std::vector<double> shared = weighted_sum(m, w, log_ratios(m, batch_.old_logprobs, old_per_loop_));
    if (!term.inner) {
      const std::vector<int32_t> ids = m.sequence_of_row();
      const std::vector<double> of_sequence = segment_reduce(term.surrogate == Surrogate::gspo ? Reduce::mean : Reduce::sum,
                                                             shared, ids, int64_t(m.packed.end - m.packed.begin));
      for (size_t r = 0; r < R; r++) shared[r] = of_sequence[size_t(ids[r])];
    }
    for (size_t i = 0; i < out.scale.size(); i++) {
      if (term.surrogate == Surrogate::k15) out.advantage[i] -= term.tau * shared[i % R];
      else out.old.push_back(m.logprobs[i] - shared[i % R]);
    }
    return out;
  }
  void add_regularisers(const Micro& m, Rows& rows) const {
    const size_t R = m.R();
    if (o_.beta != 0) {
      const RowTable v = set_weights(m, o_.beta_loops);
      for (size_t k = 0; k < scored_.size(); k++)
        for (size_t r = 0; r < R; r++) {
          const PredictionRow& row = m.packed.rows[r];
          const double scale = o_.beta * batch_.norms[size_t(row.sequence)] * v[k * R + r];
          rows.kl_scale.push_back(scale);
          rows.reference.push_back(scale != 0 ? given(batch_.reference_logprobs, reference_per_loop_, row, scored_[k]) : 0);
        }
    }
    if (o_.token_entropy != 0) {
      const RowTable v = set_weights(m, LoopSet::credit);
      for (size_t i = 0; i < v.size(); i++)
        rows.entropy_scale.push_back(o_.token_entropy * batch_.norms[size_t(m.packed.rows[i % R].sequence)] * v[i]);
    }
  }
  LoopLoss row_loss(LoopSurrogate surrogate, const LossTerm* term, const Rows& rows) {
    LoopLoss loss{};
    loss.surrogate = surrogate;
    if (term) {
      loss.epsilon_low = term->epsilon_low;
      loss.epsilon_high = term->epsilon_high;
      loss.dual_clip = term->dual_clip;
      loss.cap = term->cap;
    }
    loss.scale = device_reals(model_, "loss.scale", rows.scale);
    loss.advantage = device_reals(model_, "loss.advantage", rows.advantage);
    loss.old_logprob = device_reals(model_, "loss.old", rows.old);
    loss.reference_logprob = device_reals(model_, "loss.reference", rows.reference);
    loss.kl_scale = device_reals(model_, "loss.kl_scale", rows.kl_scale);
    loss.entropy_scale = device_reals(model_, "loss.entropy_scale", rows.entropy_scale);
    return loss;
  }
  static LoopSurrogate row_surrogate(const LossTerm& term) {
    if (term.surrogate == Surrogate::cispo) return LOOP_CISPO;
    return term.surrogate == Surrogate::ppo || term.surrogate == Surrogate::gspo ? LOOP_PPO : LOOP_REINFORCE;
  }

  void micro_batch(const PackedBatch& packed) {
    Workspace& w = model_.workspace();
    const size_t real = loop_dtype_size(model_.real());
    const int64_t D = model_.config.hidden, N = packed.tokens();
    const size_t R = packed.rows.size();
    Stack stack(model_, model_.weights(), device_batch(model_, batch_.sequences, packed), stack_plan_, keep_for(o_.recompute));
    stack.forward_tokens();
    const ExitTable exits = exit_table(model_, stack, packed, loops_);
    Micro m{packed, exits, {}, {}};
    const size_t hidden_bytes = size_t(stack_plan_.reads() * N * D) * real;
    Buffer& d_hidden = w.get("loss.d_hidden", hidden_bytes);
    d_hidden.zero(hidden_bytes);

    std::vector<double> d_pdf(exits.pdf.size(), 0.0);
    if (!scored_.empty()) {
      const HeadRows head = head_rows(model_, stack, packed, hidden_of_scored(), o_.temperature);
      Buffer &logprobs = w.get("loss.logprobs", size_t(head.rows) * real),
             &entropies = w.get("loss.entropies", size_t(head.rows) * real);
      auto download = [&] {
        m.logprobs = download_reals(logprobs, model_.dt, size_t(head.rows));
        m.entropies = download_reals(entropies, model_.dt, size_t(head.rows));
      };
      Rows rows;
      if (one_pass_) {
        const LossTerm* term = first_token_term();
        if (term) {
          const RowTable credit = weights(m, term->credit);
          count_weights(credit, R);
          rows = term_rows(m, *term, credit);
        } else {
          rows.scale.assign(size_t(head.rows), 0.0);
        }
        add_regularisers(m, rows);
        const LoopLoss loss = row_loss(term ? row_surrogate(*term) : LOOP_GIVEN, term, rows);
        head_backward(model_, head, loss, logprobs.as<>(), entropies.as<>(), d_hidden.as<>());
        download();
        totals_.add(reduce(logprobs, head.rows, loss, nullptr));
        if (term && attached(*term)) add_weight_gradient(m, *term, rows.advantage, d_pdf);
      } else {
        head_forward(model_, head, logprobs.as<>(), entropies.as<>());
        download();
        rows.scale = coefficients(m, logprobs, d_pdf);
        Rows regularisers;
        regularisers.scale.assign(rows.scale.size(), 0.0);
        add_regularisers(m, regularisers);
        totals_.add(reduce(logprobs, head.rows, row_loss(LOOP_GIVEN, nullptr, regularisers), nullptr));
        rows.reference = std::move(regularisers.reference);
        rows.kl_scale = std::move(regularisers.kl_scale);
        rows.entropy_scale = std::move(regularisers.entropy_scale);
        head_backward(model_, head, row_loss(LOOP_GIVEN, nullptr, rows), nullptr, nullptr, d_hidden.as<>());
      }
      for (size_t i = 0; i < rows.entropy_scale.size(); i++) totals_.m.loss -= rows.entropy_scale[i] * m.entropies[i];
    }
    bool exits_trained = o_.exit_entropy != 0;
    for (const LossTerm& term : o_.terms) {
      exits_trained |= attached(term) || term.channel == Channel::exit;
      if (term.channel == Channel::exit) add_exit_term(m, term, d_pdf);
    }
    for (size_t i = 0; o_.exit_entropy != 0 && i < d_pdf.size(); i++)
      d_pdf[i] += o_.exit_entropy * batch_.norms[size_t(packed.rows[i % R].sequence)] * (exits.log_pdf[i] + 1);
    count(m);
    if (exits_trained) exit_backward(model_, stack, packed, exits, d_pdf, d_hidden.as<>());
    stack.backward(model_.gradients(), d_hidden.as<>());
  }

  // Places of the scored loops among the stack's hidden states.
  std::vector<int> hidden_of_scored() const { return model_.config.exit_gate ? scored_ : all_loops(int(scored_.size())); }

  LoopLossSums reduce(const Buffer& logprobs, int64_t rows, const LoopLoss& loss, void* coefficients) {
    LoopLossSums sums{};
    model_.device->run(&LoopBackend::policy_gradient, "policy gradient", model_.dt, rows,
                       static_cast<const void*>(logprobs.as<>()), static_cast<const LoopLoss*>(&loss), coefficients, &sums);
    return sums;
  }

  // ∂L/∂ℓ of all token terms and of LLDS, from known log-probabilities.
  RowTable coefficients(const Micro& m, const Buffer& logprobs, std::vector<double>& d_pdf) {
    const size_t rows = m.logprobs.size();
    RowTable total(rows, 0.0);
    Buffer& one = model_.workspace().get("loss.coefficients", rows * loop_dtype_size(model_.real()));
    for (const LossTerm& term : o_.terms) {
      if (term.channel != Channel::token) continue;
      const RowTable w = weights(m, term.credit);
      if (&term == first_token_term()) count_weights(w, m.R());
      const Rows values = term_rows(m, term, w);
      LoopLossSums sums = reduce(logprobs, int64_t(rows), row_loss(row_surrogate(term), &term, values), one.as<>());
      if (term.surrogate == Surrogate::k15) sums.loss = sums.policy_loss = k15_loss(m, term, w);
      totals_.add(sums);
      const std::vector<double> c = download_reals(one, model_.dt, rows);
      for (size_t i = 0; i < rows; i++) total[i] += c[i];
      if (attached(term)) add_weight_gradient(m, term, values.advantage, d_pdf);
    }
    if (o_.lazy) add_lazy(m, total);
    return total;
  }

  // -n (A S - τ/2 S²) per sequence, S = Σ_jt w ρ.
  double k15_loss(const Micro& m, const LossTerm& term, const RowTable& w) const {
    if (batch_.old_logprobs.empty()) return 0;
    const std::vector<int32_t> ids = m.sequence_of_row();
    const std::vector<double> sums =
        segment_reduce(Reduce::sum, weighted_sum(m, w, log_ratios(m, batch_.old_logprobs, old_per_loop_)), ids,
                       int64_t(m.packed.end - m.packed.begin));
    double loss = 0;
    for (size_t i = m.packed.begin; i < m.packed.end; i++) {
      const double s = sums[i - m.packed.begin];
      loss -= term.norms[i] * (term.advantages[i] * s - term.tau / 2 * s * s);
    }
    return loss;
  }

  // λ Σ v max(0, -ρ) over the segments whose Σ ρ is negative.
  void add_lazy(const Micro& m, RowTable& c) {
    const LazyLikelihood& lazy = *o_.lazy;
    const bool own = !batch_.lazy_logprobs.empty();
    const RowTable rho = log_ratios(m, own ? batch_.lazy_logprobs : batch_.old_logprobs, own ? lazy_per_loop_ : old_per_loop_);
    if (rho.empty()) return;
    const size_t R = m.R();
    const RowTable v = set_weights(m, lazy.loops);
    // Segments of rows: the sequence, or a run of equal action ids in it.
    std::vector<int32_t> ids = m.sequence_of_row();
    if (lazy.gate == LazyLikelihood::Gate::segment && !batch_.segments.empty()) {
      int32_t next = -1;
      for (size_t r = 0; r < R; r++) {
        const bool same = r > 0 && m.packed.rows[r].sequence == m.packed.rows[r - 1].sequence &&
                          batch_.segments[at(m.packed.rows[r])] == batch_.segments[at(m.packed.rows[r - 1])];
        ids[r] = same ? next : ++next;
      }
    }
    const std::vector<double> of_token = weighted_sum(m, v, rho),
                              of_segment = segment_reduce(Reduce::sum, of_token, ids, int64_t(R));
    for (size_t k = 0; k < scored_.size(); k++) {
      const std::vector<double> at_loop(rho.begin() + ptrdiff_t(k * R), rho.begin() + ptrdiff_t((k + 1) * R));
      const std::vector<double> of_loop = segment_reduce(Reduce::sum, at_loop, ids, int64_t(R));
      for (size_t r = 0; r < R; r++) {
        const double total = lazy.gate == LazyLikelihood::Gate::token  ? -1
                             : lazy.gate == LazyLikelihood::Gate::loop ? of_loop[size_t(ids[r])]
                                                                       : of_segment[size_t(ids[r])];
        const double x = rho[k * R + r], scale = lazy.norms[size_t(m.packed.rows[r].sequence)] * v[k * R + r];
        if (total >= 0 || x >= 0) continue;
        c[k * R + r] -= scale;
        totals_.m.lazy_loss -= scale * x;
        totals_.m.loss -= scale * x;
      }
    }
  }

  // ∂L/∂p_t = -n A ℓ_t of attached weights.
  void add_weight_gradient(const Micro& m, const LossTerm& term, const RowTable& advantages, std::vector<double>& d_pdf) const {
    for (size_t i = 0; i < m.logprobs.size(); i++) {
      const size_t r = i % m.R();
      d_pdf[size_t(scored_[i / m.R()]) * m.R() + r] -=
          term.norms[size_t(m.packed.rows[r].sequence)] * advantages[i] * m.logprobs[i];
    }
  }

  // -n mean_g A_g log p_{t_g} over the exits of each token: the batch's, or draws from p.
  void add_exit_term(const Micro& m, const LossTerm& term, std::vector<double>& d_pdf) {
    const size_t R = m.R();
    for (size_t r = 0; r < R; r++) {
      const PredictionRow& row = m.packed.rows[r];
      std::vector<int> exits;
      if (!batch_.exits.empty()) exits.push_back(std::clamp(int(batch_.exits[at(row)]), 0, loops_ - 1));
      for (int g = 0; batch_.exits.empty() && g < term.draws; g++) exits.push_back(draw_exit(m, term, r, g));
      std::vector<double> advantages;
      if (term.belief) {
        const std::vector<double> g = returns(m, term, r);
        for (int t : exits) advantages.push_back(g[size_t(t)]);
        if (exits.size() > 1) normalise(BeliefNorm::loops, advantages);
      }
      for (size_t g = 0; g < exits.size(); g++) {
        const size_t i = size_t(exits[g]) * R + r;
        const double a = advantage(term, row, exits[g]) + (term.belief ? term.belief_scale * advantages[g] : 0);
        const double c = -term.norms[size_t(row.sequence)] * a / double(exits.size());
        totals_.m.loss += c * m.exits.log_pdf[i];
        totals_.m.policy_loss += c * m.exits.log_pdf[i];
        d_pdf[i] += c / std::max(m.exits.pdf[i], 1e-30);
      }
    }
  }
  int draw_exit(const Micro& m, const LossTerm& term, size_t r, int g) const {
    const PredictionRow& row = m.packed.rows[r];
    const double u = uniform(term.seed, uint32_t(row.sequence), uint32_t(row.position), OBJECTIVE_EXIT_STREAM + uint32_t(g));
    double cdf = 0;
    for (int t = 0; t + 1 < loops_; t++) {
      cdf += m.exits.pdf[size_t(t) * m.R() + r];
      if (u < cdf) return t;
    }
    return loops_ - 1;
  }

  void count_weights(const RowTable& w, size_t R) {
    for (size_t i = 0; i < w.size(); i++) totals_.weight[size_t(scored_[i / R])] += w[i];
  }
  void count(const Micro& m) {
    LossMetrics& sums = totals_.m;
    const size_t R = m.R();
    sums.response_tokens += double(R);
    for (size_t k = 0; k < scored_.size(); k++) {
      for (size_t r = 0; r < R; r++) totals_.logprob[size_t(scored_[k])] += m.logprobs[k * R + r];
      totals_.scored[size_t(scored_[k])] += double(R);
    }
    for (size_t i = m.entropies.size() - std::min(R, m.entropies.size()); i < m.entropies.size(); i++)
      sums.entropy += m.entropies[i];
    totals_.entropy_rows += m.entropies.empty() ? 0 : double(R);
    for (size_t t = 0; t < size_t(loops_); t++)
      for (size_t r = 0; r < R; r++) {
        const double p = m.exits.pdf[t * R + r], log_p = m.exits.log_pdf[t * R + r], h = p > 0 ? -p * log_p : 0;
        totals_.exit[t] += p;
        sums.exit_loop += double(plan_.read[t] + 1) * p;
        sums.exit_entropy += h;
        sums.loss -= o_.exit_entropy * batch_.norms[size_t(m.packed.rows[r].sequence)] * h;
      }
  }

  Model& model_;
  const LossBatch& batch_;
  const Objective& o_;
  const LoopPlan plan_;
  const int loops_;            // that are read; loops count among them from here on
  LoopPlan stack_plan_ = plan_;
  Totals totals_;
  std::vector<int> scored_;  // loops whose log-probabilities are needed
  std::vector<int64_t> prediction_offsets_;
  bool one_pass_ = true;  // every coefficient follows from the row's own log-probability
  bool ratios_needed_ = false, old_per_loop_ = false, lazy_per_loop_ = false, reference_per_loop_ = false;
};

}  // namespace

LossMetrics accumulate_loss(Model& model, const LossBatch& batch, const Objective& objective) {
  const Remedy remedy(*model.device, training_remedy(objective.recompute));
  return LossPass(model, batch, objective).run();
}

}  // namespace looplm

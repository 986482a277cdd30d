#include "token_terms.h"

#include <algorithm>
#include <cmath>

#include "segments.h"

namespace looplm {

namespace {

double normalizer(const std::vector<double>& of_sequences, const PredictionRow& row) {
  return of_sequences[size_t(row.sequence)];
}

LoopSurrogate of_row(const LossTerm& term) {
  if (term.surrogate == Surrogate::cispo) return LOOP_CISPO;
  return term.surrogate == Surrogate::ppo || term.surrogate == Surrogate::gspo ? LOOP_PPO : LOOP_REINFORCE;
}

// One log-ratio that several rows share: over all loops of a token (inner), or over all tokens of a sequence. [R].
std::vector<double> shared_log_ratios(const LossInput& in, const LossRows& rows, const LossTerm& term, const RowTable& w) {
  std::vector<double> shared = weighted_sum(rows, w, log_ratios(in, rows, in.old_logprobs));
  if (term.inner) return shared;
  const std::vector<int32_t> ids = rows.sequence_of_row();
  const Reduce op = term.surrogate == Surrogate::gspo ? Reduce::mean : Reduce::sum;
  const std::vector<double> of_sequence = segment_reduce(op, shared, ids, int64_t(rows.sequences()));
  for (size_t r = 0; r < rows.R(); r++) shared[r] = of_sequence[size_t(ids[r])];
  return shared;
}

// Adds the old log-probabilities. If rows share a ratio, each gets the value that results in it; k15 has no ratio and
// lowers the advantage instead.
void add_old(const LossInput& in, const LossRows& rows, const LossTerm& term, const RowTable& w, RowLoss& out) {
  const size_t R = rows.R();
  if (!needs_values(term)) {
    for (int k : in.loops.scored)
      for (const PredictionRow& row : rows.packed.rows) out.old_logprob.push_back(in.value(in.old_logprobs, row, k));
    return;
  }
  const std::vector<double> shared = shared_log_ratios(in, rows, term, w);
  for (size_t i = 0; i < out.scale.size(); i++) {
    if (term.surrogate == Surrogate::k15) out.advantage[i] -= term.tau * shared[i % R];
    else out.old_logprob.push_back(rows.values.logprobs[i] - shared[i % R]);
  }
}

}  // namespace

bool needs_values(const LossTerm& term) {
  return term.surrogate == Surrogate::gspo || term.surrogate == Surrogate::k15 || term.inner;
}

RowLoss row_loss(const LossInput& in, const LossRows& rows, const LossTerm& term, const RowTable& w) {
  const size_t R = rows.R();
  RowLoss out;
  out.form.surrogate = of_row(term);
  out.form.epsilon_low = term.epsilon_low, out.form.epsilon_high = term.epsilon_high;
  out.form.dual_clip = term.dual_clip, out.form.cap = term.cap;
  for (size_t i = 0; i < w.size(); i++) {
    const PredictionRow& row = rows.packed.rows[i % R];
    out.scale.push_back(normalizer(term.length_normalizers, row) * w[i]);
    out.advantage.push_back(in.advantage(term, row, in.loops.scored[i / R]));
  }
  for (size_t r = 0; r < R && term.belief; r++) {
    std::vector<double> g = token_returns(in, rows, term, r);
    normalise(term.belief_norm, g);
    for (size_t t = 0; t < g.size(); t++) out.advantage[t * R + r] += term.belief_scale * g[t];
  }
  if (has_ratio(term.surrogate) && !in.old_logprobs.empty()) add_old(in, rows, term, w, out);
  return out;
}

void add_regularisers(const LossInput& in, const LossRows& rows, RowLoss& loss) {
  const size_t R = rows.R();
  const Objective& o = in.objective;
  if (o.beta != 0) {
    const RowTable v = loop_weights(in.weights_of(o.beta_loops), in.loops, rows.exits, rows.exit_loops);
    for (size_t i = 0; i < v.size(); i++) {
      const PredictionRow& row = rows.packed.rows[i % R];
      const double scale = o.beta * normalizer(in.batch.length_normalizers, row) * v[i];
      loss.kl_scale.push_back(scale);
      loss.reference_logprob.push_back(scale != 0 ? in.value(in.reference_logprobs, row, in.loops.scored[i / R]) : 0);
    }
  }
  if (o.token_entropy == 0) return;
  const RowTable v = loop_weights(in.weights_of(LoopSet::weights), in.loops, rows.exits, rows.exit_loops);
  for (size_t i = 0; i < v.size(); i++)
    loss.entropy_scale.push_back(o.token_entropy * normalizer(in.batch.length_normalizers, rows.packed.rows[i % R]) * v[i]);
}

RowTable log_ratios(const LossInput& in, const LossRows& rows, const PredictionValues& old) {
  RowTable rho;
  const size_t R = rows.R();
  for (size_t i = 0; i < rows.values.logprobs.size() && !old.empty(); i++)
    rho.push_back(rows.values.logprobs[i] - in.value(old, rows.packed.rows[i % R], in.loops.scored[i / R]));
  return rho;
}

std::vector<double> weighted_sum(const LossRows& rows, const RowTable& w, const RowTable& rho) {
  std::vector<double> sum(rows.R(), 0.0);
  for (size_t i = 0; i < rho.size(); i++) sum[i % rows.R()] += w[i] * rho[i];
  return sum;
}

double k15_loss(const LossInput& in, const LossRows& rows, const LossTerm& term, const RowTable& w) {
  if (in.old_logprobs.empty()) return 0;
  const std::vector<double> of_token = weighted_sum(rows, w, log_ratios(in, rows, in.old_logprobs));
  const std::vector<double> sums = segment_reduce(Reduce::sum, of_token, rows.sequence_of_row(), int64_t(rows.sequences()));
  double loss = 0;
  for (size_t i = rows.packed.begin; i < rows.packed.end; i++) {
    const double s = sums[i - rows.packed.begin];
    loss -= term.length_normalizers[i] * (term.advantages[i] * s - term.tau / 2 * s * s);
  }
  return loss;
}

std::vector<double> token_returns(const LossInput& in, const LossRows& rows, const LossTerm& term, size_t r) {
  const PredictionRow& row = rows.packed.rows[r];
  const double largest_entropy = std::log(double(in.model.config.vocabulary));
  const int K = in.loops.count();
  BeliefRewards rewards = *term.belief;
  std::vector<double> log_belief{-largest_entropy};  // belief before any loop: log of the uniform probability
  for (size_t t = 0; t < size_t(K); t++) log_belief.push_back(rows.values.logprobs[t * rows.R() + r]);
  double reference_log = 0;
  int reference_loop = K;
  if (rewards.base == BeliefBase::teacher) {
    double cdf = 0;
    for (int t = 0; t + 1 < K && reference_loop == K; t++) {
      cdf += in.value(in.reference_exit_pdf, row, t);
      if (cdf >= term.reference_threshold) reference_loop = t + 1;
    }
    reference_log = in.value(in.reference_logprobs, row, reference_loop - 1);
    const double share = in.batch.reference_entropy[in.at(row)] / largest_entropy;
    rewards.cost *= 1 + term.cost_scale * (1 - std::clamp(share, 0.0, 1.0));
  }
  return belief_returns(rewards, log_belief, reference_log, reference_loop);
}

void normalise(BeliefNorm norm, std::vector<double>& x) {
  if (norm == BeliefNorm::none) return;
  const std::vector<int32_t> one(x.size(), 0);
  const double mean = segment_reduce(Reduce::mean, x, one, 1)[0], deviation = segment_reduce(Reduce::deviation, x, one, 1)[0];
  for (double& v : x) {
    v = (v - mean) / (deviation + DEVIATION_EPSILON);
    if (norm == BeliefNorm::gain) v = std::max(0.0, v);
  }
}

void add_weight_gradient(const LossInput& in, const LossRows& rows, const LossTerm& term, const std::vector<double>& advantages,
                         std::vector<double>& d_pdf) {
  const size_t R = rows.R();
  for (size_t i = 0; i < rows.values.logprobs.size(); i++)
    d_pdf[size_t(in.loops.scored[i / R]) * R + i % R] -=
        normalizer(term.length_normalizers, rows.packed.rows[i % R]) * advantages[i] * rows.values.logprobs[i];
}

namespace {

// Segment id of each row: its sequence, or with Gate::segment a run of equal action ids in it.
std::vector<int32_t> lazy_segments(const LossInput& in, const LossRows& rows) {
  std::vector<int32_t> ids = rows.sequence_of_row();
  if (in.objective.lazy->gate != LazyLikelihood::Gate::segment || in.batch.segments.empty()) return ids;
  int32_t next = -1;
  for (size_t r = 0; r < rows.R(); r++) {
    const PredictionRow &row = rows.packed.rows[r], &before = rows.packed.rows[r > 0 ? r - 1 : 0];
    const bool same =
        r > 0 && row.sequence == before.sequence && in.batch.segments[in.at(row)] == in.batch.segments[in.at(before)];
    ids[r] = same ? next : ++next;
  }
  return ids;
}

}  // namespace

double add_lazy_likelihood(const LossInput& in, const LossRows& rows, RowTable& c) {
  using Gate = LazyLikelihood::Gate;
  const LazyLikelihood& lazy = *in.objective.lazy;
  const RowTable rho = log_ratios(in, rows, in.lazy_logprobs.empty() ? in.old_logprobs : in.lazy_logprobs);
  if (rho.empty()) return 0;
  const size_t R = rows.R();
  const RowTable v = loop_weights(in.weights_of(lazy.loops), in.loops, rows.exits, rows.exit_loops);
  const std::vector<int32_t> ids = lazy_segments(in, rows);
  const std::vector<double> of_segment = segment_reduce(Reduce::sum, weighted_sum(rows, v, rho), ids, int64_t(R));
  double loss = 0;
  for (size_t k = 0; k < in.loops.scored.size(); k++) {
    const std::vector<double> at_loop(rho.begin() + ptrdiff_t(k * R), rho.begin() + ptrdiff_t((k + 1) * R));
    const std::vector<double> of_loop = segment_reduce(Reduce::sum, at_loop, ids, int64_t(R));
    for (size_t r = 0; r < R; r++) {
      const size_t segment = size_t(ids[r]);
      const double total = lazy.gate == Gate::token ? -1 : lazy.gate == Gate::loop ? of_loop[segment] : of_segment[segment];
      const double x = rho[k * R + r], scale = normalizer(lazy.length_normalizers, rows.packed.rows[r]) * v[k * R + r];
      if (total >= 0 || x >= 0) continue;
      c[k * R + r] -= scale;
      loss -= scale * x;
    }
  }
  return loss;
}

}  // namespace looplm

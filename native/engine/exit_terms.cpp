#include "exit_terms.h"

#include <algorithm>

#include "../numeric/philox.h"
#include "token_terms.h"

namespace looplm {

namespace {

int draw_exit(const LossInput& in, const LossRows& rows, const LossTerm& term, size_t r, int g) {
  const PredictionRow& row = rows.packed.rows[r];
  const uint32_t sequence = in.batch.numbers.empty() ? uint32_t(row.sequence) : in.batch.numbers[size_t(row.sequence)];
  const double u = uniform(term.seed, sequence, uint32_t(row.position), OBJECTIVE_EXIT_STREAM + uint32_t(g));
  double cdf = 0;
  for (int t = 0; t + 1 < in.loops.count(); t++) {
    cdf += rows.exits.pdf[size_t(t) * rows.R() + r];
    if (u < cdf) return t;
  }
  return in.loops.count() - 1;
}

std::vector<int> exits_of(const LossInput& in, const LossRows& rows, const LossTerm& term, size_t r) {
  if (!in.batch.exits.empty()) return {std::clamp(int(in.batch.exits[in.at(rows.packed.rows[r])]), 0, in.loops.count() - 1)};
  std::vector<int> exits;
  for (int g = 0; g < term.draws; g++) exits.push_back(draw_exit(in, rows, term, r, g));
  return exits;
}

// The part of the advantage that comes from the belief, for each exit of a token: z-scores over the exits, scaled.
std::vector<double> added_advantages(const LossInput& in, const LossRows& rows, const LossTerm& term, size_t r,
                                     const std::vector<int>& exits) {
  std::vector<double> added(exits.size(), 0.0);
  if (!term.belief) return added;
  const std::vector<double> returns = token_returns(in, rows, term, r);
  for (size_t g = 0; g < exits.size(); g++) added[g] = returns[size_t(exits[g])];
  if (exits.size() > 1) normalise(BeliefNorm::loops, added);
  for (double& a : added) a *= term.belief_scale;
  return added;
}

}  // namespace

double add_exit_term(const LossInput& in, const LossRows& rows, const LossTerm& term, std::vector<double>& d_log_pdf) {
  double loss = 0;
  for (size_t r = 0; r < rows.R(); r++) {
    const PredictionRow& row = rows.packed.rows[r];
    const std::vector<int> exits = exits_of(in, rows, term, r);
    const std::vector<double> added = added_advantages(in, rows, term, r, exits);
    for (size_t g = 0; g < exits.size(); g++) {
      const size_t i = size_t(exits[g]) * rows.R() + r;
      const double a = in.advantage(term, row, exits[g]) + added[g];
      const double c = -term.length_normalizers[size_t(row.sequence)] * a / double(exits.size());
      loss += c * rows.exits.log_pdf[i];
      d_log_pdf[i] += c;
    }
  }
  return loss;
}

double add_exit_entropy(const LossInput& in, const LossRows& rows, std::vector<double>& d_pdf) {
  const double weight = in.objective.exit_entropy;
  double loss = 0;
  for (size_t i = 0; weight != 0 && i < d_pdf.size(); i++) {
    const double n = weight * in.batch.length_normalizers[size_t(rows.packed.rows[i % rows.R()].sequence)];
    const double p = rows.exits.pdf[i], log_p = rows.exits.log_pdf[i];
    d_pdf[i] += n * (log_p + 1);
    loss += p > 0 ? n * p * log_p : 0;
  }
  return loss;
}

bool trains_exits(const Objective& objective) {
  return objective.exit_entropy != 0 || std::any_of(objective.terms.begin(), objective.terms.end(), [](const LossTerm& term) {
           return attached(term) || term.channel == Channel::exit;
         });
}

}  // namespace looplm

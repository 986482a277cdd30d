#include "loss_input.h"

#include <algorithm>

#include "pass.h"

namespace looplm {

namespace {

void require(bool ok, const char* what) {
  if (!ok) throw Error("INVALID_ARGUMENT", "loss", what);
}

}  // namespace

LossInput::LossInput(const Model& model, const LossBatch& batch, const Objective& objective)
    : model(model), batch(batch), objective(objective), plan(plan_of(model, objective.loops, "loss")) {
  check_sequences(model, batch.sequences, "loss");
  loops.read = plan.read;
  check();
  for (int k = 0; k < loops.count(); k++)
    if (scores(k)) loops.scored.push_back(k);
  for (size_t i = 0; i < batch.sequences.count(); i++) {
    offsets_.push_back(predictions_);
    predictions_ += batch.sequences.length(i) - 1;
  }
  check_sizes();
  bool ratios = objective.lazy.has_value(), teacher = false;
  for (const LossTerm& term : objective.terms) {
    ratios |= term.channel == Channel::token && has_ratio(term.surrogate);
    teacher |= term.belief && term.belief->base == BeliefBase::teacher;
  }
  old_logprobs = {&batch.old_logprobs};
  if (ratios) old_logprobs = by_loop(batch.old_logprobs, "oldLogprobs", true);
  lazy_logprobs = by_loop(batch.lazy_logprobs, "lazyLogprobs", true);
  reference_logprobs = by_loop(batch.reference_logprobs, "referenceLogprobs", objective.beta_loops != LoopSet::last || teacher);
  reference_exit_pdf = {&batch.reference_exit_pdf, true};
}

void LossInput::check() const {
  const size_t count = batch.sequences.count();
  require(!objective.terms.empty(), "an objective needs at least one term");
  require(batch.length_normalizers.size() == count, "a batch needs one normaliser per sequence");
  if (objective.exit_entropy != 0) require_exit_gate(model, "loss", "an entropy of exits");
  for (const LossTerm& term : objective.terms) check_term(term);
  require(objective.beta == 0 || !batch.reference_logprobs.empty(), "beta > 0 needs referenceLogprobs");
  require(!objective.lazy || objective.lazy->length_normalizers.size() == count, "LLDS needs one normaliser per sequence");
}

void LossInput::check_term(const LossTerm& term) const {
  const size_t count = batch.sequences.count();
  if (term.channel == Channel::exit) require_exit_gate(model, "loss", "a term of the exit channel");
  if (term.weights.kind == LoopWeighting::exit_pdf || term.belief) require_exit_gate(model, "loss", "exit-pdf weights");
  require(term.length_normalizers.size() == count, "a term needs one normaliser per sequence");
  require(term.advantages.size() == count || term.advantages.size() == count * size_t(loops.count()),
          "a term needs one advantage per sequence, or one per sequence and loop");
  require(term.token_advantages.empty() || (term.surrogate != Surrogate::gspo && term.surrogate != Surrogate::k15),
          "gspo and k1.5 compare whole sequences: their tokens have no separate advantages");
  require(term.weights.kind != LoopWeighting::exit_loop || term.channel != Channel::token || !batch.exits.empty(),
          "weights of the exit loop need the batch's exits");
  require(!attached(term) || (term.surrogate == Surrogate::reinforce && term.weights.temperature == 1),
          "attached exit-pdf weights (detachWeights: false of a trainer, detach: false of a term) are defined for the reinforce "
          "surrogate at temperature 1: use those, or detached weights");
  require(term.channel == Channel::token || term.surrogate == Surrogate::reinforce,
          "the exit channel supports only the reinforce surrogate");
  require(term.channel == Channel::token || term.draws > 0 || !batch.exits.empty(),
          "an exit term needs exits in the batch, or draws of at least 1");
  require(!term.belief || term.belief->base != BeliefBase::teacher ||
              (!batch.reference_logprobs.empty() && !batch.reference_exit_pdf.empty() && !batch.reference_entropy.empty()),
          "a belief with base teacher needs the reference's logprobs, entropy and exit distribution");
  require(term.surrogate != Surrogate::k15 || (term.advantages.size() == count && !term.belief),
          "k1.5 compares whole sequences: one advantage per sequence and no belief");
  require(names_loops(term.weights, loops),
          "one-hot weights must name a loop that is read, and given weights have one number for each of them");
}

void LossInput::check_sizes() const {
  const auto fits = [](size_t size, int64_t expected, const char* name) {
    if (size != 0 && int64_t(size) != expected)
      throw Error("INVALID_SHAPE", "loss",
                  std::string(name) + " holds " + std::to_string(size) + " values, expected " + std::to_string(expected));
  };
  fits(batch.numbers.size(), int64_t(batch.sequences.count()), "numbers");
  fits(batch.exits.size(), predictions_, "exits");
  fits(batch.segments.size(), predictions_, "segments");
  fits(batch.mask.size(), predictions_, "mask");
  for (const LossTerm& term : objective.terms) fits(term.token_advantages.size(), predictions_, "tokenAdvantages");
  fits(batch.reference_entropy.size(), predictions_, "referenceEntropy");
  fits(batch.reference_exit_pdf.size(), predictions_ * loops.count(), "referenceExitPdf");
}

PredictionValues LossInput::by_loop(const std::vector<double>& values, const char* name, bool every_scored_loop) const {
  const int64_t count = int64_t(values.size());
  if (values.empty() || count == predictions_) {
    if (!values.empty() && every_scored_loop && loops.scored.size() > 1)
      throw Error("INVALID_SHAPE", "loss",
                  std::string(name) + " needs loops × (len-1) values per sequence when several loops are weighted");
    return {&values, false};
  }
  if (count == predictions_ * loops.count()) return {&values, true};
  throw Error("INVALID_SHAPE", "loss",
              std::string(name) + " holds " + std::to_string(count) + " values: expected len-1 per sequence (" +
                  std::to_string(predictions_) + " in all) or loops × (len-1)");
}

const LossTerm* LossInput::first_token_term() const {
  for (const LossTerm& term : objective.terms)
    if (term.channel == Channel::token) return &term;
  return nullptr;
}

LoopWeights LossInput::weights_of(LoopSet set) const {
  if (set == LoopSet::uniform) return {LoopWeighting::uniform};
  const LossTerm* term = first_token_term();
  return set == LoopSet::weights && term ? term->weights : LoopWeights{LoopWeighting::one_hot};
}

bool LossInput::in_set(LoopSet set, int k) const {
  if (set == LoopSet::last) return k + 1 == loops.count();
  const LossTerm* term = first_token_term();
  return set == LoopSet::uniform || !term || weighs(term->weights, loops, k);
}

// Whether any part of the objective needs log-probabilities or entropies at the k-th loop that is read.
bool LossInput::scores(int k) const {
  if (objective.beta != 0 && in_set(objective.beta_loops, k)) return true;
  if (objective.lazy && in_set(objective.lazy->loops, k)) return true;
  if (objective.token_entropy != 0 && in_set(LoopSet::weights, k)) return true;
  return std::any_of(objective.terms.begin(), objective.terms.end(), [&](const LossTerm& term) {
    return term.belief.has_value() || (term.channel == Channel::token && weighs(term.weights, loops, k));
  });
}

LoopPlan LossInput::stack_plan() const {
  LoopPlan out = plan;
  if (model.config.exit_gate) return out;
  out.read.clear();
  for (int k : loops.scored) out.read.push_back(plan.read[size_t(k)]);
  return out;
}
std::vector<int> LossInput::hidden_of_scored() const {
  return model.config.exit_gate ? loops.scored : all_loops(int(loops.scored.size()));
}

std::vector<int32_t> LossInput::exit_loops(const PackedBatch& packed) const {
  std::vector<int32_t> out;
  for (const PredictionRow& row : packed.rows)
    if (!batch.exits.empty()) out.push_back(batch.exits[at(row)]);
  return out;
}

double LossInput::value(const PredictionValues& of, const PredictionRow& row, int k) const {
  const size_t i = size_t(row.sequence);
  const int64_t width = batch.sequences.length(i) - 1, base = offsets_[i];
  return (*of.values)[size_t(of.by_loop ? base * loops.count() + k * width + row.position : base + row.position)];
}

double LossInput::advantage(const LossTerm& term, const PredictionRow& row, int k) const {
  const size_t i = size_t(row.sequence);
  const double own = term.token_advantages.empty() ? 0 : term.token_advantages[at(row)];
  const bool by_loop = term.advantages.size() != batch.sequences.count();
  return own + term.advantages[by_loop ? i * size_t(loops.count()) + size_t(k) : i];
}

std::vector<int32_t> LossRows::sequence_of_row() const {
  std::vector<int32_t> ids;
  for (const PredictionRow& row : packed.rows) ids.push_back(int32_t(size_t(row.sequence) - packed.begin));
  return ids;
}

}  // namespace looplm

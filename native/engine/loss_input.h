// A batch and an objective, checked against the model. Derives what every micro-batch needs: the loops to score, and where
// each prediction's values are stored.
#pragma once
#include "loop_weights.h"
#include "loss.h"
#include "micro_batch.h"

namespace looplm {

// Values for the rows of the scored loops, [scored, R], loop by loop.
using RowTable = std::vector<double>;

// One value per prediction of the batch, or with by_loop one per prediction and loop that is read.
struct PredictionValues {
  const std::vector<double>* values = nullptr;
  bool by_loop = false;
  bool empty() const { return values->empty(); }
};

class LossInput {
 public:
  // Throws INVALID_ARGUMENT, INVALID_SHAPE or UNSUPPORTED for a batch or objective that does not fit the model.
  LossInput(const Model& model, const LossBatch& batch, const Objective& objective);

  const Model& model;
  const LossBatch& batch;
  const Objective& objective;
  const LoopPlan plan;
  ReadLoops loops;
  PredictionValues old_logprobs, lazy_logprobs, reference_logprobs, reference_exit_pdf;

  // The loops that the stack reads; without an exit gate these are only the scored ones. And the indices of the scored loops
  // among them.
  LoopPlan stack_plan() const;
  std::vector<int> hidden_of_scored() const;

  size_t at(const PredictionRow& row) const { return size_t(offsets_[size_t(row.sequence)] + row.position); }
  std::vector<int32_t> exit_loops(const PackedBatch& packed) const;
  double value(const PredictionValues& of, const PredictionRow& row, int k) const;  // k: index among the loops that are read
  double advantage(const LossTerm& term, const PredictionRow& row, int k) const;
  const LossTerm* first_token_term() const;
  LoopWeights weights_of(LoopSet set) const;

 private:
  void check() const;
  void check_term(const LossTerm& term) const;
  void check_sizes() const;
  bool in_set(LoopSet set, int k) const;
  bool scores(int k) const;
  PredictionValues by_loop(const std::vector<double>& values, const char* name, bool every_scored_loop) const;
  std::vector<int64_t> offsets_;  // per sequence: index of its first prediction
  int64_t predictions_ = 0;
};

inline bool has_ratio(Surrogate s) { return s != Surrogate::reinforce; }
inline bool attached(const LossTerm& term) {
  return term.channel == Channel::token && term.weights.kind == LoopWeighting::exit_pdf && !term.weights.detach;
}

// One micro-batch of a loss: its rows, their exit distributions, and their values once they are computed.
struct LossRows {
  const PackedBatch& packed;
  const ExitTable& exits;
  std::vector<int32_t> exit_loops{};  // [R]: exit loops given by the batch; empty if it gives none
  TokenValues values{};
  size_t R() const { return packed.rows.size(); }
  std::vector<int32_t> sequence_of_row() const;  // relative to the micro-batch's first sequence
  size_t sequences() const { return packed.end - packed.begin; }
};

}  // namespace looplm

// A batch and an objective, checked against the model, and what follows from them for every micro-batch: which loops are scored,
// and where the values of a prediction lie.
#pragma once
#include "loop_weights.h"
#include "loss.h"
#include "micro_batch.h"

namespace looplm {

// Values of the scored loops' rows, [scored, R] loop by loop.
using RowTable = std::vector<double>;

// Per-prediction values of a batch, of one loop or of all that are read.
struct PredictionValues {
  const std::vector<double>* values = nullptr;
  bool by_loop = false;
  bool empty() const { return values->empty(); }
};

class LossInput {
 public:
  // Throws INVALID_ARGUMENT, INVALID_SHAPE or UNSUPPORTED.
  LossInput(const Model& model, const LossBatch& batch, const Objective& objective);

  const Model& model;
  const LossBatch& batch;
  const Objective& objective;
  const LoopPlan plan;
  ReadLoops loops;
  PredictionValues old_logprobs, lazy_logprobs, reference_logprobs, reference_exit_pdf;

  // What the stack reads: without an exit gate nothing but the scored loops; and where those lie among what it reads.
  LoopPlan stack_plan() const;
  std::vector<int> hidden_of_scored() const;

  size_t at(const PredictionRow& row) const { return size_t(offsets_[size_t(row.sequence)] + row.position); }
  std::vector<int32_t> left(const PackedBatch& packed) const;
  double value(const PredictionValues& of, const PredictionRow& row, int k) const;  // at the k-th loop that is read
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
  std::vector<int64_t> offsets_;  // per sequence
  int64_t predictions_ = 0;
};

inline bool has_ratio(Surrogate s) { return s != Surrogate::reinforce; }
inline bool attached(const LossTerm& term) {
  return term.channel == Channel::token && term.weights.kind == LoopWeighting::exit_pdf && !term.weights.detach;
}

// One micro-batch of a loss: its rows, their exits, and, once they are known, their values.
struct LossRows {
  const PackedBatch& packed;
  const ExitTable& exits;
  std::vector<int32_t> left{};  // [R]: the batch's exits; empty where it has none
  TokenValues values{};
  size_t R() const { return packed.rows.size(); }
  std::vector<int32_t> sequence_of_row() const;  // counted from the batch's first
  size_t sequences() const { return packed.end - packed.begin; }
};

}  // namespace looplm

// The predictions that LoopRPT trains on ("hard tokens"), for one chunk of sequences: in each sequence, those with the
// highest teacher entropy.
#pragma once
#include "looprpt.h"
#include "micro_batch.h"

namespace looplm {

// One hard token, with its values from the teacher and from the clean pass.
struct HardToken {
  int32_t sequence, position;
  int reference_loop;  // t_ref, 0-based
  double reference_logprob, loop_cost;
  std::vector<double> teacher, clean;  // log-probability ℓ of the target after every loop
  // R(t) = ℓ_t - ℓ_teacher(t_ref) - λ (t - t_ref)
  double reward(int loop, double logprob) const {
    return logprob - reference_logprob - loop_cost * double(loop - reference_loop);
  }
};

// The number of hard tokens among `predictions`: ceil(rho · predictions).
size_t hard_count(double rho, int64_t predictions);

class HardTokens {
 public:
  // Runs the teacher, using the student's scratch memory, then removes all rows from the batch except those of the hard tokens.
  HardTokens(Model& student, const Model& teacher, const Sequences& sequences, PackedBatch& packed, const LoopRptOptions& options,
             int loops);
  void keep_rows(PackedBatch& packed) const;
  HardToken& operator[](size_t i) { return tokens_[i]; }  // in the order of the rows
  const HardToken& of(const PredictionRow& row) const { return tokens_[size_t(index(row))]; }
  size_t count() const { return tokens_.size(); }

 private:
  int64_t index(const PredictionRow& row) const { return index_[size_t(row.sequence) - begin_][size_t(row.position)]; }
  void choose(const PackedBatch& packed, const std::vector<double>& entropy);
  const Sequences& s_;
  const LoopRptOptions& o_;
  const int loops_;
  const double largest_entropy_;
  const size_t begin_;                       // index of the first sequence
  std::vector<std::vector<int64_t>> index_;  // per sequence and prediction: its index in tokens_, or -1
  std::vector<HardToken> tokens_;
};

}  // namespace looplm

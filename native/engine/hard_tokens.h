// The predictions that LoopRPT learns from, of one chunk of sequences: of each sequence those of highest teacher entropy.
#pragma once
#include "looprpt.h"
#include "micro_batch.h"

namespace looplm {

// One of them, with what the teacher and the clean pass say of it.
struct HardToken {
  int32_t sequence, position;
  int reference_loop;  // t_ref, 0-based
  double reference_logprob, price;
  std::vector<double> teacher, clean;  // ℓ of every loop
  // R(t) = ℓ_t - ℓ_teacher(t_ref) - λ (t - t_ref)
  double reward(int loop, double logprob) const { return logprob - reference_logprob - price * double(loop - reference_loop); }
};

// So many predictions of a sequence are hard.
size_t hard_count(double rho, int64_t predictions);

class HardTokens {
 public:
  // Runs the teacher, in the student's memory, and leaves the rows of the hard tokens alone in the batch.
  HardTokens(Model& student, const Model& teacher, const Sequences& sequences, PackedBatch& packed, const LoopRptOptions& options,
             int loops);
  void keep_rows(PackedBatch& packed) const;
  HardToken& operator[](size_t i) { return tokens_[i]; }  // in order of the rows
  const HardToken& of(const PredictionRow& row) const { return tokens_[size_t(index(row))]; }
  size_t count() const { return tokens_.size(); }

 private:
  int64_t index(const PredictionRow& row) const { return index_[size_t(row.sequence) - begin_][size_t(row.position)]; }
  void choose(const PackedBatch& packed, const std::vector<double>& entropy);
  const Sequences& s_;
  const LoopRptOptions& o_;
  const int loops_;
  const double largest_entropy_;
  const size_t begin_;                       // the first sequence
  std::vector<std::vector<int64_t>> index_;  // per sequence and prediction: the place in tokens_, or -1
  std::vector<HardToken> tokens_;
};

}  // namespace looplm

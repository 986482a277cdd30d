// The random draws of LoopRPT: the noise of each rollout and the exits of its tokens. Either the batch gives them, or they
// are a pure function of (seed, sequence id, rollout, position).
#pragma once
#include "looprpt.h"
#include "micro_batch.h"

namespace looplm {

// Rollouts [begin, end) of some sequences in one batch. `one` holds the sequences once; `packed` holds one copy per rollout.
struct Rollouts {
  Rollouts(const PackedBatch& one, int begin, int end) : one(one), begin(begin), end(end), packed(repeat(one, end - begin)) {}
  const PackedBatch& one;
  int begin, end;
  PackedBatch packed;
  int copies() const { return end - begin; }
  int rollout(size_t row) const { return begin + int(row / one.rows.size()); }
};

class LoopRptDraws {
 public:
  // Throws INVALID_ARGUMENT if given draws have the wrong size.
  LoopRptDraws(Model& student, const LoopRptBatch& batch, const LoopRptOptions& options, int loops);
  LatentNoise noise(const Rollouts& of) const;
  int exit(const PredictionRow& row, int rollout, const ExitTable& exits, size_t r) const;  // 0-based

 private:
  int32_t stream_of(size_t sequence, int rollout) const;
  LatentNoise given_noise(const Rollouts& of) const;
  Model& student_;
  const LoopRptBatch& batch_;
  const Sequences& s_;
  const LoopRptOptions& o_;
  const int loops_;
  std::vector<int64_t> noise_at_, exits_at_;  // per sequence: index of its first given draw
};

}  // namespace looplm

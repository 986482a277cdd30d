// Packed batches: sequences back to back without padding, equal prompts once.
#pragma once
#include <cstdint>
#include <vector>

#include "linear.h"  // defines: LoopRows
#include "sequences.h"
#include "operation_memory.h"

namespace looplm {

struct PredictionRow {  // the prediction of one response token
  int32_t token;        // index of the packed token whose state predicts it
  int32_t target;       // the token id it predicts
  int32_t sequence;     // index in Sequences
  int32_t position;     // j: predicts tokens[j + 1] of the sequence
};

struct PackedBatch {
  std::vector<int32_t> ids, positions;
  std::vector<LoopSegment> segments;
  std::vector<PredictionRow> rows;
  std::vector<int32_t> sources;      // per token: the sequence that it was taken from
  std::vector<int32_t> first_token;  // per sequence of the range: packed index of its token 0 (only without shared prompts)
  size_t begin = 0, end = 0;         // the range of sequences
  int32_t group_count = 0, max_context = 0, max_position = 0;
  int64_t tokens() const { return int64_t(ids.size()); }
};

struct PackOptions {
  int64_t token_budget;  // a batch ends before the sequences that would exceed it, but holds at least one. Sequences that share a
                         // prompt stay together while their responses fit
  bool share_prompts;    // neighbours with equal prompts read one copy of all but its last token
  bool responses_only;   // rows from the prompt length on; otherwise every prediction is a row
  bool keep_last_token;  // the last token of a sequence predicts nothing; its gate may still be wanted
  bool two_way = false;  // prompts see themselves both ways; then none are shared, for a last token would see too little
  const std::vector<int32_t>* mask = nullptr;  // of all sequences len-1 each; 0: the prediction is no row. NULL or empty: none is
};

// Packs sequences from `begin` on, at most to `end`; batch.end says where the next batch starts.
PackedBatch pack(const Sequences& sequences, size_t begin, const PackOptions& options, size_t end = SIZE_MAX);
// A batch several times over, copy after copy; rows and first_token of a copy follow those of the one before.
PackedBatch repeat(const PackedBatch& batch, int copies);

// Neighbouring tokens of a batch that begin with given vectors instead of their embeddings.
struct VectorRun {
  int64_t token, count;
  int64_t vector;  // the first one's, of the sequences' input vectors
};
// The runs of a batch, whose rows are added in order.
struct VectorRuns {
  std::vector<VectorRun> runs;
  std::vector<double> values;  // [vectors of all runs, D]
  // Row `row` is token `token` of those that `vectors` belongs to.
  void add(const InputVectors& vectors, int64_t token, int64_t row, int64_t hidden);
};

constexpr int32_t NEVER_LEFT = INT32_MAX;  // of a row that runs all loops, of a prompt for example

// The device copies a stack reads.
struct DeviceBatch {
  int64_t tokens;
  const int32_t *ids, *positions;
  const LoopSegment* segments;
  int32_t segment_count, group_count, max_context, max_position;
  const void* states = nullptr;       // act [N, D]: initial states, for architectures that have some; NULL: zeros
  const int32_t* previous = nullptr;  // [N]: the row of the token before; N: there is none
  // The loop, counted from 0, that each row left at, so that deeper ones have its keys and values (exit_replay.h); empty: none
  // did.
  std::vector<int32_t> exits{};
  std::vector<LoopRows> loops{};  // of a pass whose rows are at their own loops; empty: at those that the stack walks
  // What embedded tokens are replaced by, behind the embedding's scale: of all runs, one behind the other.
  std::vector<VectorRun> vector_runs{};
  const void* vectors = nullptr;  // act [vectors of all runs, D]
  void* d_vectors = nullptr;      // real, the same shape: where a backward adds their gradient; NULL: nobody wants it
};
DeviceBatch upload(const PackedBatch& batch, const std::shared_ptr<Device>& device, BatchMemory& memory);
// DeviceBatch::previous for segments over rows [0, tokens).
std::vector<int32_t> previous_rows(const std::vector<LoopSegment>& segments, int64_t tokens);
const int32_t* upload_ints(const std::shared_ptr<Device>& device, Buffer& buffer, const std::vector<int32_t>& values);

}  // namespace looplm

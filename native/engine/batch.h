// Packed batches: sequences one after the other without padding. Neighbouring sequences with the same prompt share it.
#pragma once
#include <cstdint>
#include <vector>

#include "linear.h"  // defines: LoopRows
#include "sequences.h"
#include "operation_memory.h"

namespace looplm {

struct PredictionRow {  // one predicted token
  int32_t token;        // index of the packed token whose state predicts it
  int32_t target;       // the token id it predicts
  int32_t sequence;     // index in Sequences
  int32_t position;     // j: predicts tokens[j + 1] of the sequence
};

struct PackedBatch {
  std::vector<int32_t> ids, positions;
  std::vector<LoopSegment> segments;
  std::vector<PredictionRow> rows;
  std::vector<int32_t> sources;      // per token: index of the sequence that it came from
  std::vector<int32_t> first_token;  // per sequence of the range: index of its token 0 in the batch; only set when prompts
                                     // are not shared
  size_t begin = 0, end = 0;         // the range of sequences in this batch
  int32_t group_count = 0, max_context = 0, max_position = 0;
  int64_t tokens() const { return int64_t(ids.size()); }
};

struct PackOptions {
  int64_t token_budget;  // A batch ends before the sequence that would exceed this, but holds at least one sequence.
                         // Sequences that share a prompt stay in one batch while their responses fit.
  bool share_prompts;    // neighbours with equal prompts share one copy of all but the last prompt token
  bool responses_only;   // rows only for response tokens; otherwise for every prediction
  bool keep_last_token;  // keep the last token of a sequence: it predicts nothing, but its exit gate may be wanted
  bool two_way = false;  // the prompt attends to itself in both directions; then prompts are not shared, because the last
                         // prompt token must be in the same segment
  const std::vector<int32_t>* mask = nullptr;  // len-1 entries for each of all sequences; 0: this prediction gets no row.
                                               // NULL or empty: nothing is masked
};

// Packs sequences from `begin` up to at most `end`. The next batch starts at batch.end.
PackedBatch pack(const Sequences& sequences, size_t begin, const PackOptions& options, size_t end = SIZE_MAX);
// `copies` copies of a batch, one after the other. The rows and first_token of each copy follow those of the copy before.
PackedBatch repeat(const PackedBatch& batch, int copies);

// A run of consecutive tokens whose embeddings are replaced by given vectors.
struct VectorRun {
  int64_t token, count;
  int64_t vector;  // index of the first vector among the sequences' input vectors
};
// The runs of a batch. Add rows in ascending order.
struct VectorRuns {
  std::vector<VectorRun> runs;
  std::vector<double> values;  // [vectors of all runs, D]
  // Adds row `row` of the batch: token `token` in the numbering of `vectors`. Does nothing if that token has no vector.
  void add(const InputVectors& vectors, int64_t token, int64_t row, int64_t hidden);
};

constexpr int32_t NEVER_EXITS = INT32_MAX;  // exit loop of a row that runs all loops, for example of a prompt token

// Device copies of what a stack reads.
struct DeviceBatch {
  int64_t tokens;
  const int32_t *ids, *positions;
  const LoopSegment* segments;
  int32_t segment_count, group_count, max_context, max_position;
  const void* states = nullptr;       // act [N, D]: initial states, for architectures that use them; NULL: zeros
  const int32_t* previous = nullptr;  // [N]: the row of the previous token; N: no previous token
  // Exit loop of each row, counted from 0. Deeper loops reuse the keys and values of the exit loop (exit_replay.h). Empty: no
  // row exits early.
  std::vector<int32_t> exits{};
  std::vector<LoopRows> loops{};  // set when the rows of one pass are at different loops; empty: all rows are at the loop
                                  // that the stack runs
  // Runs of tokens whose scaled embeddings are replaced by the rows of `vectors`, in this order.
  std::vector<VectorRun> vector_runs{};
  const void* vectors = nullptr;  // act [vectors of all runs, D]
  void* d_vectors = nullptr;      // real, same shape: the backward pass adds the gradient here; NULL: not needed
};
DeviceBatch upload(const PackedBatch& batch, const std::shared_ptr<Device>& device, BatchMemory& memory);
// DeviceBatch::previous for segments over rows [0, tokens).
std::vector<int32_t> previous_rows(const std::vector<LoopSegment>& segments, int64_t tokens);
const int32_t* upload_ints(const std::shared_ptr<Device>& device, Buffer& buffer, const std::vector<int32_t>& values);

}  // namespace looplm

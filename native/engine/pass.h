// Shared by all operations on packed sequences: checks, the loops to run, the sizes of micro-batches, and the index of their
// rows.
#pragma once
#include "stack.h"

namespace looplm {

// Checks input vectors for `tokens` tokens.
void check_vectors(const InputVectors& vectors, size_t tokens, int64_t hidden, const char* operation);
void check_sequences(const Model& model, const Sequences& sequences, const char* operation);
// Throws INVALID_SHAPE unless the mask is empty or has len-1 entries per sequence.
void check_mask(const Sequences& sequences, const std::vector<int32_t>& mask, const char* operation);

// Advice for a training pass that ran out of memory.
const char* training_remedy(Recompute recompute);

// Default tokens per micro-batch: few enough that activations stay in or near the device's cache, and enough for full speed
// of the matrix products. Large models get fewer, so that what `keep` stores takes a bounded part of memory.
int64_t default_budget(const Device& device, const Architecture& architecture, LoopDType dt, int loops, Stack::Keep keep);
inline int64_t default_budget(const Model& model, int loops, Stack::Keep keep) {
  return default_budget(*model.device, model.config, model.dt, loops, keep);
}
Stack::Keep keep_for(Recompute recompute);

// Refuses more loops than the model's, unless its family was trained with any number of loops.
void check_loops(const Model& model, int loops, const char* operation);
// Throws INVALID_ARGUMENT for loops that do not run.
LoopPlan plan_of(const Model& model, const LoopOptions& options, const char* operation);

// Uploads the batch, with the initial states of its tokens if the architecture uses them.
DeviceBatch device_batch(Model& model, const Sequences& sequences, const PackedBatch& packed);
// Downloads the gradients of the input vectors in the last micro-batch into `out`, [vectors, D] of all sequences.
void read_vector_gradients(Model& model, const Sequences& sequences, const PackedBatch& packed, std::vector<double>& out);
void require_exit_gate(const Model& model, const char* operation, const char* what);

// For every loop of `loops`, the index of each row in a [loops, N] table: t·N + token. For a stack's hidden states, t counts
// only the loops that are read.
std::vector<int32_t> row_index(const PackedBatch& batch, const std::vector<int>& loops);
std::vector<int> all_loops(int loops);

}  // namespace looplm

// What every operation on packed sequences shares: checks, which loops run, the sizes of micro-batches and where their rows lie.
#pragma once
#include "stack.h"

namespace looplm {

// vectors: of `tokens` tokens.
void check_vectors(const InputVectors& vectors, size_t tokens, int64_t hidden, const char* operation);
void check_sequences(const Model& model, const Sequences& sequences, const char* operation);
// Throws INVALID_SHAPE unless the mask is empty or has len-1 entries per sequence.
void check_mask(const Sequences& sequences, const std::vector<int32_t>& mask, const char* operation);

// What helps a pass with a backward that found no memory.
const char* training_remedy(Recompute recompute);

// So many tokens that the activations of a micro-batch stay in or near the device's cache and the products run at full rate; of a
// large model fewer, so that what `keep` holds takes a bounded part of memory.
int64_t default_budget(const Device& device, const Architecture& architecture, LoopDType dt, int loops, Stack::Keep keep);
inline int64_t default_budget(const Model& model, int loops, Stack::Keep keep) {
  return default_budget(*model.device, model.config, model.dt, loops, keep);
}
Stack::Keep keep_for(Recompute recompute);

// Loops beyond the model's are for families that were trained with any number.
void check_loops(const Model& model, int loops, const char* operation);
// Throws INVALID_ARGUMENT for loops that do not run.
LoopPlan plan_of(const Model& model, const LoopOptions& options, const char* operation);

// The batch on the device, with the initial states of its tokens where the architecture has some.
DeviceBatch device_batch(Model& model, const Sequences& sequences, const PackedBatch& packed);
// Of the sequences' input vectors: those of the newest batch's tokens, whose gradient a backward has left on the device.
void read_vector_gradients(Model& model, const Sequences& sequences, const PackedBatch& packed, std::vector<double>& out);
void require_exit_gate(const Model& model, const char* operation, const char* what);

// For every loop of `loops`, the rows' places in a [loops, N] table: t·N + token. Of a stack's hidden states t counts the loops
// that are read.
std::vector<int32_t> row_index(const PackedBatch& batch, const std::vector<int>& loops);
std::vector<int> all_loops(int loops);

}  // namespace looplm

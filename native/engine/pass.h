// What every pass over packed sequences shares: checks, micro-batches, the exit distribution at the predicting positions, gate
// gradients.
#pragma once
#include "head.h"
#include "stack.h"

namespace looplm {

void check_sequences(const Model& model, const Sequences& sequences, const char* operation);

// What helps a pass with a backward that found no memory.
const char* training_remedy(Recompute recompute);

// So many tokens that the activations of a micro-batch stay in or near the device's cache, and the products run at full rate.
int64_t default_budget(const Model& model, int loops);
Stack::Keep keep_for(Recompute recompute);

// Throws INVALID_ARGUMENT for loops that do not run.
LoopPlan plan_of(const Model& model, const LoopOptions& options, const char* operation);

// The batch on the device, with the initial states of its tokens where the architecture has some.
DeviceBatch device_batch(Model& model, const Sequences& sequences, const PackedBatch& packed);
void require_exit_gate(const Model& model, const char* operation, const char* what);

// For every loop of `loops`, the rows' places in a [loops, N] table: t·N + token. Of a stack's hidden states t counts the loops
// that are read.
std::vector<int32_t> row_index(const PackedBatch& batch, const std::vector<int>& loops);
std::vector<int> all_loops(int loops);

// Real values on the device under a name of the workspace; NULL for none.
const void* device_reals(Model& model, const char* name, const std::vector<double>& values);

// The exit distribution over the loops that are read, at the predicting positions: [loops, R] row-major by loop.
struct ExitTable {
  int64_t rows;
  int loops;
  const void* gates;     // device, real
  const int32_t* index;  // device [T·R]: t·N + token
  std::vector<double> pdf, log_pdf;
};
ExitTable exit_table(Model& model, Stack& stack, const PackedBatch& batch, int loops);

// The head's rows for some of the loops that a stack reads: loop by loop, the batch's rows in order.
HeadRows head_rows(Model& model, const Stack& stack, const PackedBatch& batch, const std::vector<int>& loops, double temperature);

// ∂L/∂p at the rows of `exits` ([T, R]) through the closed form of math.md §1 into ∂L/∂hidden and the gate's gradient.
void exit_backward(Model& model, const Stack& stack, const PackedBatch& batch, const ExitTable& exits,
                   const std::vector<double>& d_pdf, void* d_hidden);
// The same for given ∂L/∂gate logits of all tokens, real [T·N] on the device.
void gate_backward(Model& model, const Stack& stack, int64_t rows, const void* d_gates, void* d_hidden);

}  // namespace looplm

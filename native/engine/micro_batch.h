// One packed batch on its way through a model: the forward pass, the values of its tokens, and the backward pass from given
// coefficients. Scores, gradients of given coefficients, losses and LoopRPT all use it.
#pragma once
#include <optional>

#include "head.h"
#include "row_loss.h"
#include "stack.h"

namespace looplm {

// The exit distribution over the K loops that are read, at the R prediction rows: [K, R], loop by loop.
struct ExitTable {
  int64_t rows;
  int loops;
  std::vector<double> pdf, log_pdf;
};
ExitTable last_loop_exits(int64_t rows, int loops);  // for models without an exit gate: every token takes all loops

// Gate logits and exit distribution at all N tokens, for models with an exit gate: [K, N].
struct TokenExits {
  std::vector<double> gate_logits, pdf;
};
struct TokenValues {  // one value per row of the head
  std::vector<double> logprobs, entropies;
};

struct BatchPlan {  // which loops a batch runs, and what is kept for the backward pass
  LoopPlan loops;
  Stack::Keep keep;
  const LatentNoise* noise = nullptr;
  bool first_given = false;  // the first loop has already run, see Stack::forward_after_first
};

class MicroBatch {
 public:
  // weights: the model's own, or those of another model of the same architecture, which then uses this model's memory.
  // `packed` must outlive this object; its rows may change between calls. The constructor runs nothing: call a forward
  // function of `stack` first.
  MicroBatch(Model& model, const Weights& weights, const Sequences& sequences, const PackedBatch& packed, BatchPlan plan);
  MicroBatch(const MicroBatch&) = delete;

  Stack stack;

  const ExitTable& exits();
  TokenExits token_exits();
  // The head's input rows for the loops `reads` (indices among those that are read), loop by loop, with the batch's rows in
  // order.
  HeadRows rows(const std::vector<int>& reads, double temperature) const;
  // One head row per row of the batch: row r is read after loop reads[r].
  HeadRows rows_at(const std::vector<int>& reads, double temperature) const;
  // Runs the head forward. The values also stay on the device, in the model's memory.
  TokenValues values(const HeadRows& rows, bool logprobs = true, bool entropies = true);

  // The backward functions add to ∂L/∂hidden and to the gradients of the head and the gate. backward_head runs the head, and
  // `loss` turns the log-probability of each row into its coefficient. If `values` is not NULL, it gets the values from the
  // same pass.
  void backward_head(const HeadRows& rows, const RowLoss& loss, TokenValues* values = nullptr);
  // ∂L/∂p and ∂L/∂log p, [K, R]; the second may be empty. Pass a gradient that comes through log p as such: where p is 0 in
  // real, no ∂L/∂p stands for it.
  void backward_exits(const std::vector<double>& d_pdf, const std::vector<double>& d_log_pdf = {});
  void backward_gates(const std::vector<double>& d_gate_logits);  // [K, N]
  // Continues the backward pass from ∂L/∂hidden to the parameters. If this is the last batch of its sequences, calls `final`
  // when gradients become final.
  void backward(const GradientsFinal& final = {});
  void* d_hidden();  // real [K, N, D]: ∂L/∂hidden so far

 private:
  size_t real() const { return loop_dtype_size(model_.real()); }
  int64_t gates() const { return reads_ * packed_.tokens(); }
  void run_gates(Buffer& logits);
  void backward_gates(const Buffer& d_gate_logits);
  Buffer& reserved(Buffer& buffer, size_t elements) const;  // real
  HeadRows head_rows(const std::vector<int32_t>& index, const std::vector<int32_t>& targets, double temperature) const;

  Model& model_;
  const PackedBatch& packed_;
  const int reads_;
  const bool last_;  // whether this is the last batch of its sequences
  std::optional<ExitTable> exits_;
  bool has_d_hidden_ = false;
};

// Packs the sequences and calls run(packed) for one batch after the other.
template <class F>
void for_micro_batches(const Sequences& sequences, const PackOptions& options, F run) {
  for (size_t begin = 0; begin < sequences.count();) {
    PackedBatch packed = pack(sequences, begin, options);
    begin = packed.end;
    run(packed);
  }
}

}  // namespace looplm

// One packed batch on its way through a model: forward, what its tokens are worth, and the way back from coefficients. Every
// operation on sequences goes through it: scores, gradients of given coefficients, losses, LoopRPT.
#pragma once
#include <optional>

#include "head.h"
#include "row_loss.h"
#include "stack.h"

namespace looplm {

// The exit distribution over the K loops that are read, at the R predicting rows: [K, R], loop by loop.
struct ExitTable {
  int64_t rows;
  int loops;
  std::vector<double> pdf, log_pdf;
};
ExitTable last_loop_exits(int64_t rows, int loops);  // without an exit gate every token takes all loops

// The same of a model with a gate at all N tokens, with the gate's logits: [K, N].
struct TokenExits {
  std::vector<double> gate_logits, pdf;
};
struct TokenValues {  // of the head's rows
  std::vector<double> logprobs, entropies;
};

struct Passage {  // how a batch goes through
  LoopPlan plan;
  Stack::Keep keep;
  const LatentNoise* noise = nullptr;
  bool first_given = false;  // the first loop was run elsewhere
};

class MicroBatch {
 public:
  // weights: the model's, or those of another one of the same architecture that runs in the memory of this one. The batch stays
  // the caller's; its rows may change between calls. Nothing has run yet: `stack` runs forward.
  MicroBatch(Model& model, const Weights& weights, const Sequences& sequences, const PackedBatch& packed, Passage passage);
  MicroBatch(const MicroBatch&) = delete;

  Stack stack;

  const ExitTable& exits();
  TokenExits token_exits();
  // The head's rows for some of the loops that are read, loop by loop, the batch's rows in order.
  HeadRows rows(const std::vector<int>& reads, double temperature) const;
  // The batch's rows, each after its own loop.
  HeadRows rows_at(const std::vector<int>& reads, double temperature) const;
  // The head forward. Values stay on the device, in the model's memory.
  TokenValues values(const HeadRows& rows, bool logprobs = true, bool entropies = true);

  // Add to ∂L/∂hidden and to the gradients of head and gate. The head runs, and its rows get their coefficients from `loss`:
  // `values`, when they are not known yet, come from the same pass.
  void backward_head(const HeadRows& rows, const RowLoss& loss, TokenValues* values = nullptr);
  void backward_exits(const std::vector<double>& d_pdf);          // ∂L/∂p, [K, R]
  void backward_gates(const std::vector<double>& d_gate_logits);  // [K, N]
  // ... and from there to the parameters. `final` hears when gradients are final, if this batch is the last of its sequences.
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
  const bool last_;  // of the sequences
  std::optional<ExitTable> exits_;
  bool has_d_hidden_ = false;
};

// Packs the sequences and hands over one batch after the other.
template <class F>
void for_micro_batches(const Sequences& sequences, const PackOptions& options, F run) {
  for (size_t begin = 0; begin < sequences.count();) {
    PackedBatch packed = pack(sequences, begin, options);
    begin = packed.end;
    run(packed);
  }
}

}  // namespace looplm

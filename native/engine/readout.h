// What happens to rows after a loop: exit rules, head and sampling.
#pragma once
#include "scheduler.h"

namespace looplm {

// A row of a pass, at the end of one of its loops.
struct ReadoutRow {
  enum class Wish { rule, stay, read };
  Wish wish;         // as the exit rule says, whatever it says, or leave in any case
  int loop;          // 1-based, just completed
  int32_t place;     // of the row in buffers that are kept from loop to loop
  int32_t position;  // of the token that is drawn
  const GenerateRequest* request;
  int max_loops;
  double stay = 1;    // gate: Π (1 - λ_s) over the loops so far; kept by the caller from loop to loop
  int32_t best = -1;  // argmax_stable: of the loop before; likewise
  // Results
  bool read = false;  // it left, and `drawn` is its token
  GeneratedToken drawn{};
};

class Readout {
 public:
  explicit Readout(Model& model) : model_(model), act_(loop_dtype_size(model.dt)), real_(loop_dtype_size(model.real())) {}

  // states: act [rows, D] after a loop. previous: [rows, D] before it, for hidden_delta. Every row's wish is granted.
  void run(std::vector<ReadoutRow>& rows, const void* states, const void* previous, int places);

 private:
  void apply_gates(std::vector<ReadoutRow>& rows, const void* states);
  void apply_deltas(std::vector<ReadoutRow>& rows, const void* states, const void* previous);
  void apply_distributions(std::vector<ReadoutRow>& rows, const std::vector<int32_t>& chunk, const Buffer& logits, int places);
  void draw(std::vector<ReadoutRow>& rows, const std::vector<int32_t>& chunk, Buffer& logits);
  void add_alternatives(ReadoutRow& row, const std::vector<double>& logits) const;
  const void* gather(const char* name, LoopDType type, const std::vector<int32_t>& index, int64_t width, int64_t rows,
                     const void* from);
  std::vector<double> download_states(const void* states, int64_t row) const;

  Model& model_;
  const size_t act_, real_;
  // real [places, 2, V]: log-probabilities after the loop before and after this one, for kl. Two, so that a loop that found no
  // memory can be read again.
  Buffer kept_;
};

}  // namespace looplm

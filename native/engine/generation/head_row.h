// A row at the end of one of its loops, and rows gathered from others.
#pragma once
#include "../../numeric/philox.h"
#include "rows.h"

namespace looplm {

// Decides the exit of rule `sampled` for the token behind `made` new ones: the same at every loop.
inline double exit_draw(const Row& row, int32_t made) {
  const auto position = uint32_t(row.prompt->tokens.size()) + uint32_t(made);
  return uniform(row.request.sampling.seed, uint32_t(row.request.sequence), position, EXIT_SAMPLING_STREAM);
}

struct HeadRow {
  enum class Ask { rule, never, always };  // whether it exits: as its rule says, not now, or now
  Ask ask;
  int loop;  // 1-based, just completed
  const Row* row;
  int32_t made;         // new tokens up to its own, itself included; 0: the prompt's last token
  ExitState exit = {};  // from loop to loop
  bool drafts = false;  // `drawn` is wanted although it stays
  ExitMeasures measures = {};
  // Results
  bool exits = false;     // it left the loops, and `drawn` is the token behind it
  bool deferred = false;  // it left the loops, and its draw waits for the host: its logits are kept
  GeneratedToken drawn = {};
  std::vector<double> logits = {};  // [V], of a row that is deferred and whose host asks for them

  bool draws() const { return exits || drafts; }
  // In buffers with a place for every row: tokens of one row that are under way have different ones.
  int32_t place() const {
    const auto& more = row->wave.places;
    const size_t k = size_t(made) % (more.size() + 1);
    return k == 0 ? row->index : more[k - 1];
  }
  const ExitOptions& exit_options() const { return row->request.exit; }
  int32_t position() const { return int32_t(row->prompt->tokens.size()) + made; }  // of the token that is drawn
  // Its rule decides, and needs one of these measured.
  bool needs(unsigned what) const {
    return ask == Ask::rule && loop < row->max_loops && (entry_of(exit_options().rule).needs & what) != 0;
  }
};

// Index of the rows for which something holds.
template <class Holds>
std::vector<int32_t> rows_where(const std::vector<HeadRow>& rows, Holds holds) {
  std::vector<int32_t> index;
  for (size_t i = 0; i < rows.size(); i++)
    if (holds(rows[i])) index.push_back(int32_t(i));
  return index;
}

// Rows of a matrix, in a buffer of the caller's.
class RowGather {
 public:
  explicit RowGather(Model& model) : model_(model) {}
  // Rows `index` of `from`, which has `rows` of them: `from` itself when they are all of them.
  const void* operator()(Buffer& to, LoopDType type, const std::vector<int32_t>& index, int64_t width, int64_t rows,
                         const void* from) {
    bool all = int64_t(index.size()) == rows;
    for (size_t i = 0; all && i < index.size(); i++) all = index[i] == int32_t(i);
    if (all) return from;
    to.reserve(model_.device, index.size() * size_t(width) * loop_dtype_size(type));
    into(to.as<>(), type, index, width, from);
    return to.as<>();
  }
  void into(void* to, LoopDType type, const std::vector<int32_t>& index, int64_t width, const void* from) {
    if (index.empty()) return;
    model_.device->run(&LoopBackend::gather_rows, "gather rows", type, int64_t(index.size()), width,
                       upload(model_.device, index_, index), from, to);
  }
  // Before a caller changes anything that a failed gather would leave half done.
  void reserve(size_t rows) { index_.reserve(model_.device, (rows + 1) * sizeof(int32_t)); }

 private:
  Model& model_;
  Buffer index_;  // int32
};

}  // namespace looplm

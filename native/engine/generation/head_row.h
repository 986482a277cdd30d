// HeadRow: a token after one of its loops, on its way to the head. RowGather: gathers rows of a matrix.
#pragma once
#include "../../numeric/philox.h"
#include "rows.h"

namespace looplm {

// The random number of exit rule `sampled` for the token after `made` new ones; the same at every loop.
inline double exit_draw(const Row& row, int32_t made) {
  const auto position = uint32_t(row.prompt->tokens.size()) + uint32_t(made);
  return uniform(row.request.sampling.seed, uint32_t(row.request.sequence), position, EXIT_SAMPLING_STREAM);
}

struct HeadRow {
  enum class Ask { rule, never, always };  // whether the token exits: as its rule decides, no, or yes
  Ask ask;
  int loop;  // 1-based; the loop that has just finished
  const Row* row;
  int32_t made;         // number of the row's new tokens up to and including this one; 0: the prompt's last token
  ExitState exit = {};  // carried from loop to loop
  bool drafts = false;  // draw a token even if this one does not exit
  ExitMeasures measures = {};
  // Results
  bool exits = false;     // it exited, and `drawn` is the next token
  bool deferred = false;  // it exited, but its draw waits for the host; its logits are kept
  GeneratedToken drawn = {};
  std::vector<double> logits = {};  // [V]; only if the draw is deferred and the host asked for the logits

  bool draws() const { return exits || drafts; }
  // Its place in buffers with one place per row index. Tokens of one row that are under way at the same time have different
  // places.
  int32_t place() const {
    const auto& more = row->wave.places;
    const size_t k = size_t(made) % (more.size() + 1);
    return k == 0 ? row->index : more[k - 1];
  }
  const ExitOptions& exit_options() const { return row->request.exit; }
  int32_t position() const { return int32_t(row->prompt->tokens.size()) + made; }  // of the token that is drawn
  // Whether its rule decides, and needs one of the values `what`.
  bool needs(unsigned what) const {
    return ask == Ask::rule && loop < row->max_loops && (entry_of(exit_options().rule).needs & what) != 0;
  }
};

// Indices of the rows for which holds(row) is true.
template <class Holds>
std::vector<int32_t> rows_where(const std::vector<HeadRow>& rows, Holds holds) {
  std::vector<int32_t> index;
  for (size_t i = 0; i < rows.size(); i++)
    if (holds(rows[i])) index.push_back(int32_t(i));
  return index;
}

// Gathers rows of a matrix into a buffer of the caller.
class RowGather {
 public:
  explicit RowGather(Model& model) : model_(model) {}
  // Rows `index` of `from`, which has `rows` rows. Returns `from` itself if `index` is all of them in order.
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
  // Call before changing anything that a failed gather would leave half done.
  void reserve(size_t rows) { index_.reserve(model_.device, (rows + 1) * sizeof(int32_t)); }

 private:
  Model& model_;
  Buffer index_;  // int32
};

}  // namespace looplm

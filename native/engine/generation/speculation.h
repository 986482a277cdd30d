// Self-speculation: a few loops draft tokens, whose states are kept until the remaining loops verify all of them at once.
#pragma once
#include "head_row.h"

namespace looplm {

class Speculation {
 public:
  explicit Speculation(Generation& generation) : g_(generation) {}

  static bool drafts(const Row& row) { return row.request.draft_loops > 0; }
  // The number of positions that a row drafts, including its newest token; less than draft_tokens near the end of its length.
  int32_t length(const Row& row) const {
    const int64_t most = std::min(row.request.draft_tokens, row.request.max_new_tokens - row.made);
    return int32_t(std::min(most, g_.most_ahead(row) + 1));
  }
  // What the head does with the token of a drafting row after `loop` loops. The last drafted position draws no next token; it
  // waits for its verification.
  HeadRow::Ask ask(const ActiveToken& token, int loop) const;

  // Allocates memory for the drafts of all rows before their first pass. Keeps what active rows have stored.
  void reserve();
  // Keeps the registers after the draft's loops: row `i` of `after`.
  void keep(const ActiveToken& token, const Stack::Registers& after, size_t i);
  // Register r of a kept position, act [D].
  const void* kept(const Row& row, int32_t ahead, size_t r) const { return states_.at(offset(row, ahead, r)); }
  // Called when all drafted positions of a row have run all loops; `reads` has them in order. Keeps the tokens that full
  // depth draws, up to the first one that differs from the draft. Returns false if the row has ended.
  bool verify(Row& row, HeadRow* reads, size_t count);
  void clear() noexcept { states_ = Buffer(), rows_ = width_ = 0; }

 private:
  size_t offset(const Row& row, int32_t ahead, size_t r) const {
    return ((size_t(row.index) * size_t(width_) + size_t(ahead)) * g_.registers() + r) * g_.state_bytes;
  }

  Generation& g_;
  Buffer states_;  // act [row indices, longest draft, R, D]
  int32_t rows_ = 0, width_ = 0;
};

}  // namespace looplm

// Self-speculation: tokens are drafted with a few loops, and their states kept until the remaining loops verify all of them at
// once.
#pragma once
#include "head_row.h"

namespace looplm {

class Speculation {
 public:
  explicit Speculation(Generation& generation) : g_(generation) {}

  static bool drafts(const Row& row) { return row.request.draft_loops > 0; }
  // How many positions a row drafts from its newest token on: the last drafted ones would be beyond its length.
  int32_t length(const Row& row) const {
    const int64_t most = std::min(row.request.draft_tokens, row.request.max_new_tokens - row.made);
    return int32_t(std::min(most, g_.most_ahead(row) + 1));
  }
  // What the head does with a drafting row's token after `loop` loops. The last position drafted has no successor to draw: it
  // waits to be verified.
  HeadRow::Ask ask(const ActiveToken& token, int loop) const;

  // Room for the drafts of all rows, before their first pass. Rows under way lose nothing.
  void reserve();
  // Keeps the registers behind the draft's loops, row `i` of `after`.
  void keep(const ActiveToken& token, const Stack::Registers& after, size_t i);
  // Register r of a kept position, act [D].
  const void* kept(const Row& row, int32_t ahead, size_t r) const { return states_.at(offset(row, ahead, r)); }
  // The positions of a row have come to full depth, side by side in `reads`. What full depth draws is kept as long as the
  // position read what full depth had drawn before. False when the row ended.
  bool verify(Row& row, HeadRow* reads, size_t count);
  void clear() noexcept { states_ = Buffer(), rows_ = width_ = 0; }

 private:
  size_t offset(const Row& row, int32_t ahead, size_t r) const {
    return ((size_t(row.index) * size_t(width_) + size_t(ahead)) * g_.registers() + r) * g_.state_bytes;
  }

  Generation& g_;
  Buffer states_;  // act [row indices, most draft tokens, R, D]
  int32_t rows_ = 0, width_ = 0;
};

}  // namespace looplm

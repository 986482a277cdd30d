#include "speculation.h"

#include <algorithm>

namespace looplm {

HeadRow::Ask Speculation::ask(const ActiveToken& token, int loop) const {
  const Row& row = *token.row;
  if (row.verifying) return HeadRow::Ask::rule;
  return loop == row.request.draft_loops && token.ahead + 1 < length(row) ? HeadRow::Ask::always : HeadRow::Ask::never;
}

void Speculation::reserve() {
  int32_t width = width_;
  for (auto& [id, row] : g_.rows)
    if (drafts(row)) width = std::max(width, row.request.draft_tokens);
  if (width == width_ && (width == 0 || g_.row_indices <= rows_)) return;
  const Model& model = g_.model;
  const int64_t token = int64_t(g_.registers()) * g_.architecture().hidden;
  Buffer wider(model.device, size_t(g_.row_indices) * size_t(width) * g_.registers() * g_.state_bytes);
  if (width_ > 0) {
    const int64_t shape[] = {std::min(rows_, g_.row_indices), width_ * token}, from[] = {width_ * token, 1},
                  to[] = {width * token, 1};
    model.device->run(&LoopBackend::copy_strided, "drafts", model.dt, model.dt, 2, shape, states_.as<>(), from, wider.as<>(), to);
  }
  states_ = std::move(wider);
  rows_ = g_.row_indices;
  width_ = width;
}

void Speculation::keep(const ActiveToken& token, const Stack::Registers& after, size_t i) {
  for (size_t r = 0; r < g_.registers(); r++)
    g_.model.device->run(&LoopBackend::copy, "drafted state", states_.at(offset(*token.row, token.ahead, r)),
                         static_cast<const char*>(after[r]) + i * g_.state_bytes, g_.state_bytes);
}

bool Speculation::verify(Row& row, HeadRow* reads, size_t count) {
  const std::vector<int32_t> drafts = std::move(row.drafts);
  row.drafts.clear();
  row.verifying = false;
  int64_t accepted = 0;
  bool open = true;
  for (size_t k = 0; k < count && open; k++) {
    const int32_t token = reads[k].drawn.token;
    open = g_.add_token(row, std::move(reads[k].drawn));
    if (!open || k + 1 == count || drafts[k] != token) break;
    accepted++;
  }
  g_.count([&](SchedulerStats& s) {
    s.drafted += int64_t(count) - 1;
    s.accepted += accepted;
  });
  return open;
}

}  // namespace looplm

#include "decode.h"

#include <algorithm>

namespace looplm {

struct Decode::Next {
  std::vector<ActiveToken> fresh, staying;
  std::vector<int32_t> index;  // of the staying, in `after`
  struct Kept {                // of a draft: its registers lie with Speculation
    size_t to;
    const Row* row;
    int32_t ahead;
  };
  std::vector<Kept> from_drafts;
  std::vector<Row*> done;
};

void Decode::clear() noexcept {
  tokens_.clear();
  deferred_.clear();
  states_.clear();
}

HeadRow Decode::head_row(const Row& row, HeadRow::Ask ask, int loop, int32_t ahead) const {
  HeadRow r{ask, loop, &row, row.made + ahead};
  r.exit = row.exit;
  return r;
}

// ---- First tokens

void Decode::start_rows() {
  std::vector<Row*> open;
  for (auto& [id, row] : g_.rows)
    if (!row.started && row.prompt->ready) open.push_back(&row);
  for (Row* row : open) row->exit = {};  // an attempt before may have found no memory
  for (int loop = 1; !open.empty(); loop++) {
    std::vector<Row*> staying, here;
    for (Row* row : open) {
      const bool passes = row->request.exit.rule == ExitRule::fixed && loop < row->max_loops;
      (passes ? staying : here).push_back(row);
    }
    std::vector<ActiveToken> fresh;
    if (!here.empty())
      for (Row* row : read_first(here, loop, fresh)) staying.push_back(row);
    tokens_.insert(tokens_.begin(), fresh.begin(), fresh.end());
    open = std::move(staying);
  }
}

// The rows that did not exit after this loop.
std::vector<Row*> Decode::read_first(const std::vector<Row*>& rows, int loop, std::vector<ActiveToken>& fresh) {
  const size_t R = g_.registers(), bytes = g_.state_bytes;
  const auto& device = g_.model.device;
  first_.reserve(device, R * rows.size() * bytes);
  before_.reserve(device, rows.size() * bytes);
  std::vector<HeadRow> reads;
  for (size_t i = 0; i < rows.size(); i++) {
    const auto copy = [&](void* to, int t, size_t r) {
      device->run(&LoopBackend::copy, "first states", to, rows[i]->prompt->last.at((size_t(t - 1) * R + r) * bytes), bytes);
    };
    for (size_t r = 0; r < R; r++) copy(first_.at((r * rows.size() + i) * bytes), loop, r);
    if (loop > 1) copy(before_.at(i * bytes), loop - 1, 0);
    reads.push_back(head_row(*rows[i], HeadRow::Ask::rule, loop, 0));
  }
  Stack::Registers after;
  for (size_t r = 0; r < R; r++) after.push_back(first_.at(r * rows.size() * bytes));
  head_.run(reads, after, before_.as<>());
  std::vector<Row*> staying, done;
  for (size_t i = 0; i < rows.size(); i++) {
    Row& row = *rows[i];
    row.exit = reads[i].exits ? ExitState{} : reads[i].exit;
    row.started = reads[i].exits;
    if (!reads[i].exits) staying.push_back(&row);
    else if (accept(row, reads[i], done)) fresh.push_back({&row, 0, 0, row.newest});
  }
  for (Row* row : done) g_.finish(*row);
  return staying;
}

bool Decode::accept(Row& row, HeadRow& read, std::vector<Row*>& done) {
  if (read.deferred) {
    deferred_.push_back({&row, read.loop});
    if (!read.logits.empty()) g_.event(row.id).logits = std::move(read.logits);
    return false;
  }
  if (g_.add_token(row, std::move(read.drawn))) return true;
  done.push_back(&row);
  return false;
}

// ---- Rows whose draw waited for the host

void Decode::draw_deferred() {
  if (deferred_.empty()) return;
  g_.collect_answers();
  std::vector<HeadRow> reads;
  std::vector<Deferred> waiting, ready;
  for (const Deferred& one : deferred_) {
    (one.row->waits_for_host() ? waiting : ready).push_back(one);
    if (one.row->waits_for_host()) continue;
    reads.push_back(head_row(*one.row, HeadRow::Ask::always, one.loop, 0));
    reads.back().exits = true;
  }
  if (reads.empty()) return;
  head_.draw_deferred(reads);
  deferred_ = std::move(waiting);
  std::vector<ActiveToken> fresh;
  std::vector<Row*> done;
  for (size_t i = 0; i < reads.size(); i++)
    if (accept(*ready[i].row, reads[i], done)) fresh.push_back({ready[i].row, 0, 0, ready[i].row->newest});
  tokens_.insert(tokens_.begin(), fresh.begin(), fresh.end());
  for (Row* row : done) g_.finish(*row);
}

bool Decode::waits_for_host() const {
  return tokens_.empty() && !deferred_.empty() &&
         std::all_of(deferred_.begin(), deferred_.end(), [](const Deferred& one) { return one.row->waits_for_host(); });
}

// ---- Every token one loop further

void Decode::run() {
  if (tokens_.empty()) return;
  if (tokens_.size() == 1)
    if (const auto loops = whole_token_.run(tokens_[0]))
      return settle({whole_token_.state()}, nullptr, HeadRow::Ask::always, *loops);
  Model& model = g_.model;
  const size_t n = tokens_.size();
  const size_t fresh = size_t(std::count_if(tokens_.begin(), tokens_.end(), [](auto& token) { return token.loop == 0; }));
  CacheUse use;
  int32_t last_position = 0;
  const int32_t* ints = inputs_.upload_rows(tokens_, use, last_position);
  DeviceBatch batch{int64_t(n), nullptr, ints, nullptr, 0, 0, 0, last_position};
  if (model.weights().adapter_loops > 0) batch.loops = PassInputs::loops(tokens_);
  Stack stack(model, model.weights(), batch, 1, Stack::Keep::nothing, &use);
  if (fresh > 0) inputs_.begin(stack, tokens_, fresh, ints, last_position);
  states_.load(stack, fresh);
  // What differs from pass to pass lies in device memory: the registers, and each row's position, slots and loop.
  std::vector<uint64_t> key{n,
                            uint64_t(reinterpret_cast<uintptr_t>(inputs_.rows())),
                            model.stack_memory().generation,
                            model.placement(),
                            g_.cache.generation(),
                            uint64_t(reinterpret_cast<uintptr_t>(model.rope_table(last_position + 1)))};
  for (const LoopRows& of : batch.loops) key.push_back(uint64_t(of.count) << 32 | uint64_t(of.loop));
  const bool replayed = graphs_.run(key, [&] { stack.forward_loops(nullptr); });
  g_.count([&](SchedulerStats& s) {
    s.passes++;
    s.pass_rows += int64_t(n);
    s.replayed_passes += replayed;
  });
  settle(stack.outputs(0), stack.input(), HeadRow::Ask::rule, 1);
}

void Decode::drop(const Row& row) {
  std::erase_if(deferred_, [&](const Deferred& one) { return one.row == &row; });
  std::vector<ActiveToken> kept;
  std::vector<int32_t> index;
  int32_t carried = 0;
  for (const ActiveToken& token : tokens_) {
    if (token.row != &row) {
      kept.push_back(token);
      if (token.loop > 0) index.push_back(carried);
    }
    if (token.loop > 0) carried++;
  }
  if (kept.size() == tokens_.size()) return;
  states_.keep(index);
  tokens_ = std::move(kept);
}

// ---- After the loops

// Who goes to the head, and the tokens of the next pass. after: registers behind the loop, act [tokens, D] each; before: register
// 0 before it. ask: of rows that do not draft. Memory is reserved before anything changes.
void Decode::settle(const Stack::Registers& after, const void* before, HeadRow::Ask ask, int loops) {
  std::vector<HeadRow> reads;
  size_t most = 0;  // tokens of the next pass; a draft that begins to be verified brings those before it
  for (const ActiveToken& token : tokens_) {
    const int loop = token.loop + loops;
    most += size_t(token.ahead) + 1;
    const auto asked = Speculation::drafts(*token.row) ? Speculation::ask(token, loop) : ask;
    reads.push_back(head_row(*token.row, asked, loop, token.ahead));
  }
  head_.run(reads, after, before);
  states_.reserve(most);
  for (ActiveToken& token : tokens_) token.loop += loops;

  Next next;
  for (size_t i = 0; i < tokens_.size(); i++)
    if (Speculation::drafts(*tokens_[i].row)) settle_draft(i, reads, after, next);
    else settle_plain(i, reads, next);
  states_.gather(next.index, after);
  for (const auto& [to, row, ahead] : next.from_drafts)
    for (size_t r = 0; r < g_.registers(); r++)
      g_.model.device->run(&LoopBackend::copy, "drafted states", states_.at(r, to), speculation_.kept(*row, ahead, r),
                           g_.state_bytes);
  tokens_ = std::move(next.fresh);
  tokens_.insert(tokens_.end(), next.staying.begin(), next.staying.end());
  for (Row* row : next.done) g_.finish(*row);
}

void Decode::settle_plain(size_t i, std::vector<HeadRow>& reads, Next& next) {
  const ActiveToken& token = tokens_[i];
  Row& row = *token.row;
  HeadRow& read = reads[i];
  row.exit = read.exits ? ExitState{} : read.exit;
  if (!read.exits) {
    next.index.push_back(int32_t(i));
    next.staying.push_back(token);
    return;
  }
  g_.cache.copy_up(row.slot + row.made - 1, token.loop - 1, row.max_loops);
  if (accept(row, read, next.done)) next.fresh.push_back({&row, 0, 0, row.newest});
}

void Decode::settle_draft(size_t i, std::vector<HeadRow>& reads, const Stack::Registers& after, Next& next) {
  const ActiveToken& token = tokens_[i];
  Row& row = *token.row;
  if (token.loop == row.max_loops) {
    if (token.ahead > 0) return;  // verified with the first
    size_t count = 1;
    while (i + count < tokens_.size() && tokens_[i + count].row == &row) count++;
    if (speculation_.verify(row, &reads[i], count)) next.fresh.push_back({&row, 0, 0, row.newest});
    else next.done.push_back(&row);
  } else if (!row.verifying && token.loop == row.request.draft_loops) {
    speculation_.keep(token, after, i);
    if (reads[i].exits) {
      row.drafts.push_back(reads[i].drawn.token);
      next.fresh.push_back({&row, token.ahead + 1, 0, reads[i].drawn.token});
      return;
    }
    row.verifying = true;
    for (int32_t k = 0; k <= token.ahead; k++) {
      next.from_drafts.push_back({next.index.size(), &row, k});
      next.index.push_back(int32_t(i));  // replaced by the kept ones
      next.staying.push_back({&row, k, token.loop, -1});
    }
  } else {
    next.index.push_back(int32_t(i));
    next.staying.push_back(token);
  }
}

}  // namespace looplm

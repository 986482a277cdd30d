#include "decode.h"

#include <algorithm>

namespace looplm {

namespace {

HeadRow head_row(const ActiveToken& token, HeadRow::Ask ask, int loop) {
  HeadRow r{ask, loop, token.row, token.made()};
  r.exit = token.exit;
  return r;
}

}  // namespace

void Decode::clear() noexcept {
  tokens_.clear();
  deferred_.clear();
  states_.clear();
}

// ---- The first token of each row

void Decode::start_rows() {
  std::vector<ActiveToken> open;  // the last token of each prompt
  for (auto& [id, row] : g_.rows)
    if (!row.started && row.prompt->ready) open.push_back({&row, 0, 1, row.prompt->tokens.back()});
  while (!open.empty()) {
    std::vector<ActiveToken> staying, here;
    for (const ActiveToken& token : open) {
      const bool passes = token.row->request.exit.rule == ExitRule::fixed && token.loop < token.row->max_loops;
      (passes ? staying : here).push_back(token);
    }
    std::vector<ActiveToken> fresh;
    if (!here.empty())
      for (const ActiveToken& token : read_first(here, fresh)) staying.push_back(token);
    tokens_.insert(tokens_.begin(), fresh.begin(), fresh.end());
    for (ActiveToken& token : staying) token.loop++;
    open = std::move(staying);
  }
}

// tokens: all after the same loop. Returns those that do not exit there. For each row whose token exits, adds its first new
// token to `fresh`.
std::vector<ActiveToken> Decode::read_first(const std::vector<ActiveToken>& tokens, std::vector<ActiveToken>& fresh) {
  const size_t R = g_.registers(), bytes = g_.state_bytes, n = tokens.size();
  const auto& device = g_.model.device;
  first_.reserve(device, R * n * bytes);
  before_.reserve(device, n * bytes);
  std::vector<HeadRow> reads;
  for (size_t i = 0; i < n; i++) {
    const auto& [row, ahead, loop, last, exit, readouts] = tokens[i];
    const Buffer& states = row->prompt->last;
    const auto copy = [&](void* to, int t, size_t r) {
      device->run(&LoopBackend::copy, "first states", to, states.at((size_t(t - 1) * R + r) * bytes), bytes);
    };
    for (size_t r = 0; r < R; r++) copy(first_.at((r * n + i) * bytes), loop, r);
    if (loop > 1) copy(before_.at(i * bytes), loop - 1, 0);
    reads.push_back(head_row(tokens[i], HeadRow::Ask::rule, loop));
  }
  Stack::Registers after;
  for (size_t r = 0; r < R; r++) after.push_back(first_.at(r * n * bytes));
  head_.run(reads, after, before_.as<>());
  std::vector<ActiveToken> staying;
  std::vector<Row*> done;
  for (size_t i = 0; i < n; i++) {
    Row& row = *tokens[i].row;
    row.started = reads[i].exits;
    if (!reads[i].exits) {
      staying.push_back(tokens[i]);
      staying.back().exit = reads[i].exit;
    } else if (accept(row, reads[i], done)) {
      fresh.push_back(fresh_token(row, 0, row.newest));
    }
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

// ---- Rows that wait for the host's answer before their draw

void Decode::draw_deferred() {
  if (deferred_.empty()) return;
  g_.collect_answers();
  std::vector<HeadRow> reads;
  std::vector<Deferred> waiting, ready;
  for (const Deferred& one : deferred_) {
    (one.row->waits_for_host() ? waiting : ready).push_back(one);
    if (one.row->waits_for_host()) continue;
    reads.push_back(head_row({one.row, 0, one.loop, one.row->newest}, HeadRow::Ask::always, one.loop));
    reads.back().exits = true;
  }
  if (reads.empty()) return;
  head_.draw_deferred(reads);
  deferred_ = std::move(waiting);
  std::vector<ActiveToken> fresh;
  std::vector<Row*> done;
  for (size_t i = 0; i < reads.size(); i++)
    if (accept(*ready[i].row, reads[i], done)) fresh.push_back(fresh_token(*ready[i].row, 0, ready[i].row->newest));
  tokens_.insert(tokens_.begin(), fresh.begin(), fresh.end());
  for (Row* row : done) g_.finish(*row);
}

bool Decode::waits_for_host() const {
  return tokens_.empty() && !deferred_.empty() &&
         std::all_of(deferred_.begin(), deferred_.end(), [](const Deferred& one) { return one.row->waits_for_host(); });
}

// ---- One pass: every token runs one more loop

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
  // The key of a recording holds all sizes and addresses. Everything else that differs between passes is in device memory:
  // registers, and the position, slots and loop of each row.
  std::vector<uint64_t> key{n,
                            uint64_t(reinterpret_cast<uintptr_t>(inputs_.rows())),
                            model.stack_memory().generation,
                            model.placement(),
                            g_.cache.generation(),
                            uint64_t(reinterpret_cast<uintptr_t>(model.rope_table(last_position + 1)))};
  for (const void* recent : {static_cast<const void*>(use.coded.rows), static_cast<const void*>(use.coded.contexts),
                             static_cast<const void*>(use.coded.residual_at)})
    key.push_back(uint64_t(reinterpret_cast<uintptr_t>(recent)));
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

// Runs the head for the tokens that need it, and builds the next pass. after: registers after the loop, act [tokens, D] each.
// before: register 0 before it. ask: exit decision for rows that do not draft. All memory is reserved before anything
// changes.
void Decode::settle(const Stack::Registers& after, const void* before, HeadRow::Ask ask, int loops) {
  std::vector<HeadRow> reads;
  size_t most = 0;  // tokens of the next pass, at most; a draft whose verification starts brings all drafted tokens before it
  for (const ActiveToken& token : tokens_) {
    const int loop = token.loop + loops;
    most += size_t(token.ahead) + 1;
    const auto asked = Speculation::drafts(*token.row) ? speculation_.ask(token, loop) : ask;
    reads.push_back(head_row(token, asked, loop));
    reads.back().drafts = Wavefront::reads(token, loop);
  }
  head_.run(reads, after, before);
  states_.reserve(most);
  g_.cache.reserve_tokens(tokens_.size());
  for (ActiveToken& token : tokens_) token.loop += loops;

  NextPass next;
  for (size_t i = 0; i < tokens_.size(); i++)
    if (Speculation::drafts(*tokens_[i].row)) settle_draft(i, reads, after, next);
    else if (!Wavefront::ahead(*tokens_[i].row)) settle_plain(i, reads, next);
  settle_waves(reads, next);
  g_.encode_exited();
  states_.gather(next.index, after);
  for (const auto& [to, row, ahead] : next.from_drafts)
    for (size_t r = 0; r < g_.registers(); r++)
      g_.model.device->run(&LoopBackend::copy, "drafted states", states_.at(r, to), speculation_.kept(*row, ahead, r),
                           g_.state_bytes);
  tokens_ = std::move(next.fresh);
  tokens_.insert(tokens_.end(), next.staying.begin(), next.staying.end());
  for (Row* row : next.done) g_.finish(*row);
}

void Decode::settle_plain(size_t i, std::vector<HeadRow>& reads, NextPass& next) {
  ActiveToken& token = tokens_[i];
  Row& row = *token.row;
  HeadRow& read = reads[i];
  token.exit = read.exit;
  if (!read.exits) return next.stay(token, i);
  g_.exit_token(row, token);
  if (accept(row, read, next.done)) next.fresh.push_back(fresh_token(row, 0, row.newest));
}

void Decode::settle_waves(std::vector<HeadRow>& reads, NextPass& next) {
  std::vector<Row*> rows;  // in the order of the pass
  std::map<Row*, std::vector<size_t>> members;
  for (size_t i = 0; i < tokens_.size(); i++) {
    Row* row = tokens_[i].row;
    if (!Wavefront::ahead(*row)) continue;
    if (members[row].empty()) rows.push_back(row);
    members[row].push_back(i);
  }
  for (Row* row : rows) {
    auto& own = members[row];
    std::sort(own.begin(), own.end(), [&](size_t a, size_t b) { return tokens_[a].ahead < tokens_[b].ahead; });
    wavefront_.settle(own, tokens_, reads, next);
  }
}

void Decode::settle_draft(size_t i, std::vector<HeadRow>& reads, const Stack::Registers& after, NextPass& next) {
  const ActiveToken& token = tokens_[i];
  Row& row = *token.row;
  if (token.loop == row.max_loops) {
    if (token.ahead > 0) return;  // verified together with the first token of the draft
    size_t count = 1;
    while (i + count < tokens_.size() && tokens_[i + count].row == &row) count++;
    for (size_t k = 0; k < count; k++) g_.exit_token(row, tokens_[i + k]);
    if (speculation_.verify(row, &reads[i], count)) next.fresh.push_back(fresh_token(row, 0, row.newest));
    else next.done.push_back(&row);
  } else if (!row.verifying && token.loop == row.request.draft_loops) {
    speculation_.keep(token, after, i);
    if (reads[i].exits) {
      row.drafts.push_back(reads[i].drawn.token);
      next.fresh.push_back(fresh_token(row, token.ahead + 1, reads[i].drawn.token));
      return;
    }
    row.verifying = true;
    for (int32_t k = 0; k <= token.ahead; k++) {
      next.from_drafts.push_back({next.index.size(), &row, k});
      next.stay({&row, k, token.loop, -1}, i);  // its registers are replaced by those that were kept for the draft
    }
  } else {
    next.stay(token, i);
  }
}

}  // namespace looplm

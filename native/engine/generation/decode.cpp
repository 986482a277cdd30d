#include "decode.h"

#include <algorithm>
#include <cmath>

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
  states_.tokens = 0;
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
  memory_.first.reserve(device, R * rows.size() * bytes);
  memory_.before.reserve(device, rows.size() * bytes);
  std::vector<HeadRow> reads;
  for (size_t i = 0; i < rows.size(); i++) {
    const auto copy = [&](void* to, int t, size_t r) {
      device->run(&LoopBackend::copy, "first states", to, rows[i]->prompt->last.at((size_t(t - 1) * R + r) * bytes), bytes);
    };
    for (size_t r = 0; r < R; r++) copy(memory_.first.at((r * rows.size() + i) * bytes), loop, r);
    if (loop > 1) copy(memory_.before.at(i * bytes), loop - 1, 0);
    reads.push_back(head_row(*rows[i], HeadRow::Ask::rule, loop, 0));
  }
  Stack::Registers after;
  for (size_t r = 0; r < R; r++) after.push_back(memory_.first.at(r * rows.size() * bytes));
  head_.run(reads, after, memory_.before.as<>());
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

// ---- One token alone, all loops in one call

// Where the backend has such a call and the row's exit rule needs no head.
bool Decode::whole_token_allowed(std::vector<LoopDecodeLayer>& layers) const {
  if (tokens_.size() != 1 || tokens_[0].loop > 0) return false;
  const Row& row = *tokens_[0].row;
  const unsigned needs = entry_of(row.request.exit.rule).needs;
  if (Speculation::drafts(row) || (needs & ~unsigned(exit_needs::gate)) || !g_.architecture().is_plain_sandwich()) return false;
  const Weights& w = g_.model.weights();
  if (w.shift_rank > 0) return false;
  for (int32_t l = 0; l < g_.architecture().layers; l++) {
    const LayerWeights& of = w.layers[size_t(l)];
    for (const Linear* linear : {&of.qkv, &of.output, &of.gate_up, &of.down})
      if (linear->quantized || !linear->adapters.empty()) return false;
    const auto [keys, values] = g_.cache.planes(l);
    layers.push_back({of.attention_norm, of.qkv.weight, of.output.weight, of.attention_norm_2, of.mlp_norm, of.gate_up.weight,
                      of.down.weight, of.mlp_norm_2, keys, values});
  }
  return true;
}

// False when nothing has happened.
bool Decode::whole_token() {
  std::vector<LoopDecodeLayer> layers;
  if (!whole_token_allowed(layers)) return false;
  Model& model = g_.model;
  const Row& row = *tokens_[0].row;
  const Weights& w = model.weights();
  const Architecture& c = model.config;
  const ExitOptions& exit = row.request.exit;
  const int32_t length = int32_t(row.prompt->tokens.size()), position = tokens_[0].position();
  memory_.token.reserve(model.device, g_.state_bytes + 64);
  memory_.exit_loop.reserve(model.device, sizeof(int32_t));
  LoopDecodeToken t{};
  t.layers = c.layers, t.heads = c.heads, t.kv_heads = c.kv_heads, t.head_dim = c.head_dim;
  t.hidden = c.hidden, t.intermediate = c.intermediate;
  t.norm_eps = c.norm_eps, t.scale = 1.0 / std::sqrt(double(c.head_dim));
  t.host_layers = layers.data();
  t.norm = w.norms[0], t.gate_weight = w.gate_weight, t.gate_bias = w.gate_bias;
  t.cos_sin = model.rope_table(position + 1);
  t.embedded = static_cast<const char*>(w.embedding) + size_t(tokens_[0].token) * g_.state_bytes;
  t.position = position;
  t.slot = g_.cache.slot_at(0, row.slot + row.made - 1);
  t.context = {g_.cache.slot_at(0, row.prompt->slot), length, g_.cache.slot_at(0, row.slot), row.made};
  t.plane = g_.cache.slot_at(1, 0);
  t.loops = row.max_loops, t.min_loops = exit.min_loops, t.threshold = exit.threshold;
  t.with_gate = exit.rule == ExitRule::gate;
  t.state = memory_.token.as<>();
  t.left = memory_.exit_loop.as<int32_t>();
  if (!model.device->attempt(&LoopBackend::decode_token, "decode token", model.dt, static_cast<const LoopDecodeToken*>(&t)))
    return false;
  int32_t loops = row.max_loops;
  if (t.with_gate) memory_.exit_loop.download(&loops, sizeof loops);
  g_.count([&](SchedulerStats& s) {
    s.passes += loops;
    s.pass_rows += loops;
    s.whole_tokens++;
  });
  settle({memory_.token.as<>()}, nullptr, HeadRow::Ask::always, loops);
  return true;
}

// ---- Every token one loop further

void Decode::run() {
  if (tokens_.empty() || whole_token()) return;
  Model& model = g_.model;
  const size_t n = tokens_.size();
  const size_t fresh = size_t(std::count_if(tokens_.begin(), tokens_.end(), [](auto& token) { return token.loop == 0; }));
  CacheUse use;
  int32_t last_position = 0;
  const int32_t* ints = upload_rows(use, last_position);
  DeviceBatch batch{int64_t(n), nullptr, ints, nullptr, 0, 0, 0, last_position};
  if (model.weights().adapter_loops > 0) batch.loops = loops_of_rows();
  Stack stack(model, model.weights(), batch, 1, Stack::Keep::nothing, &use);
  if (fresh > 0) begin(stack, fresh, ints, last_position);
  load_states(stack, fresh);
  // What differs from pass to pass lies in device memory: the registers, and each row's position, slots and loop.
  std::vector<uint64_t> key{n,
                            uint64_t(reinterpret_cast<uintptr_t>(memory_.rows.as<>())),
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

// Neighbouring rows at the same loop: an adapter of every loop's own is added to them together.
std::vector<LoopRows> Decode::loops_of_rows() const {
  std::vector<LoopRows> out;
  for (size_t i = 0; i < tokens_.size(); i++) {
    if (out.empty() || out.back().loop != tokens_[i].loop) out.push_back({int64_t(i), 0, tokens_[i].loop});
    out.back().count++;
  }
  return out;
}

// All that differs between passes, in one copy: contexts, then positions [n], slots [n], those of the tokens before [n], and the
// token ids of the fresh.
const int32_t* Decode::upload_rows(CacheUse& use, int32_t& last_position) {
  Cache& cache = g_.cache;
  const size_t n = tokens_.size(), context_bytes = n * sizeof(LoopCacheContext);
  std::vector<LoopCacheContext> contexts;
  std::vector<int32_t> positions, slots, before, ids;
  for (const ActiveToken& token : tokens_) {
    const Row& row = *token.row;
    if (token.loop == 0) ids.push_back(token.token);
    positions.push_back(token.position());
    last_position = std::max(last_position, positions.back());
    slots.push_back(cache.slot_at(token.loop, row.slot + token.made() - 1));
    before.push_back(cache.slot_at(token.loop, slot_before(token)));
    contexts.push_back({cache.slot_at(token.loop, row.prompt->slot), int32_t(row.prompt->tokens.size()),
                        cache.slot_at(token.loop, row.slot), token.made()});
  }
  std::vector<char> bytes(context_bytes + (3 * n + ids.size()) * sizeof(int32_t));
  char* end = std::copy_n(reinterpret_cast<const char*>(contexts.data()), context_bytes, bytes.data());
  for (const auto* ints : {&positions, &slots, &before, &ids})
    end = std::copy_n(reinterpret_cast<const char*>(ints->data()), ints->size() * sizeof(int32_t), end);
  memory_.rows.reserve(g_.model.device, n * (sizeof(LoopCacheContext) + 4 * sizeof(int32_t)));
  memory_.rows.upload(bytes.data(), bytes.size());
  const auto* ints = static_cast<const int32_t*>(memory_.rows.at(context_bytes));
  use = cache.decoding(ints + n, memory_.rows.as<LoopCacheContext>(), ints + 2 * n);
  return ints;
}

// The registers of fresh tokens before their first loop, at the front of the loop's own. ints: as upload_rows made them.
void Decode::begin(const Stack& loop, size_t fresh, const int32_t* ints, int32_t last_position) {
  Model& model = g_.model;
  DeviceBatch batch{int64_t(fresh), ints + 3 * tokens_.size(), ints, nullptr, 0, 0, 0, last_position};
  batch.states = initial_states(fresh);
  CacheUse use{};
  const bool with_blocks = model.config.blocks(model.config.begin) > 0;
  if (with_blocks) {
    std::vector<LoopCacheContext> contexts;
    std::vector<int32_t> slots, before;
    for (size_t i = 0; i < fresh; i++) {
      const Row& row = *tokens_[i].row;
      const int32_t made = tokens_[i].made();
      slots.push_back(int32_t(row.slot) + made - 1);
      before.push_back(int32_t(slot_before(tokens_[i])));
      contexts.push_back({int32_t(row.prompt->slot), int32_t(row.prompt->tokens.size()), int32_t(row.slot), made});
    }
    use = g_.cache.decoding(upload(model.device, memory_.begin_slots, slots),
                            upload(model.device, memory_.begin_contexts, contexts),
                            upload(model.device, memory_.begin_before, before));
  }
  Stack stack(model, model.weights(), batch, 1, Stack::Keep::nothing, with_blocks ? &use : nullptr);
  stack.forward_begin(loop.inputs());
}

// As score draws them: of the tokens up to each, drafted ones too.
const void* Decode::initial_states(size_t fresh) {
  const Architecture& a = g_.architecture();
  if (!begins_with_state(a)) return nullptr;
  const size_t D = size_t(a.hidden);
  std::vector<double> values(fresh * D);
  for (size_t i = 0; i < fresh; i++) {
    const ActiveToken& token = tokens_[i];
    const InitialStates& states = token.row->request.states;
    if (!states.given.empty()) {
      std::copy_n(&states.given[size_t(token.position()) * D], D, &values[i * D]);
    } else if (!states.zeros) {
      StateKey key = token.row->state_key;
      for (int32_t k = 0; k < token.ahead; k++) key.append(token.row->drafts[size_t(k)]);
      key.draw(a, states.seed, &values[i * D]);
    }
  }
  return upload(g_.model.device, memory_.initial, rounded(g_.model.dt, values));
}

void Decode::load_states(const Stack& loop, size_t fresh) {
  const size_t bytes = g_.state_bytes, staying = tokens_.size() - fresh;
  if (staying == 0) return;
  for (size_t r = 0; r < g_.registers(); r++)
    g_.model.device->run(&LoopBackend::copy, "states", static_cast<char*>(loop.inputs()[r]) + fresh * bytes,
                         states_.values.at(r * states_.tokens * bytes), staying * bytes);
}

// states_ = rows `index` of `from`
void Decode::gather_states(const std::vector<int32_t>& index, const Stack::Registers& from) {
  const size_t bytes = g_.state_bytes;
  next_states_.values.reserve(g_.model.device, g_.registers() * std::max<size_t>(1, index.size()) * bytes);
  next_states_.tokens = index.size();
  for (size_t r = 0; r < g_.registers(); r++)
    gather_.into(next_states_.values.at(r * index.size() * bytes), g_.model.dt, index, g_.architecture().hidden, from[r]);
  std::swap(states_, next_states_);
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
  Stack::Registers from;
  for (size_t r = 0; r < g_.registers(); r++) from.push_back(states_.values.at(r * states_.tokens * g_.state_bytes));
  gather_states(index, from);
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
  next_states_.values.reserve(g_.model.device, g_.registers() * most * g_.state_bytes);
  gather_.reserve(most);
  for (ActiveToken& token : tokens_) token.loop += loops;

  Next next;
  for (size_t i = 0; i < tokens_.size(); i++)
    if (Speculation::drafts(*tokens_[i].row)) settle_draft(i, reads, after, next);
    else settle_plain(i, reads, next);
  gather_states(next.index, after);
  for (const auto& [to, row, ahead] : next.from_drafts)
    for (size_t r = 0; r < g_.registers(); r++)
      g_.model.device->run(&LoopBackend::copy, "drafted states", states_.values.at((r * states_.tokens + to) * g_.state_bytes),
                           speculation_.kept(*row, ahead, r), g_.state_bytes);
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

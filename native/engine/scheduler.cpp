#include "scheduler.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <string>

#include "cache.h"
#include "readout.h"
#include "replays.h"

namespace looplm {

namespace {

// A prompt that some rows share. Its keys lie in [slot, slot + tokens.size()).
struct Prompt {
  std::vector<int32_t> tokens;
  int loops;  // it ran, or will run, this many
  int64_t slot;
  int64_t done = 0;  // tokens whose keys are in the cache; of a shared cache those of the loop under way
  int users = 0;
  Buffer last;    // act [loops, D]: the state after every loop at its last token, once all of it has run
  int loop = 0;   // of a shared cache: loops that all tokens have completed,
  Buffer states;  // act [tokens, D]: and the states that the next loop starts from
  int64_t written() const { return loop > 0 ? int64_t(tokens.size()) : done; }
  bool ready() const { return done == int64_t(tokens.size()); }
};

// A request that has its place in the batch.
struct Row {
  int64_t id;
  GenerateRequest request;
  int max_loops;
  Prompt* prompt;
  int64_t slot;  // keys of its new tokens lie from here on
  int32_t place;
  bool started = false;  // its first token was drawn
  int made = 0;          // new tokens
  int32_t newest = -1;   // of them
  // Of the token under way
  double stay = 1;
  int32_t best = -1;
  std::vector<int32_t> drafts;  // tokens drafted behind the newest one
  bool verifying = false;
  int32_t slots() const { return request.max_new_tokens - 1; }  // the last token's keys are never read
};

// One token on its way through the loops.
struct Item {
  Row* row;
  int32_t ahead;  // drafted tokens before it, behind the newest real one
  int loop;       // loops completed
  int32_t token;
};

void check_request(const Model& model, const GenerateRequest& r, int loops, bool shared) {
  auto require = [](bool ok, const std::string& what) {
    if (!ok) throw Error("INVALID_ARGUMENT", "generate", what);
  };
  require(!r.prompt.empty(), "the prompt is empty: give at least one token (a beginning-of-text token, say)");
  for (int32_t id : r.prompt)
    require(id >= 0 && id < model.config.vocabulary,
            "token id " + std::to_string(id) + " is outside the vocabulary of " + std::to_string(model.config.vocabulary));
  require(r.max_new_tokens >= 1, "maxNewTokens must be at least 1");
  const Sampling& s = r.sampling;
  require(s.temperature == 0 || (s.temperature >= 1e-6 && std::isfinite(s.temperature)),
          "temperature must be 0 (greedy) or at least 1e-6");
  require(s.top_k >= 0 && s.top_p > 0 && s.top_p <= 1 && s.min_p >= 0 && s.min_p < 1,
          "topK must be >= 0, topP in (0, 1], minP in [0, 1)");
  require(r.exit.rule != ExitRule::gate || model.config.exit_gate,
          "exit rule gate needs an exit gate, and this model of family " + model.config.family +
              " has none of its own: create or load the model with exitGate: true, and train it");
  require(r.alternatives >= 0, "the number of alternatives must be at least 0");
  require(r.exit.max_loops <= loops,
          "loops " + std::to_string(r.exit.max_loops) + " are more than the scheduler's " + std::to_string(loops));
  const int most = r.exit.max_loops > 0 ? r.exit.max_loops : loops;
  const int adapted = model.weights().adapter_loops;
  require(adapted == 0 || most <= adapted,
          "the adapter has matrices for " + std::to_string(adapted) + " loops, not for " + std::to_string(most));
  require(r.exit.min_loops >= 1 && r.exit.min_loops <= most,
          "minLoops must be between 1 and the " + std::to_string(most) + " loops that a token may take");
  require(!std::isnan(r.exit.threshold), "the exit threshold is not a number");
  if (r.draft_loops == 0) return;
  require(r.draft_loops >= 1 && r.draft_loops < most && r.draft_tokens >= 2,
          "a draft takes at least 1 loop, fewer than the " + std::to_string(most) + " of full depth, and at least 2 tokens");
  require(r.exit.rule == ExitRule::fixed && !shared,
          "speculation needs exit rule fixed and kv per-loop: it gives full depth's tokens");
}

}  // namespace

struct Scheduler::State {
  const std::shared_ptr<Model> held;
  Model& model;
  const SchedulerOptions options;
  const int loops;
  const size_t act;
  Cache cache;
  Readout readout;
  Replays replays;  // of passes

  // What other threads touch
  mutable std::mutex mutex;
  std::deque<std::pair<int64_t, GenerateRequest>> arrived;
  std::vector<int64_t> cancelled;
  SchedulerStats figures;
  int64_t next_id = 1;

  // What belongs to `run`
  std::deque<std::pair<int64_t, GenerateRequest>> waiting;
  std::map<int64_t, Row> rows;  // by request: older first
  std::vector<std::unique_ptr<Prompt>> prompts;
  int32_t places = 0;                // that rows have had so far
  std::vector<int32_t> free_places;  // of those
  int64_t blocked = 0;               // the first request that waits, when it found no room and no row has gone since
  int64_t prefill_tokens;            // options.prefill_tokens, or less when that many found no memory
  const size_t device_bytes;
  std::vector<Item> items;  // fresh ones (loop 0) first; `states` has those of the others, in their order
  Buffer states, next_states;
  Buffer drafted;  // act [max_rows, most draft tokens, D]: states after the draft's loops
  int32_t draft_places = 0, draft_width = 0;
  std::map<int64_t, GenerateEvent> events;

  State(std::shared_ptr<Model> m, const SchedulerOptions& o)
      : held(std::move(m)),
        model(*held),
        options(o),
        loops(o.loops > 0 ? o.loops : model.config.loops),
        act(loop_dtype_size(model.dt)),
        cache(model, loops, o.shared_cache, o.max_tokens, [this] { return written(); }),
        readout(model),
        replays(model.device),
        prefill_tokens(o.prefill_tokens),
        device_bytes(model.device->memory().total) {
    if (model.config.registers > 1 || !model.config.read.empty() || model.config.prefix_sees_itself)
      throw Error("UNSUPPORTED", "generate",
                  "models of family " + model.config.family + " are scored and trained, but not generated with yet");
    if (o.max_rows < 1 || o.max_tokens < 0 || o.prefill_tokens < 1)
      throw Error("INVALID_ARGUMENT", "scheduler", "maxRows and prefillTokens must be at least 1, maxTokens at least 0");
  }

  // The slots that hold keys and values; a draft's lie behind the tokens that are made.
  Cache::Runs written() const {
    Cache::Runs runs;
    for (auto& p : prompts)
      if (p->written() > 0) runs.emplace_back(p->slot, p->written());
    for (auto& [id, row] : rows)
      if (const int64_t count = std::min(row.slots(), row.made + row.request.draft_tokens); count > 0 && row.made > 0)
        runs.emplace_back(row.slot, count);
    return runs;
  }
  size_t state_bytes() const { return size_t(model.config.hidden) * act; }

  // ---- Requests ----

  void take_in() {
    std::vector<int64_t> leave;
    {
      std::lock_guard lock(mutex);
      for (auto& request : arrived) waiting.push_back(std::move(request));
      arrived.clear();
      leave.swap(cancelled);
    }
    for (int64_t id : leave) {
      events.erase(id);
      const auto queued = std::find_if(waiting.begin(), waiting.end(), [&](auto& request) { return request.first == id; });
      if (queued != waiting.end()) waiting.erase(queued);
      if (const auto row = rows.find(id); row != rows.end()) {
        drop_items(&row->second);
        release(row->second);
        rows.erase(row);
      }
    }
  }

  // Takes a row's tokens out of the pass; the states of the others close up.
  void drop_items(Row* row) {
    std::vector<Item> kept;
    std::vector<int32_t> index;
    int32_t carried = 0;
    for (const Item& item : items) {
      if (item.row != row) {
        kept.push_back(item);
        if (item.loop > 0) index.push_back(carried);
      }
      if (item.loop > 0) carried++;
    }
    if (kept.size() == items.size()) return;
    gather(index, states.as<>());
    items = std::move(kept);
  }
  // states = rows `index` of `from`
  void gather(const std::vector<int32_t>& index, const void* from) {
    next_states.reserve(model.device, std::max<size_t>(1, index.size()) * state_bytes());
    if (!index.empty())
      model.device->run(&LoopBackend::gather_rows, "gather rows", model.dt, int64_t(index.size()), model.config.hidden,
                        upload_ints(model.workspace(), "scheduler.index", index), from, next_states.as<>());
    std::swap(states, next_states);
  }

  void release(Row& row) {
    blocked = 0;
    cache.give(row.slot, row.slots());
    free_places.push_back(row.place);
    if (--row.prompt->users == 0) {
      cache.give(row.prompt->slot, int64_t(row.prompt->tokens.size()));
      prompts.erase(std::find_if(prompts.begin(), prompts.end(), [&](auto& p) { return p.get() == row.prompt; }));
    }
  }

  // First come, first served: a request that does not fit holds back those behind it, so that none waits for ever. One that does
  // not fit although nothing else is there fails.
  void admit() {
    if (rows.empty()) prefill_tokens = options.prefill_tokens;
    while (!waiting.empty() && waiting.front().first != blocked && (places < options.max_rows || !free_places.empty())) {
      const int64_t id = waiting.front().first;
      GenerateRequest& request = waiting.front().second;
      const int most = request.exit.max_loops > 0 ? request.exit.max_loops : loops;
      const auto known =
          std::find_if(prompts.begin(), prompts.end(), [&](auto& p) { return p->loops == most && p->tokens == request.prompt; });
      Prompt* prompt = known == prompts.end() ? nullptr : known->get();
      const int64_t length = int64_t(request.prompt.size()), own = request.max_new_tokens - 1;
      std::unique_ptr<Prompt> made;
      if (!prompt) made = std::make_unique<Prompt>(Prompt{request.prompt, most, 0, 0, 0, {}, 0, {}});
      int64_t prompt_slot = -1, slot = -1;
      for (bool grown = false;; grown = true) {
        prompt_slot = prompt ? prompt->slot : cache.take(length);
        slot = prompt_slot < 0 ? -1 : cache.take(own);
        if (slot >= 0) break;
        if (!prompt && prompt_slot >= 0) cache.give(prompt_slot, length);
        const int64_t wish = cache.used() == 0 ? slots_of_waiting() : 0;
        if (!grown && cache.grow_for(prompt ? own : length + own, wish)) continue;
        if (!rows.empty()) {
          blocked = id;
          return;
        }
        events.try_emplace(id, GenerateEvent{id, {}, Finish::failed, too_large(request, cache.room())});
        waiting.pop_front();
        break;
      }
      if (slot < 0) continue;
      if (made) {
        made->slot = prompt_slot;
        prompt = made.get();
        prompts.push_back(std::move(made));
      }
      prompt->users++;
      const int32_t place = free_places.empty() ? places++ : free_places.back();
      if (!free_places.empty()) free_places.pop_back();
      rows.emplace(id, Row{id, std::move(request), most, prompt, slot, place});
      waiting.pop_front();
    }
  }

  // For all that can begin at once: a call of `generate` knows all it needs.
  int64_t slots_of_waiting() const {
    int64_t slots = 0;
    std::set<std::pair<int, std::vector<int32_t>>> seen;
    size_t n = rows.size();
    for (auto& [id, request] : waiting) {
      if (n++ == size_t(options.max_rows)) break;
      slots += request.max_new_tokens - 1;
      if (seen.emplace(request.exit.max_loops, request.prompt).second) slots += int64_t(request.prompt.size());
    }
    return slots;
  }

  std::string too_large(const GenerateRequest& request, int64_t room) const {
    const int64_t slots = int64_t(request.prompt.size()) + request.max_new_tokens - 1;
    return "a prompt of " + std::to_string(request.prompt.size()) + " tokens and up to " +
           std::to_string(request.max_new_tokens) + " new ones need " + std::to_string(size_t(slots) * cache.slot_bytes()) +
           " bytes of cache (" + std::to_string(cache.slot_bytes()) + " a token), and device \"" + model.device->name() +
           "\" has room for " + std::to_string(room) +
           " tokens: lower maxNewTokens, shorten the prompt, or use kv 'shared' or bfloat16";
  }

  // Does something that may find no memory, and that has then changed nothing. In that case prompts are run in smaller pieces and
  // at last the newest request fails, so that the others go on.
  template <class Step>
  void attempt(Step step) {
    const Remedy remedy(*model.device, "generate fewer sequences at a time, or shorter ones");
    try {
      step();
    } catch (const Error& error) {
      constexpr int64_t FEWEST = 32;
      if (error.code != "OUT_OF_MEMORY" || rows.empty()) throw;
      if (prompts_open() && prefill_tokens > FEWEST) {
        prefill_tokens = std::max(FEWEST, prefill_tokens / 2);
        return;
      }
      Row& newest = rows.rbegin()->second;
      GenerateEvent& event = events.try_emplace(newest.id, GenerateEvent{newest.id, {}, Finish::none, {}}).first->second;
      event.finish = Finish::failed;
      event.failure = error.what();
      drop_items(&newest);
      finish(newest);
    }
  }
  bool prompts_open() const {
    return std::any_of(prompts.begin(), prompts.end(), [](auto& p) { return !p->ready(); });
  }

  // ---- Prompts ----

  struct Piece {  // tokens [from, to) of a prompt
    Prompt* prompt;
    int64_t from, to;
  };

  // Runs a bounded number of prompt tokens, the oldest prompts first. A piece of a prompt reads the earlier ones from the cache.
  // A piece runs at full depth where every loop has a plane. Loops that share one overwrite it, and a piece needs the keys that
  // the earlier ones have at its own loop: there all pieces run a loop, then all of them the next. A turn does as much either
  // way.
  void prefill() {
    std::vector<Prompt*> open;
    for (auto& p : prompts)
      if (!p->ready()) open.push_back(p.get());
    if (open.empty()) return;
    int64_t room = prefill_tokens * (cache.shared() ? loops : 1);
    while (room > 0) {
      const std::vector<Piece> pieces = next_pieces(open, std::min(room, prefill_tokens));
      if (pieces.empty()) break;
      for (const Piece& piece : pieces) room -= piece.to - piece.from;
      run_pieces(pieces);
      if (!cache.shared()) break;
    }
  }

  // Rows whose prompt has run, now or for an earlier row.
  void start_rows() {
    std::vector<Row*> first;
    for (auto& [id, row] : rows)
      if (!row.started && row.prompt->ready()) first.push_back(&row);
    if (!first.empty()) read_first(first);
  }

  // At most one piece of each prompt; at full depth, those of as many loops as the first.
  std::vector<Piece> next_pieces(const std::vector<Prompt*>& open, int64_t room) const {
    std::vector<Piece> pieces;
    for (Prompt* p : open) {
      if (room == 0) break;
      if (p->ready() || (!cache.shared() && !pieces.empty() && p->loops != pieces[0].prompt->loops)) continue;
      const int64_t count = std::min(int64_t(p->tokens.size()) - p->done, room);
      pieces.push_back({p, p->done, p->done + count});
      room -= count;
    }
    return pieces;
  }

  // DeviceBatch::previous: the first row of a piece that continues a prompt finds what the cache has of its predecessor behind
  // the row of those that have none.
  static std::vector<int32_t> rows_before(const std::vector<Piece>& pieces, int64_t tokens) {
    std::vector<int32_t> out;
    int32_t cached = int32_t(tokens) + 1;
    for (const Piece& piece : pieces) {
      out.push_back(piece.from > 0 ? cached++ : int32_t(tokens));
      for (int64_t j = piece.from + 1; j < piece.to; j++) out.push_back(int32_t(out.size()) - 1);
    }
    return out;
  }

  void run_pieces(const std::vector<Piece>& pieces) {
    std::vector<int32_t> ids, positions, slots;
    std::vector<CachedPrefix> prefixes;
    int64_t prefix_rows = 0;
    for (const Piece& piece : pieces) {
      if (piece.from > 0) prefixes.push_back({prefix_rows, piece.prompt->slot, piece.from});
      prefix_rows += piece.from;
    }
    std::vector<LoopSegment> segments;
    int32_t prefix = 0, max_context = 0;
    for (const Piece& piece : pieces) {
      const int32_t begin = int32_t(prefix_rows + int64_t(ids.size())), count = int32_t(piece.to - piece.from);
      segments.push_back({begin, begin + count, prefix, prefix + int32_t(piece.from), int32_t(segments.size())});
      prefix += int32_t(piece.from);
      max_context = std::max(max_context, int32_t(piece.to));
      for (int64_t j = piece.from; j < piece.to; j++) {
        ids.push_back(piece.prompt->tokens[size_t(j)]);
        positions.push_back(int32_t(j));
        slots.push_back(int32_t(piece.prompt->slot + j));
      }
    }
    Workspace& w = model.workspace();
    Buffer& on_device = w.get("batch.segments", segments.size() * sizeof(LoopSegment));
    on_device.upload(segments.data(), segments.size() * sizeof(LoopSegment));
    const int64_t N = int64_t(ids.size());
    DeviceBatch batch{N,
                      upload_ints(w, "batch.ids", ids),
                      upload_ints(w, "batch.positions", positions),
                      on_device.as<LoopSegment>(),
                      int32_t(segments.size()),
                      int32_t(segments.size()),
                      max_context,
                      max_context - 1};
    batch.previous = upload_ints(w, "batch.previous", rows_before(pieces, N));
    if (cache.shared() && model.weights().adapter_loops > 0)  // each prompt is at a loop of its own
      for (int64_t first = 0; const Piece& piece : pieces) {
        batch.loops.push_back({first, piece.to - piece.from, piece.prompt->loop});
        first += piece.to - piece.from;
      }
    const int deep = cache.shared() ? 1 : pieces[0].prompt->loops;
    const CacheUse use =
        cache.prompts(upload_ints(w, "scheduler.slots", slots), prefixes.data(), int32_t(prefixes.size()), prefix_rows);
    Stack stack(model, model.weights(), batch, deep, Stack::Keep::nothing, &use);
    if (cache.shared()) {
      run_one_loop(stack, pieces);
      return;
    }
    stack.forward_tokens();
    int64_t end = 0;
    for (const Piece& piece : pieces) {
      end += piece.to - piece.from;
      if (piece.to == int64_t(piece.prompt->tokens.size())) {
        Buffer last(model.device, size_t(deep) * state_bytes());
        std::vector<int32_t> index;
        for (int t = 0; t < deep; t++) index.push_back(int32_t(t * N + end - 1));
        model.device->run(&LoopBackend::gather_rows, "gather rows", model.dt, int64_t(deep), model.config.hidden,
                          upload_ints(w, "scheduler.index", index), static_cast<const void*>(stack.hidden()), last.as<>());
        piece.prompt->last = std::move(last);
      }
      piece.prompt->done = piece.to;
    }
  }

  // The pieces one loop further, each from and to the states of its prompt.
  void run_one_loop(Stack& stack, const std::vector<Piece>& pieces) {
    const size_t bytes = state_bytes();
    auto copy = [&](void* to, const void* from, int64_t states) {
      model.device->run(&LoopBackend::copy, "states of a prompt", to, from, size_t(states) * bytes);
    };
    size_t row = 0;
    for (const Piece& piece : pieces) {
      Prompt& p = *piece.prompt;
      if (!p.states) {
        const int64_t length = int64_t(p.tokens.size());
        Buffer embedded(model.device, size_t(length) * bytes);
        p.last = Buffer(model.device, size_t(p.loops) * bytes);
        model.device->run(&LoopBackend::embed, "embed", model.dt, length, model.config.hidden,
                          upload_ints(model.workspace(), "scheduler.index", p.tokens),
                          static_cast<const void*>(model.weights().embedding), embedded.as<>());
        p.states = std::move(embedded);
      }
      copy(static_cast<char*>(stack.input()) + row * bytes, p.states.at(size_t(piece.from) * bytes), piece.to - piece.from);
      row += size_t(piece.to - piece.from);
    }
    stack.forward_input();
    const char* after = static_cast<const char*>(stack.hidden());
    for (const Piece& piece : pieces) {
      Prompt& p = *piece.prompt;
      copy(p.states.at(size_t(piece.from) * bytes), after, piece.to - piece.from);
      after += size_t(piece.to - piece.from) * bytes;
      p.done = piece.to;
      if (!p.ready()) continue;
      copy(p.last.at(size_t(p.loop) * bytes), after - bytes, 1);
      if (++p.loop < p.loops) p.done = 0;
      else p.states = Buffer();
    }
  }

  // The first token of rows whose prompt has run: its states are there, the exit rule chooses among them.
  void read_first(std::vector<Row*> open) {
    const size_t bytes = state_bytes();
    for (Row* row : open) row->stay = 1, row->best = -1;  // an attempt before may have found no memory
    for (int t = 0; !open.empty(); t++) {
      std::vector<Row*> still, here;
      for (Row* row : open) {
        const bool passes = row->request.exit.rule == ExitRule::fixed && t + 1 < row->max_loops;
        (passes ? still : here).push_back(row);
      }
      Buffer &now = model.workspace().get("scheduler.first", here.size() * bytes + 1),
             &before = model.workspace().get("scheduler.before", here.size() * bytes + 1);
      std::vector<ReadoutRow> reads;
      for (size_t i = 0; i < here.size(); i++) {
        auto copy = [&](Buffer& to, int loop) {
          model.device->run(&LoopBackend::copy, "first states", to.at(i * bytes),
                            static_cast<const void*>(here[i]->prompt->last.at(size_t(loop) * bytes)), bytes);
        };
        copy(now, t);
        if (t > 0) copy(before, t - 1);
        reads.push_back(read_of(*here[i], ReadoutRow::Wish::rule, t + 1, 0));
      }
      if (!here.empty()) readout.run(reads, now.as<>(), before.as<>(), places);
      std::vector<Item> fresh;
      for (size_t i = 0; i < here.size(); i++) {
        keep_rule_state(*here[i], reads[i]);
        here[i]->started = reads[i].read;
        if (!reads[i].read) still.push_back(here[i]);
        else if (take(*here[i], std::move(reads[i].drawn))) fresh.push_back({here[i], 0, 0, here[i]->newest});
        else finish(*here[i]);
      }
      items.insert(items.begin(), fresh.begin(), fresh.end());
      open = std::move(still);
    }
  }

  ReadoutRow read_of(const Row& row, ReadoutRow::Wish wish, int loop, int32_t ahead) const {
    ReadoutRow r{};
    r.wish = wish;
    r.loop = loop;
    r.place = row.place;
    r.position = int32_t(row.prompt->tokens.size()) + row.made + ahead;
    r.request = &row.request;
    r.max_loops = row.max_loops;
    r.stay = row.stay;
    r.best = row.best;
    return r;
  }
  void keep_rule_state(Row& row, const ReadoutRow& read) {
    row.stay = read.read ? 1 : read.stay;
    row.best = read.read ? -1 : read.best;
  }

  // ---- Tokens ----

  // A new token of a row; false when it is the last.
  bool take(Row& row, GeneratedToken token) {
    GenerateEvent& event = events.try_emplace(row.id, GenerateEvent{row.id, {}, Finish::none, {}}).first->second;
    row.newest = token.token;
    row.made++;
    const auto& stops = row.request.stop_tokens;
    if (std::find(stops.begin(), stops.end(), token.token) != stops.end()) event.finish = Finish::stop;
    else if (row.made >= row.request.max_new_tokens) event.finish = Finish::length;
    event.tokens.push_back(std::move(token));
    return event.finish == Finish::none;
  }
  void finish(Row& row) {
    release(row);
    rows.erase(row.id);
  }

  // ---- The rows under way ----

  // How many positions a speculating row drafts from its newest token on: the last drafted ones would be beyond its length.
  int32_t draft_length(const Row& row) const { return std::min(row.request.draft_tokens, row.request.max_new_tokens - row.made); }

  // One row alone, its token before the loops: all of them in one call, where the backend has one and the row's exit rule needs
  // no head. Otherwise nothing has happened.
  bool whole_token() {
    if (items.size() != 1 || items[0].loop > 0) return false;
    Row& row = *items[0].row;
    const Exit& exit = row.request.exit;
    const bool gate = exit.rule == ExitRule::gate;
    if (row.request.draft_loops > 0 || !(gate || exit.rule == ExitRule::fixed)) return false;
    const Weights& w = model.weights();
    if (!model.config.is_plain_sandwich() || w.shift_rank > 0) return false;
    std::vector<LoopDecodeLayer> layers;
    for (int32_t l = 0; l < model.config.layers; l++) {
      const LayerWeights& of = w.layers[size_t(l)];
      for (const Linear* linear : {&of.qkv, &of.output, &of.gate_up, &of.down})
        if (linear->quantized || !linear->adapters.empty()) return false;
      const auto [keys, values] = cache.planes(l);
      layers.push_back({of.attention_norm, of.qkv.weight, of.output.weight, of.attention_norm_2, of.mlp_norm, of.gate_up.weight,
                        of.down.weight, of.mlp_norm_2, keys, values});
    }
    const int32_t length = int32_t(row.prompt->tokens.size()), position = length + row.made - 1;
    Workspace& space = model.workspace();
    Buffer &state = space.get("scheduler.token", state_bytes() + 64), &left = space.get("scheduler.left", sizeof(int32_t));
    const Architecture& c = model.config;
    LoopDecodeToken t{};
    t.layers = c.layers, t.heads = c.heads, t.kv_heads = c.kv_heads, t.head_dim = c.head_dim;
    t.hidden = c.hidden, t.intermediate = c.intermediate;
    t.norm_eps = c.norm_eps, t.scale = 1.0 / std::sqrt(double(c.head_dim));
    t.host_layers = layers.data();
    t.norm = w.norms[0], t.gate_weight = w.gate_weight, t.gate_bias = w.gate_bias;
    t.cos_sin = model.rope_table(position + 1);
    t.embedded = static_cast<const char*>(w.embedding) + size_t(items[0].token) * state_bytes();
    t.position = position;
    t.slot = cache.slot_at(0, row.slot + row.made - 1);
    t.context = {cache.slot_at(0, row.prompt->slot), length, cache.slot_at(0, row.slot), row.made};
    t.plane = cache.slot_at(1, 0);
    t.loops = row.max_loops, t.min_loops = exit.min_loops, t.with_gate = gate, t.threshold = exit.threshold;
    t.state = state.as<>();
    t.left = left.as<int32_t>();
    if (!model.device->attempt(&LoopBackend::decode_token, "decode token", model.dt, static_cast<const LoopDecodeToken*>(&t)))
      return false;
    int32_t loops_run = row.max_loops;
    if (gate) left.download(&loops_run, sizeof loops_run);
    {
      std::lock_guard lock(mutex);
      figures.passes += loops_run;
      figures.pass_rows += loops_run;
      figures.whole_tokens++;
    }
    leave_or_stay(state.as<>(), nullptr, ReadoutRow::Wish::read, loops_run);
    return true;
  }

  // Neighbouring rows at the same loop: an adapter of every loop's own is added to them together.
  std::vector<LoopRows> loops_of_rows() const {
    std::vector<LoopRows> out;
    for (size_t i = 0; i < items.size(); i++) {
      if (out.empty() || out.back().loop != items[i].loop) out.push_back({int64_t(i), 0, items[i].loop});
      out.back().count++;
    }
    return out;
  }

  // Every row one loop further.
  void pass() {
    if (items.empty() || whole_token()) return;
    const size_t n = items.size(), bytes = state_bytes();
    Workspace& w = model.workspace();
    std::vector<int32_t> ids, positions, slots, before;
    std::vector<LoopCacheContext> contexts;
    int32_t last_position = 0;
    for (const Item& item : items) {
      const Row& row = *item.row;
      const int32_t length = int32_t(row.prompt->tokens.size()), own = row.made + item.ahead;  // itself included
      if (item.loop == 0) ids.push_back(item.token);
      positions.push_back(length + own - 1);
      last_position = std::max(last_position, positions.back());
      slots.push_back(cache.slot_at(item.loop, row.slot + own - 1));
      before.push_back(cache.slot_at(item.loop, own > 1 ? row.slot + own - 2 : row.prompt->slot + length - 1));
      contexts.push_back({cache.slot_at(item.loop, row.prompt->slot), length, cache.slot_at(item.loop, row.slot), own});
    }
    // All that differs between passes, in one copy.
    const size_t context_bytes = n * sizeof(LoopCacheContext), fresh = ids.size();
    std::vector<char> of_rows(context_bytes + (3 * n + fresh) * sizeof(int32_t));
    char* end = std::copy_n(reinterpret_cast<const char*>(contexts.data()), context_bytes, of_rows.data());
    for (const auto* ints : {&positions, &slots, &before, &ids})
      end = std::copy_n(reinterpret_cast<const char*>(ints->data()), ints->size() * sizeof(int32_t), end);
    Buffer& on_device = w.get("scheduler.rows", n * (sizeof(LoopCacheContext) + 4 * sizeof(int32_t)));
    on_device.upload(of_rows.data(), of_rows.size());
    const auto* ints = static_cast<const int32_t*>(on_device.at(context_bytes));
    const CacheUse use = cache.decoding(ints + n, on_device.as<LoopCacheContext>(), ints + 2 * n);
    DeviceBatch batch{int64_t(n), ints + 3 * n, ints, nullptr, 0, 0, 0, last_position};
    if (model.weights().adapter_loops > 0) batch.loops = loops_of_rows();
    Stack stack(model, model.weights(), batch, 1, Stack::Keep::nothing, &use);
    if (fresh > 0)
      model.device->run(&LoopBackend::embed, "embed", model.dt, int64_t(fresh), model.config.hidden, batch.ids,
                        static_cast<const void*>(model.weights().embedding), stack.input());
    if (fresh < n)
      model.device->run(&LoopBackend::copy, "states", static_cast<void*>(static_cast<char*>(stack.input()) + fresh * bytes),
                        static_cast<const void*>(states.as<>()), (n - fresh) * bytes);
    // What differs from pass to pass lies in device memory: the states, and each row's position, slots and loop.
    std::vector<uint64_t> key{n,
                              w.generation(),
                              model.stack_memory().generation,
                              model.placement(),
                              cache.generation(),
                              uint64_t(reinterpret_cast<uintptr_t>(model.rope_table(last_position + 1)))};
    for (const LoopRows& of : batch.loops) key.push_back(uint64_t(of.count) << 32 | uint64_t(of.loop));
    const bool replayed = replays.run(key, [&] { stack.forward_input(); });
    {
      std::lock_guard lock(mutex);
      figures.passes++;
      figures.pass_rows += int64_t(n);
      figures.replayed_passes += replayed;
    }
    leave_or_stay(stack.hidden(), stack.input(), ReadoutRow::Wish::rule);
  }

  // After `advance` loops: who goes to the head, and the rows of the next pass. after, before: act [items, D]. wanted: of rows
  // that do not draft. Memory is taken before anything changes.
  void leave_or_stay(const void* after, const void* before, ReadoutRow::Wish wanted, int advance = 1) {
    std::vector<ReadoutRow> reads;
    size_t most_states = 0;  // of the next pass; a draft that begins to be verified brings those before it
    for (const Item& item : items) {
      const int loop = item.loop + advance;
      const Row& row = *item.row;
      most_states += size_t(item.ahead) + 1;
      auto wish = wanted;
      if (row.request.draft_loops > 0 && !row.verifying) {
        // The last position drafted has no successor to draw: it waits to be verified.
        const bool drawn = loop == row.request.draft_loops && item.ahead + 1 < draft_length(row);
        wish = drawn ? ReadoutRow::Wish::read : ReadoutRow::Wish::stay;
      }
      reads.push_back(read_of(row, wish, loop, item.ahead));
    }
    readout.run(reads, after, before, places);
    next_states.reserve(model.device, most_states * state_bytes());
    model.workspace().get("scheduler.index", (most_states + 1) * sizeof(int32_t));
    for (Item& item : items) item.loop += advance;

    std::vector<Item> fresh, staying;
    std::vector<int32_t> index;                          // of the staying, in `after`, or behind it in `drafted`
    std::vector<std::pair<size_t, size_t>> from_drafts;  // (row of the next states, row of `drafted`)
    std::vector<Row*> done;
    for (size_t i = 0; i < items.size(); i++) {
      Item& item = items[i];
      Row& row = *item.row;
      ReadoutRow& read = reads[i];
      if (row.request.draft_loops > 0) {
        if (item.loop == row.max_loops) {
          if (item.ahead == 0 && !verify(row, items, reads, i, fresh)) done.push_back(&row);
        } else if (!row.verifying && item.loop == row.request.draft_loops) {
          keep_draft(row, item, after, i);
          if (read.read) {
            row.drafts.push_back(read.drawn.token);
            fresh.push_back({&row, item.ahead + 1, 0, read.drawn.token});
          } else {
            row.verifying = true;
            for (int32_t k = 0; k <= item.ahead; k++) {
              from_drafts.emplace_back(index.size(), size_t(row.place * draft_width + k));
              index.push_back(int32_t(i));  // replaced below
              staying.push_back({&row, k, item.loop, -1});
            }
          }
        } else {
          index.push_back(int32_t(i));
          staying.push_back(item);
        }
        continue;
      }
      keep_rule_state(row, read);
      if (!read.read) {
        index.push_back(int32_t(i));
        staying.push_back(item);
        continue;
      }
      cache.copy_up(row.slot + row.made - 1, item.loop - 1, row.max_loops);
      if (take(row, std::move(read.drawn))) fresh.push_back({&row, 0, 0, row.newest});
      else done.push_back(&row);
    }
    gather(index, after);
    for (const auto& [to, from] : from_drafts)
      model.device->run(&LoopBackend::copy, "drafted states", states.at(to * state_bytes()),
                        static_cast<const void*>(drafted.at(from * state_bytes())), state_bytes());
    items = std::move(fresh);
    items.insert(items.end(), staying.begin(), staying.end());
    for (Row* row : done) finish(*row);
  }

  // ---- Self-speculation ----

  void keep_draft(const Row& row, const Item& item, const void* after, size_t i) {
    model.device->run(&LoopBackend::copy, "drafted state",
                      drafted.at(size_t(row.place * draft_width + item.ahead) * state_bytes()),
                      static_cast<const void*>(static_cast<const char*>(after) + i * state_bytes()), state_bytes());
  }

  // The positions of a row have come to full depth, side by side from item `first` on. What full depth draws is kept as long as
  // the position read what full depth had drawn before. False when the row ended.
  bool verify(Row& row, const std::vector<Item>& all, std::vector<ReadoutRow>& reads, size_t first, std::vector<Item>& fresh) {
    size_t count = 1;
    while (first + count < all.size() && all[first + count].row == &row) count++;
    const std::vector<int32_t> drafts = std::move(row.drafts);
    row.drafts.clear();
    row.verifying = false;
    int64_t accepted = 0;
    bool open = true;
    for (size_t k = 0; k < count && open; k++) {
      const int32_t token = reads[first + k].drawn.token;
      open = take(row, std::move(reads[first + k].drawn));
      if (!open || k + 1 == count || drafts[k] != token) break;
      accepted++;
    }
    {
      std::lock_guard lock(mutex);
      figures.drafted += int64_t(count) - 1;
      figures.accepted += accepted;
    }
    if (open) fresh.push_back({&row, 0, 0, row.newest});
    return open;
  }

  // Room for the drafts of a request, before its first pass. Rows under way lose nothing: no draft is in a buffer that grows.
  void widen_drafts() {
    int32_t width = draft_width;
    for (auto& [id, row] : rows)
      if (row.request.draft_loops > 0) width = std::max(width, row.request.draft_tokens);
    if (width == draft_width && (width == 0 || places <= draft_places)) return;
    Buffer wider(model.device, size_t(places) * size_t(width) * state_bytes());
    if (draft_width > 0) {
      const int64_t D = model.config.hidden, shape[] = {draft_places, draft_width * D}, from[] = {draft_width * D, 1},
                    to[] = {width * D, 1};
      model.device->run(&LoopBackend::copy_strided, "drafts", model.dt, model.dt, 2, shape,
                        static_cast<const void*>(drafted.as<>()), from, wider.as<>(), to);
    }
    drafted = std::move(wider);
    draft_places = places;
    draft_width = width;
  }

  // ---- The loop ----

  std::vector<GenerateEvent> run(bool until_token) {
    do {
      take_in();
      admit();
      attempt([&] {
        widen_drafts();
        prefill();
        start_rows();
      });
      attempt([&] { pass(); });
      std::lock_guard lock(mutex);
      figures.rows = int64_t(rows.size());
      figures.waiting = int64_t(waiting.size() + arrived.size());
      figures.cached_tokens = cache.used();
      figures.slots = cache.slots();
    } while ((!rows.empty() || !waiting.empty()) && !(until_token && !events.empty()));
    std::vector<GenerateEvent> out;
    for (auto& [id, event] : events) out.push_back(std::move(event));
    events.clear();
    return out;
  }

  // After an error nothing of the requests is left, and new ones may come. Takes no memory: there may be none.
  void reset() noexcept {
    rows.clear();
    prompts.clear();
    waiting.clear();
    items.clear();
    events.clear();
    cache.clear();
    free_places.clear();
    places = 0;
    blocked = 0;
    std::lock_guard lock(mutex);
    arrived.clear();
    cancelled.clear();
    figures.rows = figures.waiting = figures.cached_tokens = 0;
  }
};

Scheduler::Scheduler(std::shared_ptr<Model> model, const SchedulerOptions& options)
    : state_(std::make_unique<State>(std::move(model), options)) {}
Scheduler::~Scheduler() = default;

int64_t Scheduler::add(GenerateRequest request) {
  State& s = *state_;
  if (request.exit.rule == ExitRule::gate && request.exit.threshold >= 1) request.exit.rule = ExitRule::fixed;
  check_request(s.model, request, s.loops, s.cache.shared());
  const int64_t slots = int64_t(request.prompt.size()) + request.max_new_tokens - 1;
  if (s.options.max_tokens > 0 && slots > s.options.max_tokens)
    throw Error("INVALID_ARGUMENT", "generate",
                "a prompt of " + std::to_string(request.prompt.size()) + " tokens and " + std::to_string(request.max_new_tokens) +
                    " new ones do not fit in the scheduler's maxTokens " + std::to_string(s.options.max_tokens));
  const int64_t most = std::min<int64_t>(int64_t(s.device_bytes / s.cache.slot_bytes()), INT32_MAX / s.loops);
  if (slots > most) throw Error("OUT_OF_MEMORY", "generate", s.too_large(request, most));
  std::lock_guard lock(s.mutex);
  const int64_t id = s.next_id++;
  s.arrived.emplace_back(id, std::move(request));
  s.figures.waiting++;
  return id;
}

void Scheduler::cancel(int64_t request) {
  std::lock_guard lock(state_->mutex);
  state_->cancelled.push_back(request);
}

std::vector<GenerateEvent> Scheduler::run(bool until_token) {
  try {
    return state_->run(until_token);
  } catch (...) {
    state_->reset();
    throw;
  }
}

LoopDType Scheduler::dtype() const { return state_->model.dt; }
SchedulerStats Scheduler::stats() const {
  std::lock_guard lock(state_->mutex);
  return state_->figures;
}

}  // namespace looplm

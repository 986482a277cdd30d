#include "rows.h"

#include <algorithm>
#include <utility>

namespace looplm {

namespace {

bool has_blocks(const Architecture& a, const std::vector<Step>& steps) { return a.blocks(steps) > 0; }

// How many tokens of ended prompts stay in the cache. The default is as many as fit into a quarter of the memory that is free
// now.
int64_t most_retained(const SchedulerOptions& options, const Model& model, const Cache& cache) {
  if (options.prompt_cache == 0) return 0;
  const int64_t all = options.max_tokens > 0 ? options.max_tokens : INT32_MAX;
  const int64_t most =
      options.prompt_cache > 0 ? options.prompt_cache : int64_t(model.device->memory().free / 4 / cache.slot_bytes());
  return std::clamp<int64_t>(most, 1, all);
}

}  // namespace

Generation::Generation(Model& model, const SchedulerOptions& options)
    : model(model),
      options(options),
      loops(options.loops > 0 ? options.loops : model.config.loops),
      state_bytes(size_t(model.config.hidden) * loop_dtype_size(model.dt)),
      cache(
          model, loops, options.shared_cache, options.max_tokens, [this] { return written(); }, options.cache_bits,
          options.residual_bits, options.pruned_keys),
      tree(cache, most_retained(options, model, cache)),
      reads_with_blocks(has_blocks(model.config, model.config.read)) {}

Row::Contexts Row::contexts(int64_t of_prompt, int32_t of_own, int32_t plane, int32_t recent_plane) const {
  const int64_t position = of_prompt + of_own - 1, block = Cache::block_start(position, prompt->family.prefix);
  Contexts out{context(std::min(block, of_prompt), int32_t(std::max<int64_t>(0, block - of_prompt)), plane), {}};
  size_t r = 0;
  const auto add = [&](int64_t slot, int64_t count) {
    if (count > 0) out.recent.runs[r++] = {recent_plane + int32_t(slot), int32_t(count)};
  };
  add(prompt->recent + block - prompt->recent_from(), of_prompt - block);
  const int64_t from = std::max(block, of_prompt), count = position - from + 1, begin = from % recent_slots;
  const int64_t to_end = std::min(count, recent_slots - begin);
  add(recent + begin, to_end);
  add(recent, count - to_end);
  return out;
}

// Recent slots of a row: for its newest block, and for the tokens that may be drafted ahead of it.
int64_t Generation::recent_slots(const GenerateRequest& request) const {
  if (!cache.coded()) return 0;
  const int64_t ahead = std::max<int64_t>(request.draft_tokens, request.wavefront ? Wave::MOST_ROWS : 0);
  return std::min(row_slots(request), Cache::BLOCK + ahead);
}

int64_t Generation::recent_slots(const Prompt& prompt) const {
  if (!cache.coded()) return 0;
  const int64_t last = prompt.length() - prompt.recent_from();
  if (!cache.with_residuals()) return last;
  const int64_t first = std::min(prompt.length(), Cache::block_end(prompt.shared, prompt.family.prefix)) - prompt.shared;
  return std::max(first, last);  // blocks in between are no larger
}

void Generation::exit_token(const Row& row, const ActiveToken& token) {
  const int64_t slot = row.slot + token.made() - 1, recent = row.recent_slot(token.position());
  cache.copy_up(slot, recent, token.loop - 1, row.max_loops);
  if (cache.with_residuals()) left_.push_back({int32_t(recent), int32_t(slot), row.max_loops});
}

void Generation::encode_exited() {
  cache.encode(left_);
  left_.clear();
}

int64_t Generation::most_ahead(const Row& row) const {
  if (!cache.with_residuals()) return INT32_MAX;
  const int64_t position = row.prompt->length() + row.made - 1;
  return Cache::block_end(position, row.prompt->family.prefix) - 1 - position;
}

// The slots that hold keys and values. Those of drafted tokens come after those of the new tokens.
Cache::Runs Generation::written() const {
  Cache::Runs runs = tree.written();
  for (auto& p : prompts)
    if (!p->node && p->written() > 0) runs.emplace_back(p->slot, p->written());
  for (auto& [id, row] : rows)
    if (const int64_t count = std::min<int64_t>(
            row_slots(row.request),
            row.made + std::max<int64_t>(row.request.draft_tokens, int64_t(row.drafts.size())) + (reads_with_blocks ? 1 : 0));
        count > 0 && row.started)
      runs.emplace_back(row.slot, count);
  for (auto& [id, row] : kept)
    if (row_slots(row.request) > 0) runs.emplace_back(row.slot, row_slots(row.request));
  return runs;
}

int32_t Generation::acquire_index() {
  if (free_indices_.empty()) return row_indices++;
  const int32_t index = free_indices_.back();
  free_indices_.pop_back();
  return index;
}

void Generation::trim_indices() {
  const auto is_free = [&](int32_t index) { return std::find(free_indices_.begin(), free_indices_.end(), index); };
  for (auto last = is_free(row_indices - 1); last != free_indices_.end(); last = is_free(row_indices - 1)) {
    free_indices_.erase(last);
    row_indices--;
  }
}

void Generation::release_indices(const Row& row) {
  free_indices_.push_back(row.index);
  free_indices_.insert(free_indices_.end(), row.wave.places.begin(), row.wave.places.end());
}

void Generation::finish(Row& row) {
  if (!row.request.keep) return release(row);
  releases++;
  cache.release_recent(row.recent, std::exchange(row.recent_slots, 0));
  const int64_t reserved = row_slots(row.request);
  row.request.max_new_tokens = row.made;  // frees the slots after those of its tokens
  const int64_t used = row_slots(row.request);
  cache.release(row.slot + used, reserved - used);
  release_indices(row);
  kept.insert(rows.extract(row.id));
}

void Generation::release(Row& row) {
  release_cache(row);
  release_indices(row);
  rows.erase(row.id);
}

void Generation::forget(int64_t id) {
  release_cache(kept.at(id));
  kept.erase(id);
}

void Generation::release_cache(Row& row) {
  releases++;
  cache.release_recent(row.recent, row.recent_slots);
  cache.release(row.slot, row_slots(row.request));
  release_prompt(*row.prompt);
}

void Generation::release_prompt(Prompt& prompt) {
  if (--prompt.users > 0) return;
  if (prompt.source) release_prompt(*prompt.source);
  if (prompt.node) tree.leave(prompt.node);
  else cache.release(prompt.slot, prompt.own());
  cache.release_recent(prompt.recent, recent_slots(prompt));
  prompts.erase(std::find_if(prompts.begin(), prompts.end(), [&](auto& p) { return p.get() == &prompt; }));
}

void Generation::clear() noexcept {
  rows.clear();
  kept.clear();
  prompts.clear();
  tree.clear();
  events.clear();
  left_.clear();
  cache.clear();
  free_indices_.clear();
  row_indices = 0;
  releases++;
  count([](SchedulerStats& s) { s.rows = s.kept = s.waiting = s.cached_tokens = s.retained = 0; });
}

void Generation::answer(int64_t request, HostAnswer answer) {
  std::lock_guard lock(answers_mutex_);
  answers_[request] = std::move(answer);
}

void Generation::collect_answers() {
  std::lock_guard lock(answers_mutex_);
  for (auto it = answers_.begin(); it != answers_.end();) {
    const auto row = rows.find(it->first);
    if (row != rows.end()) row->second.answer = std::move(it->second);
    it = row != rows.end() ? answers_.erase(it) : std::next(it);
  }
}

GenerateEvent& Generation::event(int64_t request) {
  return events.try_emplace(request, GenerateEvent{request, {}, Finish::none, {}, {}, 0}).first->second;
}

bool Generation::add_token(Row& row, GeneratedToken token) {
  const bool known = row.made < row.request.reported;  // it is a restarted request that has reported this token before
  row.newest = token.token;
  row.state_key.append(token.token);
  row.made++;
  if (row.request.keep) row.generated.push_back(token.token);
  row.edits.add_drawn(token.token);
  row.answer = {};
  if (known) return true;  // the row went on after this token before its restart
  GenerateEvent& out = event(row.id);
  out.reused = row.prompt->reused;
  const auto& stops = row.request.stop_tokens;
  if (std::find(stops.begin(), stops.end(), token.token) != stops.end()) out.finish = Finish::stop;
  else if (row.made >= row.request.max_new_tokens) out.finish = Finish::length;
  out.tokens.push_back(std::move(token));
  return out.finish == Finish::none;
}

void Generation::fail(int64_t request, const std::string& why) {
  GenerateEvent& out = event(request);
  out.finish = Finish::failed;
  out.failure = why;
}

bool Generation::reached(Until until) const {
  if (until == Until::token) return !events.empty();
  return until == Until::finish &&
         std::any_of(events.begin(), events.end(), [](auto& event) { return event.second.finish != Finish::none; });
}

std::vector<GenerateEvent> Generation::collect_events() {
  std::vector<GenerateEvent> out;
  for (auto& [id, one] : events) out.push_back(std::move(one));
  events.clear();
  return out;
}

}  // namespace looplm

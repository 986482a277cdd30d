#include "admission.h"

#include <algorithm>
#include <set>
#include <tuple>

#include "wavefront.h"

namespace looplm {

int64_t Admission::add(GenerateRequest request) {
  if (request.exit.rule == ExitRule::gate && request.exit.threshold >= 1) request.exit.rule = ExitRule::fixed;
  check_request(g_.model, request, g_.loops, g_.cache.shared());
  const int64_t slots = int64_t(request.prompt.size()) + g_.row_slots(request), limit = g_.options.max_tokens;
  if (limit > 0 && slots > limit)
    throw Error("INVALID_ARGUMENT", "generate",
                "a prompt of " + std::to_string(request.prompt.size()) + " tokens and " + std::to_string(request.max_new_tokens) +
                    " new ones do not fit in the scheduler's maxTokens " + std::to_string(limit));
  const int64_t most = std::min<int64_t>(int64_t(device_bytes_ / g_.cache.slot_bytes()), INT32_MAX / g_.loops);
  if (slots > most) throw Error("OUT_OF_MEMORY", "generate", too_large(request, most));
  std::lock_guard lock(mutex_);
  const int64_t id = next_id_++;
  arrived_.emplace_back(id, std::move(request));
  g_.count([](SchedulerStats& s) { s.waiting++; });
  return id;
}

void Admission::cancel(int64_t request, bool keep) {
  std::lock_guard lock(mutex_);
  cancelled_.insert_or_assign(request, keep);
}

std::vector<std::pair<Row*, bool>> Admission::receive() {
  std::map<int64_t, bool> cancelled;
  {
    std::lock_guard lock(mutex_);
    for (auto& request : arrived_) waiting_.push_back(std::move(request));
    arrived_.clear();
    cancelled.swap(cancelled_);
  }
  std::vector<std::pair<Row*, bool>> rows;
  for (const auto& [id, keep] : cancelled) {
    g_.events.erase(id);
    const auto queued = std::find_if(waiting_.begin(), waiting_.end(), [&](auto& request) { return request.first == id; });
    if (queued != waiting_.end()) waiting_.erase(queued);
    if (const auto row = g_.rows.find(id); row != g_.rows.end()) rows.emplace_back(&row->second, keep);
    if (!keep && g_.kept.count(id)) g_.forget(id);
  }
  return rows;
}

void Admission::admit() {
  while (!waiting_.empty() && int64_t(g_.rows.size()) < std::min<int64_t>(g_.options.max_rows, limit_)) {
    if (waiting_.front().first == blocked_ && g_.releases == blocked_releases_) return;
    if (!admit_first()) return;
    returned_ = false;
  }
}

bool Admission::may_put_back(const Row& row) const {
  if (row.request.logits.host != LogitOptions::Host::none && row.started) return false;
  return g_.rows.size() > 1 || g_.cache.slots() > row.prompt->length() + g_.row_slots(row.request);
}

void Admission::put_back(Row& row) {
  const bool alone = g_.rows.size() == 1;
  if (!row.answer.empty()) g_.answer(row.id, std::move(row.answer));
  row.request.reported = std::max(row.request.reported, row.made);
  waiting_.emplace_front(row.id, row.request);
  g_.release(row);
  g_.trim_indices();
  limit_ = std::max<int64_t>(1, int64_t(g_.rows.size()));
  returned_ = true;
  g_.count([](SchedulerStats& s) { s.restarted++; });
  if (!alone) return;
  empty_cache();
  g_.cache.exact_growth = true;
}

void Admission::empty_cache() {
  while (g_.tree.evict() || evict(0)) {
  }
  g_.cache.clear();
}

bool Admission::relax() {
  if (returned_) return false;
  limit_ = waiting_.empty() || limit_ > g_.options.max_rows ? INT64_MAX : 2 * limit_;
  g_.cache.exact_growth = false;
  return true;
}

// Admits or fails the first waiting request. Returns false if it has to wait.
bool Admission::admit_first() {
  auto& [id, request] = waiting_.front();
  const int64_t own = g_.row_slots(request);
  Prompt* prompt = nullptr;
  Prompts::Beginning made;
  Place place;
  for (bool grown = false, with_tree = true;;) {
    prompt = prompts_.find(request);
    made = prompt ? Prompts::Beginning{} : prompts_.begin(request, with_tree);
    const int64_t length = prompt ? 0 : made.prompt->own();
    place = find_place(made.prompt.get(), request);
    if (place.found) break;
    const bool more = make_room(length + own, request.parent, grown);
    g_.tree.drop(made.found);
    if (more) continue;
    if (!g_.rows.empty()) {
      blocked_ = id;
      blocked_releases_ = g_.releases;
      return false;
    }
    if (made.found) {  // even an empty cache has no room next to the shared prompt: retry without sharing, so that the prompt
                       // can be evicted
      with_tree = false;
      continue;
    }
    g_.fail(id, too_large(request, g_.cache.room()));
    waiting_.pop_front();
    return true;
  }
  if (made.prompt) made.prompt->recent = place.prompt_recent;
  if (!prompt) prompt = prompts_.enter(std::move(made), request, place.prompt);
  prompt->users++;
  if (request.release_parent && g_.kept.count(request.parent)) g_.forget(request.parent);
  const int max_loops = g_.loops_of(request);
  Row& row = g_.rows.emplace(id, Row{id, std::move(request), max_loops, prompt, place.row, g_.acquire_index()}).first->second;
  row.recent = place.row_recent;
  row.recent_slots = g_.recent_slots(row.request);
  for (int32_t token : prompt->tokens) row.state_key.append(token);
  row.edits = LogitEdits(row.request.logits, prompt->tokens);
  row.wave = Wavefront::begin(g_, row.request, max_loops);
  waiting_.pop_front();
  return true;
}

// Allocates the cache slots that a new row needs, and those of its prompt (`prompt` is NULL if an active row shares it). All
// or nothing: Place::found says which.
Admission::Place Admission::find_place(const Prompt* prompt, const GenerateRequest& request) {
  Cache& cache = g_.cache;
  const int64_t of_prompt = prompt ? prompt->own() : 0, own = g_.row_slots(request);
  const int64_t prompt_recent = prompt ? g_.recent_slots(*prompt) : 0;
  Place out;
  if ((out.prompt = cache.allocate(of_prompt)) >= 0) {
    if ((out.row = cache.allocate(own)) >= 0) {
      if ((out.prompt_recent = cache.allocate_recent(prompt_recent)) >= 0) {
        if ((out.row_recent = cache.allocate_recent(g_.recent_slots(request))) >= 0) {
          out.found = true;
          return out;
        }
        cache.release_recent(out.prompt_recent, prompt_recent);
      }
      cache.release(out.row, own);
    }
    cache.release(out.prompt, of_prompt);
  }
  return out;
}

// Grows the cache, or evicts something if it has just grown. Returns false if neither is possible at present.
bool Admission::make_room(int64_t slots, int64_t parent, bool& grown) {
  const int64_t preferred = g_.cache.used() == 0 ? slots_of_waiting() : 0;
  if (!grown && g_.cache.grow_for(slots, preferred)) return grown = true;
  grown = false;
  return g_.tree.evict() || evict(parent);
}

// Evicts the kept request that ended first, but `parent`, which the new request continues, last.
bool Admission::evict(int64_t parent) {
  if (g_.kept.empty()) return false;
  auto first = g_.kept.begin();
  if (first->first == parent && g_.kept.size() > 1) first++;
  g_.forget(first->first);
  g_.count([](SchedulerStats& s) { s.evicted++; });
  return true;
}

// Slots for all waiting requests that can start at once, so that the cache grows once for a whole call of `generate`.
int64_t Admission::slots_of_waiting() const {
  int64_t slots = 0;
  std::set<std::tuple<int, std::vector<int32_t>, std::vector<double>>> seen;
  size_t n = g_.rows.size();
  for (auto& [id, request] : waiting_) {
    if (n++ == size_t(g_.options.max_rows)) break;
    slots += g_.row_slots(request);
    if (seen.emplace(request.exit.max_loops, request.prompt, request.vectors.values).second)
      slots += int64_t(request.prompt.size());
  }
  return slots;
}

std::string Admission::too_large(const GenerateRequest& request, int64_t room) const {
  const int64_t slots = int64_t(request.prompt.size()) + g_.row_slots(request);
  const size_t slot_bytes = g_.cache.slot_bytes();
  return "a prompt of " + std::to_string(request.prompt.size()) + " tokens and up to " + std::to_string(request.max_new_tokens) +
         " new ones need " + std::to_string(size_t(slots) * slot_bytes) + " bytes of cache (" + std::to_string(slot_bytes) +
         " a token), and device \"" + g_.model.device->name() + "\" has room for " + std::to_string(room) +
         " tokens: " + generation_remedy;
}

void Admission::update_counts() {
  std::lock_guard lock(mutex_);
  g_.count([&](SchedulerStats& s) {
    s.rows = int64_t(g_.rows.size());
    s.kept = int64_t(g_.kept.size());
    s.waiting = int64_t(waiting_.size() + arrived_.size());
    s.cached_tokens = g_.cache.used();
    s.slots = g_.cache.slots();
    s.retained = g_.tree.retained();
  });
}

void Admission::clear() noexcept {
  waiting_.clear();
  blocked_ = 0;
  std::lock_guard lock(mutex_);
  arrived_.clear();
  cancelled_.clear();
}

}  // namespace looplm

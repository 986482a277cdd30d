#include "prompts.h"

#include <algorithm>

namespace looplm {

// Creates a prompt, and finds what it can share: with its parent, whose slots are copied, or with a prompt in the tree.
Prompts::Beginning Prompts::begin(const GenerateRequest& request, bool with_tree) {
  Beginning out{make(request)};
  Prompt& p = *out.prompt;
  if (!with_tree || !may_share(request)) return out;
  const int64_t most = p.length() - 1;  // the last token must run, because the first new token is read from it
  out.found = g_.tree.find(p.family, p.tokens, std::max(p.family.prefix, common_with_parent(request)), most);
  if (!out.found) return out;
  g_.tree.hold(out.found);
  // A row attends to at most LOOP_CACHE_RUNS runs of slots, two of which are the row's own and its prompt's own. If the
  // shared tokens are in more runs than that, only the first part is borrowed; the rest is copied if it has been written.
  constexpr size_t MOST_RUNS = LOOP_CACHE_RUNS - 2;
  out.shared = out.found;
  for (p.borrowed = PromptTree::runs(out.shared); p.borrowed.size() > MOST_RUNS; p.borrowed = PromptTree::runs(out.shared))
    out.shared = out.shared->parent;
  p.shared = out.shared->end();
  return out;
}

// Puts the prompt in its slots, and gives it what it shares with others.
Prompt* Prompts::enter(Beginning beginning, const GenerateRequest& request, int64_t slot) {
  Prompt& p = *beginning.prompt;
  p.slot = slot;
  g_.prompts.push_back(std::move(beginning.prompt));
  if (PromptNode* const found = beginning.found) {
    p.reused = p.shared;
    if (found->written() == found->length()) {
      for (const LoopCacheRun& run : PromptTree::runs(found, p.shared)) {
        for (const auto planes : {Cache::Planes::states, Cache::Planes::readout})
          g_.cache.copy_slots(planes, run.begin, slot + p.reused - p.shared, run.length);
        p.reused += run.length;
      }
    }
    if (beginning.shared->written() < beginning.shared->length()) {
      p.source = beginning.shared->writer;
      p.source->users++;
    }
    g_.tree.hold(beginning.shared);
    g_.tree.drop(found);
  } else if (const int64_t common = common_with_parent(request); common > 0) {
    copy_from_parent(p, request, common);
    p.reused = common;
    p.parent = request.parent;
  }
  p.done = p.reused;
  if (may_share(request) && p.parent == 0) p.node = g_.tree.add(p.family, beginning.shared, p, p.shared, slot);
  g_.count([&](SchedulerStats& s) {
    s.reused += p.reused;
    s.hits += p.reused > 0;
  });
  return &p;
}

PromptFamily Prompts::family_of(const GenerateRequest& request) const {
  const Model& model = g_.model;
  PromptFamily out{model.version(), model.base_version(), model.layout(), model.placement(), g_.loops_of(request)};
  if (begins_with_state(g_.architecture())) {
    out.zero_states = request.states.zeros;
    out.state_seed = request.states.zeros ? 0 : request.states.seed;
  }
  out.prefix = prefix_of(request);
  return out;
}

// The number of leading tokens that the request's parent has in the cache.
int64_t Prompts::common_with_parent(const GenerateRequest& request) const {
  const auto found = g_.kept.find(request.parent);
  if (found == g_.kept.end()) return 0;
  const Row& row = found->second;
  const Prompt& from = *row.prompt;
  const PromptFamily family = family_of(request);
  if (from.family != family) return 0;
  const auto token = [&](int64_t j) {
    return j < from.length() ? from.tokens[size_t(j)] : row.generated[size_t(j - from.length())];
  };
  int64_t common = 0;
  const int64_t most = std::min({row.cached(), int64_t(request.prompt.size()) - 1, from.vectors.common(request.vectors)});
  while (common < most && token(common) == request.prompt[size_t(common)]) common++;
  common -= common % g_.cache.unit();
  return common >= family.prefix && same_given(from.initial, request.states, common) ? common : 0;
}

// Copies from the parent, because attention reads new tokens from consecutive slots, and the parent's slots belong to the
// parent.
void Prompts::copy_from_parent(Prompt& prompt, const GenerateRequest& request, int64_t common) {
  const Row& row = g_.kept.at(request.parent);
  const Prompt& from = *row.prompt;
  const auto copy = [&](Cache::Planes planes, int64_t of_prompt) {
    int64_t to = prompt.slot;
    from.for_runs(0, of_prompt, [&](int64_t slot, int64_t count) {
      g_.cache.copy_slots(planes, slot, to, count);
      to += count;
    });
    g_.cache.copy_slots(planes, row.slot, to, common - of_prompt);
  };
  copy(Cache::Planes::states, std::min(common, from.length()));
  // the readout of the prompt's last token belongs to the row, in its first slot
  copy(Cache::Planes::readout, std::min(common, from.length() - 1));
}

// Whether both have the same given states. Drawn ones are a matter of the family.
bool Prompts::same_given(const InitialStates& a, const InitialStates& b, int64_t tokens) const {
  if (!begins_with_state(g_.architecture())) return true;
  const ptrdiff_t values = a.given.empty() ? 0 : ptrdiff_t(tokens) * g_.architecture().hidden;
  return a.given.empty() == b.given.empty() && std::equal(a.given.begin(), a.given.begin() + values, b.given.begin());
}

// Requests share a prompt if its family, tokens, input vectors and given initial states are equal. The tokens that a parent
// drew ran in other kernels than prompts, so their keys may differ in rounding: only requests that would copy them share them.
Prompt* Prompts::find(const GenerateRequest& request) const {
  const auto kept = g_.kept.find(request.parent);
  const Prompt* const of_parent = kept == g_.kept.end() ? nullptr : kept->second.prompt;
  const int64_t parent = common_with_parent(request) > 0 ? request.parent : 0;
  const PromptFamily family = family_of(request);
  const int64_t length = int64_t(request.prompt.size());
  for (auto& p : g_.prompts)
    if ((p->parent == parent || p.get() == of_parent) && p->family == family && p->tokens == request.prompt &&
        p->vectors == request.vectors && same_given(p->initial, request.states, length))
      return p.get();
  return nullptr;
}

std::unique_ptr<Prompt> Prompts::make(const GenerateRequest& request) const {
  auto prompt = std::make_unique<Prompt>();
  prompt->tokens = request.prompt;
  prompt->vectors = request.vectors;
  prompt->family = family_of(request);
  if (!begins_with_state(g_.architecture())) return prompt;
  prompt->initial = request.states;
  if (request.states.zeros || !request.states.given.empty()) return prompt;
  StateKey key;
  for (int32_t token : request.prompt) {
    key.append(token);
    prompt->state_keys.push_back(key);
  }
  return prompt;
}

}  // namespace looplm

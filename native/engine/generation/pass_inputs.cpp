#include "pass_inputs.h"

#include <algorithm>

namespace looplm {

namespace {

// The cache slot of the previous token, within a plane.
int64_t slot_before(const ActiveToken& token) {
  const Row& row = *token.row;
  return token.made() > 1 ? row.slot + token.made() - 2 : row.prompt->slot_of(row.prompt->length() - 1);
}

}  // namespace

std::vector<LoopRows> PassInputs::loops(const std::vector<ActiveToken>& tokens) {
  std::vector<LoopRows> out;
  for (size_t i = 0; i < tokens.size(); i++) {
    if (out.empty() || out.back().loop != tokens[i].loop) out.push_back({int64_t(i), 0, tokens[i].loop});
    out.back().count++;
  }
  return out;
}

const int32_t* PassInputs::upload_rows(const std::vector<ActiveToken>& tokens, CacheUse& use, int32_t& last_position) {
  Cache& cache = g_.cache;
  const size_t n = tokens.size(), context_bytes = n * sizeof(LoopCacheContext);
  std::vector<LoopCacheContext> contexts;
  std::vector<int32_t> positions, slots, before, ids;
  for (const ActiveToken& token : tokens) {
    const Row& row = *token.row;
    if (token.loop == 0) ids.push_back(token.token);
    positions.push_back(token.position());
    last_position = std::max(last_position, positions.back());
    slots.push_back(cache.slot_at(token.loop, row.slot + token.made() - 1));
    before.push_back(cache.slot_at(token.loop, slot_before(token)));
    contexts.push_back(recent_.add(row, row.prompt->length(), token.made(), token.loop));
  }
  std::vector<char> bytes(context_bytes + (3 * n + ids.size()) * sizeof(int32_t));
  char* end = std::copy_n(reinterpret_cast<const char*>(contexts.data()), context_bytes, bytes.data());
  for (const auto* ints : {&positions, &slots, &before, &ids})
    end = std::copy_n(reinterpret_cast<const char*>(ints->data()), ints->size() * sizeof(int32_t), end);
  memory_.rows.reserve(g_.model.device, n * (sizeof(LoopCacheContext) + 4 * sizeof(int32_t)));
  memory_.rows.upload(bytes.data(), bytes.size());
  const auto* ints = static_cast<const int32_t*>(memory_.rows.at(context_bytes));
  use = cache.decoding(ints + n, memory_.rows.as<LoopCacheContext>(), ints + 2 * n);
  recent_.upload_to(use);
  return ints;
}

void PassInputs::begin(const Stack& loop, const std::vector<ActiveToken>& tokens, size_t fresh, const int32_t* ints,
                       int32_t last_position) {
  Model& model = g_.model;
  DeviceBatch batch{int64_t(fresh), ints + 3 * tokens.size(), ints, nullptr, 0, 0, 0, last_position};
  batch.states = initial_states(tokens, fresh);
  CacheUse use{};
  const bool with_blocks = model.config.blocks(model.config.begin) > 0;
  if (with_blocks) {
    std::vector<LoopCacheContext> contexts;
    std::vector<int32_t> slots, before;
    for (size_t i = 0; i < fresh; i++) {
      const Row& row = *tokens[i].row;
      const int32_t made = tokens[i].made();
      slots.push_back(int32_t(row.slot) + made - 1);
      before.push_back(int32_t(slot_before(tokens[i])));
      contexts.push_back(begin_recent_.add(row, row.prompt->length(), made, 0));
    }
    use = g_.cache.decoding(upload(model.device, memory_.begin_slots, slots),
                            upload(model.device, memory_.begin_contexts, contexts),
                            upload(model.device, memory_.begin_before, before));
    begin_recent_.upload_to(use);
  }
  Stack stack(model, model.weights(), batch, 1, Stack::Keep::nothing, with_blocks ? &use : nullptr);
  stack.forward_begin(loop.inputs());
}

// Drawn as in scoring: from the tokens up to each position, drafted ones included.
const void* PassInputs::initial_states(const std::vector<ActiveToken>& tokens, size_t fresh) {
  const Architecture& a = g_.architecture();
  if (!begins_with_state(a)) return nullptr;
  const size_t D = size_t(a.hidden);
  std::vector<double> values(fresh * D);
  for (size_t i = 0; i < fresh; i++) {
    const ActiveToken& token = tokens[i];
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

}  // namespace looplm

#include "token_states.h"

#include <algorithm>

namespace looplm {

void TokenStates::reserve(size_t most) {
  next_.values.reserve(g_.model.device, g_.registers() * most * g_.state_bytes);
  gather_.reserve(most);
}

void TokenStates::gather(const std::vector<int32_t>& index, const Stack::Registers& from) {
  const size_t bytes = g_.state_bytes;
  next_.values.reserve(g_.model.device, g_.registers() * std::max<size_t>(1, index.size()) * bytes);
  next_.tokens = index.size();
  for (size_t r = 0; r < g_.registers(); r++)
    gather_.into(next_.values.at(r * index.size() * bytes), g_.model.dt, index, g_.architecture().hidden, from[r]);
  std::swap(states_, next_);
}

void TokenStates::keep(const std::vector<int32_t>& index) {
  size_t to = 0;  // never overtakes the row that is copied, because `index` is ascending
  for (size_t r = 0; r < g_.registers(); r++)
    for (const int32_t token : index) {
      const size_t from = r * states_.tokens + size_t(token);
      if (from != to)
        g_.model.device->run(&LoopBackend::copy, "kept states", states_.values.at(to * g_.state_bytes),
                             states_.values.at(from * g_.state_bytes), g_.state_bytes);
      to++;
    }
  states_.tokens = index.size();
}

void TokenStates::load(const Stack& loop, size_t fresh) {
  const size_t bytes = g_.state_bytes;
  if (states_.tokens == 0) return;
  for (size_t r = 0; r < g_.registers(); r++)
    g_.model.device->run(&LoopBackend::copy, "states", static_cast<char*>(loop.inputs()[r]) + fresh * bytes, at(r, 0),
                         states_.tokens * bytes);
}

}  // namespace looplm

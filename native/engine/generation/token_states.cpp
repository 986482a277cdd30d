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
  Stack::Registers from;
  for (size_t r = 0; r < g_.registers(); r++) from.push_back(at(r, 0));
  gather(index, from);
}

void TokenStates::load(const Stack& loop, size_t fresh) {
  const size_t bytes = g_.state_bytes;
  if (states_.tokens == 0) return;
  for (size_t r = 0; r < g_.registers(); r++)
    g_.model.device->run(&LoopBackend::copy, "states", static_cast<char*>(loop.inputs()[r]) + fresh * bytes, at(r, 0),
                         states_.tokens * bytes);
}

}  // namespace looplm

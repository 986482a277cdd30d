#include "final_gradients.h"

#include <algorithm>

namespace looplm {

namespace {

bool touches(const Step& step, const Parameter& p) {
  switch (step.kind) {
    case Step::Kind::embed:
      return p.role == Role::embedding;
    case Step::Kind::norm:
      return p.role == Role::norm && p.index == step.index;
    case Step::Kind::inject:
      return p.role == Role::inject && p.index == step.index;
    case Step::Kind::block:
      switch (p.role) {
        case Role::embedding:
        case Role::head:
        case Role::exit_gate:
        case Role::exit_gate_bias:
        case Role::norm:
        case Role::inject:
        case Role::start:
          return false;
        default:
          return p.index == step.index;
      }
    case Step::Kind::start:  // never trained
    case Step::Kind::state:
    case Step::Kind::add:
    case Step::Kind::copy:
      return false;
  }
  return true;
}

}  // namespace

FinalGradients::FinalGradients(const Model& model, const std::vector<const Step*>& order) : from_(order.size() + 1, 0) {
  // ends[s]: end of the last parameter in the arena (in elements) whose last step in the backward order is step s.
  std::vector<size_t> ends(order.size() + 1, 0);
  for (const Parameter& p : model.trained()) {
    size_t steps = order.size();
    while (steps > 0 && !touches(*order[steps - 1], p)) steps--;
    ends[steps] = std::max(ends[steps], p.offset + p.count);
  }
  for (size_t done = order.size(); done-- > 0;) from_[done] = std::max(from_[done + 1], ends[done + 1]);
}

}  // namespace looplm

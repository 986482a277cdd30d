#include "initial_state.h"

#include <algorithm>

#include "../numeric/philox.h"

namespace looplm {

bool begins_with_state(const Architecture& a) {
  return std::any_of(a.begin.begin(), a.begin.end(), [](const Step& s) { return s.kind == Step::Kind::state; });
}

void StateKey::append(int32_t token) {
  const PhiloxBlock mixed = philox4x32({uint32_t(token), uint32_t(key_), uint32_t(key_ >> 32), 1}, 0);
  key_ = uint64_t(mixed[0]) << 32 | mixed[1];
}

void StateKey::draw(const Architecture& a, uint64_t seed, double* out) const {
  for (int64_t d = 0; d < a.hidden; d++)
    out[d] = a.state_deviation * truncated_normal(seed, uint32_t(key_ >> 32), uint32_t(key_), uint32_t(d));
}

}  // namespace looplm

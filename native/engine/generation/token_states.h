// Registers of tokens between two passes.
#pragma once
#include "head_row.h"

namespace looplm {

class TokenStates {
 public:
  explicit TokenStates(Generation& generation) : g_(generation), gather_(generation.model) {}

  // Room for `most` tokens, so that `gather` cannot fail.
  void reserve(size_t most);
  // These states = rows `index` of `from`.
  void gather(const std::vector<int32_t>& index, const Stack::Registers& from);
  // Only these of its tokens stay; `index` grows. Takes no memory: rows are dropped where there is none.
  void keep(const std::vector<int32_t>& index);
  // Into a loop's registers, behind those of its `fresh` tokens.
  void load(const Stack& loop, size_t fresh);
  void* at(size_t r, size_t token) { return states_.values.at((r * states_.tokens + token) * g_.state_bytes); }
  void clear() noexcept { states_.tokens = 0; }

 private:
  struct States {  // act [R, tokens, D]
    Buffer values;
    size_t tokens = 0;
  };
  Generation& g_;
  RowGather gather_;
  States states_, next_;
};

}  // namespace looplm

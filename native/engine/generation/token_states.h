// Stores the registers of tokens between two passes.
#pragma once
#include "head_row.h"

namespace looplm {

class TokenStates {
 public:
  explicit TokenStates(Generation& generation) : g_(generation), gather_(generation.model) {}

  // Allocates memory for `most` tokens, so that `gather` cannot fail.
  void reserve(size_t most);
  // Replaces the stored states by rows `index` of `from`.
  void gather(const std::vector<int32_t>& index, const Stack::Registers& from);
  // Keeps only these tokens; `index` must be ascending. Allocates nothing, because rows are dropped when memory has run out.
  void keep(const std::vector<int32_t>& index);
  // Copies the states into the input registers of a loop, after its `fresh` tokens.
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

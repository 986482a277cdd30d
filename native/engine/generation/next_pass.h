// The tokens of the next pass, and where their registers are.
#pragma once
#include "rows.h"

namespace looplm {

struct NextPass {
  std::vector<ActiveToken> fresh, staying;
  std::vector<int32_t> index;  // of the staying tokens, in the pass that has just run
  struct Kept {                // a drafted token, whose registers Speculation has kept
    size_t to;
    const Row* row;
    int32_t ahead;
  };
  std::vector<Kept> from_drafts;
  std::vector<Row*> done;

  void stay(const ActiveToken& token, size_t i) {
    index.push_back(int32_t(i));
    staying.push_back(token);
  }
};

}  // namespace looplm

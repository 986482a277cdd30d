// Tokens of the next pass, and where their registers are.
#pragma once
#include "rows.h"

namespace looplm {

struct NextPass {
  std::vector<ActiveToken> fresh, staying;
  std::vector<int32_t> index;  // of the staying, among the rows of the pass that has run
  struct Kept {                // of a draft: its registers lie with Speculation
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

// The head: the T·N response rows are rows of one linear layer, run chunk by chunk, so that [T, N, V] never exists (math.md §2).
#pragma once
#include "model.h"

namespace looplm {

struct HeadRows {
  int64_t rows;
  const void* hidden;      // act [anything, D]
  const int32_t* index;    // device [rows]: the row of `hidden` (and of d_hidden) each row reads
  const int32_t* targets;  // device [rows]
  double temperature;
  const void* weight;  // act [V, D]: the model's own head, or for a forward another model's of the same shape
};

// The `count` tokens with the largest logits of each row from `first_row` on, best first, the lowest id of equal ones first.
struct HeadTop {
  int64_t first_row;
  int count;
  const std::vector<int32_t>& targets;  // [rows - first_row], on the host
  std::vector<int32_t> tokens;          // [rows - first_row, count]
  std::vector<double> margins;          // likewise: log P of the token less log P of the row's target
};

// logprobs, entropies: real [rows], either may be NULL. predicted: the most probable token of each row, the lowest id of equal
// ones.
void head_forward(Model& model, const HeadRows& in, void* logprobs, void* entropies, int32_t* predicted = nullptr,
                  HeadTop* top = nullptr);

// The same, and with each row's coefficient from `loss`: d_hidden (real) and the head's gradient are added to.
void head_backward(Model& model, const HeadRows& in, const LoopLoss& loss, void* logprobs, void* entropies, void* d_hidden);

}  // namespace looplm

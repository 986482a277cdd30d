// The output head. The T·N rows of all loops go through one linear layer in chunks, so [T, N, V] logits never exist at once
// (math.md §2).
#pragma once
#include "model.h"

namespace looplm {

struct HeadRows {
  int64_t rows;
  const void* hidden;      // act [any number of rows, D]
  const int32_t* index;    // device [rows]: the row of `hidden` (and of d_hidden) that each row reads
  const int32_t* targets;  // device [rows]
  double temperature;
  const void* weight;  // act [V, D]: the model's own head, or in a forward pass that of another model of the same shape
};

// The `count` tokens with the largest logits of each row from `first_row` on, the most probable first. Ties go to the lower
// token id.
struct HeadTop {
  int64_t first_row;
  int count;
  const std::vector<int32_t>& targets;  // [rows - first_row], on the host
  std::vector<int32_t> tokens;          // [rows - first_row, count]
  std::vector<double> margins;          // [rows - first_row, count]: log P of the token minus log P of the row's target
};

// logprobs, entropies: real [rows]; either may be NULL. predicted: the most probable token of each row; ties go to the lower
// id.
void head_forward(Model& model, const HeadRows& in, void* logprobs, void* entropies, int32_t* predicted = nullptr,
                  HeadTop* top = nullptr);

// Forward and backward. `loss` gives each row's coefficient. Adds to d_hidden (real) and to the head's gradient.
void head_backward(Model& model, const HeadRows& in, const LoopLoss& loss, void* logprobs, void* entropies, void* d_hidden);

}  // namespace looplm

// Draws the tokens of rows that exit.
#pragma once
#include "head_row.h"

namespace looplm {

class Sampler {
 public:
  Sampler(Model& model, RowGather& gather) : model_(model), gather_(gather) {}

  // For the rows of a chunk that exit, from logits real [chunk, V].
  void draw(std::vector<HeadRow>& rows, const std::vector<int32_t>& chunk, Buffer& logits);

 private:
  struct Memory {
    Buffer logits;                        // real [rows, V]
    Buffer sequences, positions, tokens;  // int32 [rows]
    Buffer logprobs;                      // real [rows]
  };
  void draw_alike(std::vector<HeadRow>& rows, const std::vector<int32_t>& chunk, const std::vector<int32_t>& group,
                  Buffer& logits);

  Model& model_;
  RowGather& gather_;
  Memory memory_;
};

}  // namespace looplm

// Draws the next token of rows that exit.
#pragma once
#include "head_row.h"

namespace looplm {

class Sampler {
 public:
  Sampler(Generation& generation, RowGather& gather) : g_(generation), model_(generation.model), gather_(gather) {}

  // Draws for the rows of a chunk that exit, from logits real [chunk, V]. Rows that still wait for the host's answer are
  // deferred.
  void draw(std::vector<HeadRow>& rows, const std::vector<int32_t>& chunk, Buffer& logits);
  // Draws for deferred rows whose answer has arrived. They must still have the same index.
  void draw_deferred(std::vector<HeadRow>& rows);

 private:
  struct Memory {
    Buffer logits, own;                   // real [rows, V]
    Buffer sequences, positions, tokens;  // int32 [rows]
    Buffer logprobs;                      // real [rows]
    Buffer edits, allowed;
    Buffer deferred;                    // real [row indices, V]: unchanged logits from the head
    Buffer host_logits, deferred_rows;  // real [V], real [rows, V]
  };
  using Index = std::vector<int32_t>;
  void draw_alike(std::vector<HeadRow>& rows, const Index& chunk, const Index& group, Buffer& logits);
  void defer(HeadRow& row, int64_t place, Buffer& logits);
  void edit(const std::vector<const HeadRow*>& rows, void* logits);
  void replace(const std::vector<const HeadRow*>& rows, Buffer& logits);

  Generation& g_;
  Model& model_;
  RowGather& gather_;
  Memory memory_;
};

}  // namespace looplm

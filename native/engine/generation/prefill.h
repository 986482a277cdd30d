// Prompts: every token runs at full depth, in pieces between the passes of the rows under way.
#pragma once
#include "rows.h"

namespace looplm {

class Prefill {
 public:
  explicit Prefill(Generation& generation) : g_(generation), tokens_(generation.options.prefill_tokens) {}

  bool open() const;  // some prompt has not run yet
  // Runs a bounded number of prompt tokens, the oldest prompts first.
  void run();
  // Smaller pieces from now on, after one that found no memory. False when they are as small as they get.
  bool shrink();
  void restore() { tokens_ = g_.options.prefill_tokens; }

 private:
  struct Piece {  // tokens [from, to) of a prompt
    Prompt* prompt;
    int64_t from, to;
    int64_t count() const { return to - from; }
    bool completes() const { return to == prompt->length(); }
  };
  struct Packed;  // pieces back to back
  struct Memory {
    Buffer ids, positions, slots, previous, recent;  // int32 [N]
    Buffer segments;                                 // LoopSegment [pieces]
    Buffer states;                                   // act [N, D], initial
    Buffer vectors;                                  // act [input vectors, D]
  };
  void release_sources();
  std::vector<Piece> next_pieces(int64_t room) const;
  int64_t prefix_of(const Piece& piece) const;  // tokens of it that attention has in front of the batch
  int64_t end_of_piece(const Prompt& prompt, int64_t room) const;
  void add_segments(const Piece& piece, int32_t row, int32_t prefix, Packed& to) const;
  static std::vector<int32_t> rows_before(const std::vector<Piece>& pieces, int64_t tokens);
  Packed pack(const std::vector<Piece>& pieces) const;
  void run_pieces(const std::vector<Piece>& pieces);
  void reserve(const std::vector<Piece>& pieces);
  const void* initial_states(const std::vector<Piece>& pieces, int64_t tokens);
  void add_vectors(const std::vector<Piece>& pieces, DeviceBatch& batch);
  void load_states(const std::vector<Piece>& pieces, const Stack::Registers& inputs);
  void keep_states(const std::vector<Piece>& pieces, const Stack::Registers& outputs);
  void keep_last(const std::vector<Piece>& pieces, const Stack::Registers& outputs, int loop);
  void encode(const std::vector<Piece>& pieces);  // with residuals
  void advance(const std::vector<Piece>& pieces);
  void copy(void* to, const void* from, int64_t states);

  Generation& g_;
  int64_t tokens_;  // of a turn
  Memory memory_;
};

}  // namespace looplm

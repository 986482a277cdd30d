// Runs prompts through all loops, in pieces between the passes of the decoding rows.
#pragma once
#include "rows.h"

namespace looplm {

class Prefill {
 public:
  explicit Prefill(Generation& generation) : g_(generation), tokens_(generation.options.prefill_tokens) {}

  bool open() const;  // whether any prompt still has to run
  // Runs a limited number of prompt tokens, the oldest prompts first.
  void run();
  // Uses smaller pieces from now on, after a piece ran out of memory. Returns false if they cannot get smaller.
  bool shrink();
  void restore() { tokens_ = g_.options.prefill_tokens; }

 private:
  struct Piece {  // tokens [from, to) of a prompt
    Prompt* prompt;
    int64_t from, to;
    int64_t count() const { return to - from; }
    bool completes() const { return to == prompt->length(); }
  };
  struct Packed;  // pieces one after the other
  struct Memory {
    Buffer ids, positions, slots, previous, recent;  // int32 [N]
    Buffer segments;                                 // LoopSegment [pieces]
    Buffer states;                                   // act [N, D], initial states
    Buffer vectors;                                  // act [input vectors, D]
  };
  void release_sources();
  std::vector<Piece> next_pieces(int64_t room) const;
  int64_t prefix_of(const Piece& piece) const;  // number of its cached tokens that attention puts in front of the batch
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
  void encode(const std::vector<Piece>& pieces);  // only with residuals
  void advance(const std::vector<Piece>& pieces);
  void copy(void* to, const void* from, int64_t states);

  Generation& g_;
  int64_t tokens_;  // tokens per turn
  Memory memory_;
};

}  // namespace looplm

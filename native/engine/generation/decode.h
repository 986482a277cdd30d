// The rows under way: every pass takes each of their tokens one loop further.
#pragma once
#include "graph_capture.h"
#include "speculation.h"
#include "token_head.h"

namespace looplm {

class Decode {
 public:
  explicit Decode(Generation& generation)
      : g_(generation),
        head_(generation),
        speculation_(generation),
        gather_(generation.model),
        graphs_(generation.model.device) {}

  void reserve() { speculation_.reserve(); }  // what rows need before their first pass
  // Rows whose prompt has run, now or for an earlier row, draw their first token: the registers behind every loop are there, and
  // the exit rule chooses among them.
  void start_rows();
  void run();
  // Rows whose draw waited for the host's answer, which has come.
  void draw_deferred();
  // Nothing is left to do before the host answers.
  bool waits_for_host() const;
  // Takes a row's tokens out of the pass; the registers of the others close up.
  void drop(const Row& row);
  void clear() noexcept;

 private:
  // Registers of tokens between two passes, act [R, tokens, D].
  struct States {
    Buffer values;
    size_t tokens = 0;
  };
  struct Memory {
    Buffer rows;                                       // of a pass: contexts, positions, slots, token ids
    Buffer begin_slots, begin_before, begin_contexts;  // of fresh tokens in the planes of `begin`
    Buffer initial;                                    // act [fresh, D]
    Buffer first, before;                              // act [R, rows, D], act [rows, D]: of first tokens
    Buffer token, exit_loop;                           // of a whole token: act [D], int32
  };
  struct Next;  // tokens of the next pass, and where their registers are

  bool whole_token();
  bool whole_token_allowed(std::vector<LoopDecodeLayer>& layers) const;
  std::vector<LoopRows> loops_of_rows() const;
  // Of the token before, in a plane.
  static int64_t slot_before(const ActiveToken& token) {
    const Row& row = *token.row;
    return token.made() > 1 ? row.slot + token.made() - 2 : row.prompt->slot + row.prompt->length() - 1;
  }
  const int32_t* upload_rows(CacheUse& use, int32_t& last_position);
  void begin(const Stack& loop, size_t fresh, const int32_t* ints, int32_t last_position);
  const void* initial_states(size_t fresh);
  void load_states(const Stack& loop, size_t fresh);
  void settle(const Stack::Registers& after, const void* before, HeadRow::Ask ask, int loops);
  void settle_draft(size_t i, std::vector<HeadRow>& reads, const Stack::Registers& after, Next& next);
  // What became of a row that left the loops; false when it needs no pass now.
  bool accept(Row& row, HeadRow& read, std::vector<Row*>& done);
  void settle_plain(size_t i, std::vector<HeadRow>& reads, Next& next);
  void gather_states(const std::vector<int32_t>& index, const Stack::Registers& from);
  std::vector<Row*> read_first(const std::vector<Row*>& rows, int loop, std::vector<ActiveToken>& fresh);
  HeadRow head_row(const Row& row, HeadRow::Ask ask, int loop, int32_t ahead) const;

  Generation& g_;
  TokenHead head_;
  Speculation speculation_;
  RowGather gather_;
  GraphCapture graphs_;  // of passes
  struct Deferred {      // a row between the head and its draw
    Row* row;
    int loop;
  };
  std::vector<Deferred> deferred_;
  std::vector<ActiveToken> tokens_;  // fresh ones (loop 0) first; `states_` has those of the others, in their order
  States states_, next_states_;
  Memory memory_;
};

}  // namespace looplm

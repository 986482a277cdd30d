// The decoding rows. Every pass runs one more loop for each of their tokens.
#pragma once
#include "graph_capture.h"
#include "pass_inputs.h"
#include "speculation.h"
#include "token_head.h"
#include "token_states.h"
#include "wavefront.h"
#include "whole_token.h"

namespace looplm {

class Decode {
 public:
  explicit Decode(Generation& generation)
      : g_(generation),
        head_(generation),
        speculation_(generation),
        wavefront_(generation),
        inputs_(generation),
        states_(generation),
        whole_token_(generation),
        graphs_(generation.model.device) {}

  void reserve() { speculation_.reserve(); }  // memory that rows need before their first pass
  // Draws the first token of rows whose prompt has run (perhaps for an earlier row). The prompt's registers after every loop
  // are stored, and the exit rule chooses among them.
  void start_rows();
  void run();
  // Draws for the rows whose answer from the host has arrived.
  void draw_deferred();
  // Whether nothing is left to do before the host answers.
  bool waits_for_host() const;
  // Removes a row's tokens from the next pass, and closes the gap in the stored registers.
  void drop(const Row& row);
  void clear() noexcept;

 private:
  void settle(const Stack::Registers& after, const void* before, HeadRow::Ask ask, int loops);
  void settle_draft(size_t i, std::vector<HeadRow>& reads, const Stack::Registers& after, NextPass& next);
  // Handles a row whose token exited. Returns false if the row needs no pass now.
  bool accept(Row& row, HeadRow& read, std::vector<Row*>& done);
  void settle_plain(size_t i, std::vector<HeadRow>& reads, NextPass& next);
  void settle_waves(std::vector<HeadRow>& reads, NextPass& next);
  std::vector<ActiveToken> read_first(const std::vector<ActiveToken>& tokens, std::vector<ActiveToken>& fresh);

  Generation& g_;
  TokenHead head_;
  Speculation speculation_;
  Wavefront wavefront_;
  PassInputs inputs_;
  TokenStates states_;  // of the tokens after the fresh ones, in the same order
  WholeToken whole_token_;
  GraphCapture graphs_;  // recordings of passes
  struct Deferred {      // a row that exited but waits for the host's answer before its draw
    Row* row;
    int loop;
  };
  std::vector<Deferred> deferred_;
  std::vector<ActiveToken> tokens_;  // fresh tokens (loop 0) first
  Buffer first_, before_;            // act [R, rows, D], act [rows, D]: for the first token of each row
};

}  // namespace looplm

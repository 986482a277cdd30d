// The rows under way: every pass takes each of their tokens one loop further.
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
  void settle(const Stack::Registers& after, const void* before, HeadRow::Ask ask, int loops);
  void settle_draft(size_t i, std::vector<HeadRow>& reads, const Stack::Registers& after, NextPass& next);
  // What became of a row that left the loops; false when it needs no pass now.
  bool accept(Row& row, HeadRow& read, std::vector<Row*>& done);
  void settle_plain(size_t i, std::vector<HeadRow>& reads, NextPass& next);
  void settle_waves(std::vector<HeadRow>& reads, NextPass& next);
  std::vector<ActiveToken> read_first(const std::vector<ActiveToken>& tokens, std::vector<ActiveToken>& fresh);

  Generation& g_;
  TokenHead head_;
  Speculation speculation_;
  Wavefront wavefront_;
  PassInputs inputs_;
  TokenStates states_;  // of the tokens behind the fresh ones, in their order
  WholeToken whole_token_;
  GraphCapture graphs_;  // of passes
  struct Deferred {      // a row between the head and its draw
    Row* row;
    int loop;
  };
  std::vector<Deferred> deferred_;
  std::vector<ActiveToken> tokens_;  // fresh ones (loop 0) first
  Buffer first_, before_;            // act [R, rows, D], act [rows, D]: of first tokens
};

}  // namespace looplm

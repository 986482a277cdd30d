// What a sequence that decodes by wavefront has beside its row: tokens ahead of its front, and whether drafting pays.
#pragma once
#include <map>

#include "request.h"

namespace looplm {

struct Architecture;

// What readouts between the loops said of a token's draw.
struct Readouts {
  bool wanted = false;  // the token is read between its loops
  int32_t token = -1;   // of the latest,
  int since = 0;        // and the first loop, 1-based, from which all have said so
  void add(int32_t drawn, int loop) {
    if (drawn != token) token = drawn, since = loop;
  }
};

// The time that a token takes, in weights that are multiplied with a row: plain, and at the front of a wave.
struct TokenCosts {
  double blocks = 0, head = 0;  // weights of the loop's blocks; of the head and the blocks before it
  double reading = 0;           // reading a weight takes as long as multiplying it with so many rows

  TokenCosts() = default;
  TokenCosts(const Architecture& architecture, double reading);
  // sequences: that share the reading.
  double plain(double loops, double sequences) const {
    const double passes_with_head = loops < sequences ? loops : sequences;
    return blocks * loops * (1 + reading / sequences) + head * (1 + reading * passes_with_head / sequences);
  }
  // rows: of the wave in one pass. passes: between two tokens.
  double wave(double rows, double passes, double sequences) const {
    return (blocks + head) * passes * (rows + reading / sequences);
  }
};

// Decides whether a sequence drafts, by how early the readouts of its latest tokens said what was drawn in the end. What is drawn
// does not depend on it.
class WavefrontPace {
 public:
  WavefrontPace() = default;
  WavefrontPace(const TokenCosts& costs, int loops, int stride, int64_t sequences);

  bool drafts() const { return drafts_; }
  // The next token is read between its loops: it is to be drafted from, or tried.
  bool reads() const { return drafts_ || (stride_ > 0 && pause_ == 0); }
  // A token of the sequence has been drawn after `loops` loops.
  void add(const Readouts& readouts, int loops, int64_t sequences);

 private:
  static constexpr double FADE = 0.9;            // of what a token counts, at the next
  static constexpr int TRIED = 4, LONGEST = 64;  // tokens
  void pause();
  bool pays(double loops, double passes, int64_t sequences) const;

  TokenCosts costs_;
  int stride_ = 0;
  double loops_ = 0, passes_ = 0, tokens_ = 0;  // sums that fade: loops of tokens, and loops until their draw was known
  bool drafts_ = false;
  int pause_ = 0, next_pause_ = 8, tried_ = 0;  // tokens
};

struct Wave {
  static constexpr int MOST_ROWS = 8;  // of a sequence in one pass
  int stride = 0;                      // loops between readouts; 0: the sequence is decoded plainly
  int32_t width = 1;                   // tokens that may be under way
  std::vector<int32_t> places = {};    // in buffers with a place for every row, beside the row's own
  WavefrontPace pace = {};
  struct Drawn {  // a token that left its loops before one ahead of it did
    GeneratedToken token;
    Readouts readouts;
  };
  std::map<int32_t, Drawn> drawn = {};  // by the number of new tokens before it
};

}  // namespace looplm

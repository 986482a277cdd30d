// The state of a sequence that decodes by wavefront: the tokens ahead of its oldest unfinished one (its front), and the
// estimate whether drafting pays off.
#pragma once
#include <map>

#include "request.h"

namespace looplm {

struct Architecture;

// What the readouts between the loops predicted as a token's successor.
struct Readouts {
  bool wanted = false;  // read this token between its loops
  int32_t token = -1;   // latest prediction,
  int since = 0;        // and the first loop (1-based) since which all readouts agree on it
  void add(int32_t drawn, int loop) {
    if (drawn != token) token = drawn, since = loop;
  }
};

// Estimated time per token, in units of one weight multiplied with one row: for plain decoding and for a wave.
struct TokenCosts {
  double blocks = 0, head = 0;  // weights in the blocks of the loop; weights in the head and in the readout's blocks
  double reading = 0;           // loading a weight takes as long as multiplying it with this many rows

  TokenCosts() = default;
  TokenCosts(const Architecture& architecture, double reading);
  // sequences: how many share the loading of weights.
  double plain(double loops, double sequences) const {
    const double passes_with_head = loops < sequences ? loops : sequences;
    return blocks * loops * (1 + reading / sequences) + head * (1 + reading * passes_with_head / sequences);
  }
  // rows: of the wave in one pass. passes: from one token to the next.
  double wave(double rows, double passes, double sequences) const {
    return (blocks + head) * passes * (rows + reading / sequences);
  }
};

// Decides whether a sequence drafts, by how early the readouts of its latest tokens predicted the token that was finally
// drawn. The decision never changes which tokens are drawn.
class WavefrontPace {
 public:
  WavefrontPace() = default;
  WavefrontPace(const TokenCosts& costs, int loops, int stride, int64_t sequences);

  bool drafts() const { return drafts_; }
  // Whether to read the next token between its loops, because it is drafted from or because drafting is being tried again.
  bool reads() const { return drafts_ || (stride_ > 0 && pause_ == 0); }
  // A token of the sequence was drawn after `loops` loops.
  void add(const Readouts& readouts, int loops, int64_t sequences);

 private:
  static constexpr double FADE = 0.9;  // decay per token of the averages below
  // In tokens: the length of a trial before it is judged; the first pause after one that did not pay, and the longest. A pause
  // doubles each time.
  static constexpr int TRIED = 4, FIRST_PAUSE = 8, LONGEST = 64;
  void pause();
  bool pays(double loops, double passes, int64_t sequences) const;

  TokenCosts costs_;
  int stride_ = 0;
  double loops_ = 0, passes_ = 0, tokens_ = 0;  // decaying sums: loops of tokens, loops until their successor was known, and
                                                // the count
  bool drafts_ = false;
  int pause_ = 0, next_pause_ = FIRST_PAUSE, tried_ = 0;  // in tokens
};

struct Wave {
  static constexpr int MOST_ROWS = 8;  // largest number of rows of a sequence in one pass
  int stride = 0;                      // loops between readouts; 0: plain decoding
  int32_t width = 1;                   // largest number of tokens in the loops at once
  std::vector<int32_t> places = {};    // in buffers with a place for every row, in addition to the row's own
  WavefrontPace pace = {};
  struct Drawn {  // a token drawn ahead of time: an earlier token is still in the loops
    GeneratedToken token;
    Readouts readouts;
  };
  std::map<int32_t, Drawn> drawn = {};  // by the number of new tokens before it
};

}  // namespace looplm

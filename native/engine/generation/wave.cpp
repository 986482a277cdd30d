#include "wave.h"

#include <algorithm>

#include "../architecture.h"

namespace looplm {

TokenCosts::TokenCosts(const Architecture& a, double reads) : reading(reads) {
  const double block = double(a.hidden) * double(a.attention_rows() + a.attention_width() + 3 * a.intermediate);
  blocks = block * a.blocks(a.loop);
  head = double(a.hidden) * double(a.vocabulary) + block * a.blocks(a.read);
}

WavefrontPace::WavefrontPace(const TokenCosts& costs, int loops, int stride, int64_t sequences)
    : costs_(costs), stride_(stride), loops_(loops), passes_(stride), tokens_(1) {
  drafts_ = pays(loops, stride, sequences);
  if (!drafts_) pause();
}

bool WavefrontPace::pays(double loops, double passes, int64_t sequences) const {
  const double n = double(std::max<int64_t>(1, sequences));
  return costs_.wave(std::max(1.0, loops / stride_), passes, n) < costs_.plain(loops, n);
}

void WavefrontPace::pause() {
  drafts_ = false;
  pause_ = next_pause_;
  next_pause_ = std::min(2 * next_pause_, LONGEST);
  tried_ = 0;
}

void WavefrontPace::add(const Readouts& readouts, int loops, int64_t sequences) {
  if (stride_ == 0) return;
  if (!readouts.wanted || pause_ > 0) {
    if (pause_ > 0 && --pause_ == 0 && !pays(loops, stride_, sequences)) pause();
    return;
  }
  if (!drafts_ && tried_++ == 0) loops_ = passes_ = tokens_ = 0;  // values from before the pause are outdated
  loops_ = FADE * loops_ + loops;
  passes_ = FADE * passes_ + readouts.since;
  tokens_ = FADE * tokens_ + 1;
  if (!drafts_ && tried_ < TRIED) return;
  const bool paid = pays(loops_ / tokens_, passes_ / tokens_, sequences);
  if (paid && !drafts_) drafts_ = true, next_pause_ = FIRST_PAUSE, tried_ = 0;
  else if (!paid) pause();
}

}  // namespace looplm

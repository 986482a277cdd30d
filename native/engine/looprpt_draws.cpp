#include "looprpt_draws.h"

#include <algorithm>

#include "pass.h"
#include "../numeric/philox.h"

namespace looplm {

LoopRptDraws::LoopRptDraws(Model& student, const LoopRptBatch& batch, const LoopRptOptions& options, int loops)
    : student_(student), batch_(batch), s_(batch.sequences), o_(options), loops_(loops) {
  int64_t noise_end = 0, exits_end = 0;
  for (size_t i = 0; i < s_.count(); i++) {
    noise_at_.push_back(noise_end);
    exits_at_.push_back(exits_end);
    noise_end += o_.rollouts * loops_ * s_.length(i) * student_.config.hidden;
    exits_end += o_.rollouts * (s_.length(i) - 1);
  }
  const auto require = [](bool ok, const char* what) {
    if (!ok) throw Error("INVALID_ARGUMENT", "looprpt", what);
  };
  require(batch.noise.empty() || int64_t(batch.noise.size()) == noise_end,
          "noise must hold rollouts × loops × len × hidden_size values per sequence");
  require(batch.exits.empty() || int64_t(batch.exits.size()) == exits_end,
          "exits must hold rollouts × (len-1) values per sequence");
  require(std::all_of(batch.exits.begin(), batch.exits.end(), [&](int32_t t) { return t >= 0 && t < loops; }),
          "exits are loops counted from 0");
}

// The stream number of a rollout in the counter-based generator.
int32_t LoopRptDraws::stream_of(size_t sequence, int rollout) const {
  return int32_t(batch_.ids[sequence] * uint32_t(o_.rollouts) + uint32_t(rollout));
}

LatentNoise LoopRptDraws::noise(const Rollouts& of) const {
  if (!batch_.noise.empty()) return given_noise(of);
  const int64_t n = of.one.tokens();
  // The two rollouts of an antithetic pair use the same stream with opposite signs.
  std::vector<int32_t> streams(size_t(of.packed.tokens()), 0);
  std::vector<double> sigma(o_.antithetic ? size_t(of.copies()) : 1, o_.sigma);
  for (int c = 0; c < of.copies(); c++) {
    const int g = of.begin + c;
    if (o_.antithetic && g % 2 == 1) sigma[size_t(c)] = -o_.sigma;
    for (size_t i = of.one.begin; i < of.one.end; i++)
      std::fill_n(streams.begin() + c * n + of.one.first_token[i - of.one.begin], s_.length(i) - 1,
                  stream_of(i, o_.antithetic ? g - g % 2 : g));
  }
  return {o_.noise_site, nullptr, sigma, o_.seed, upload_ints(student_.device, student_.memory().looprpt.streams, streams)};
}

LatentNoise LoopRptDraws::given_noise(const Rollouts& of) const {
  const int64_t n = of.one.tokens(), N = of.packed.tokens(), D = student_.config.hidden;
  std::vector<double> noise(size_t(loops_ * N * D), 0.0);
  for (int g = of.begin; g < of.end; g++)
    for (size_t i = of.one.begin; i < of.one.end; i++)
      for (int t = 0; t < loops_; t++) {  // the last token predicts nothing, so it does not run
        const int64_t from = noise_at_[i] + (g * loops_ + t) * s_.length(i) * D,
                      to = t * N + (g - of.begin) * n + of.one.first_token[i - of.one.begin];
        std::copy_n(batch_.noise.begin() + from, (s_.length(i) - 1) * D, noise.begin() + to * D);
      }
  const std::vector<uint8_t> raw = rounded(student_.dt, noise);
  Buffer& given = student_.memory().looprpt.noise;
  given.reserve(student_.device, raw.size());
  given.upload(raw.data(), raw.size());
  return {o_.noise_site, given.as<>(), {}, 0, nullptr};
}

int LoopRptDraws::exit(const PredictionRow& row, int rollout, const ExitTable& exits, size_t r) const {
  const size_t sequence = size_t(row.sequence);
  if (!batch_.exits.empty())
    return batch_.exits[size_t(exits_at_[sequence] + rollout * (s_.length(sequence) - 1) + row.position)];
  const double u = uniform(o_.seed, uint32_t(stream_of(sequence, rollout)), uint32_t(row.position), REPLAY_EXIT_STREAM);
  double cdf = 0;
  for (int t = 0; t + 1 < loops_; t++) {
    cdf += exits.pdf[size_t(t) * size_t(exits.rows) + r];
    if (u < cdf) return t;
  }
  return loops_ - 1;
}

}  // namespace looplm

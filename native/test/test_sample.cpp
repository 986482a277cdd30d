#include <algorithm>
#include <cmath>
#include <numeric>

#include "../numeric/philox.h"
#include "harness.h"

namespace looplm::test::sample_tests {
namespace {

struct Options {
  double temperature = 1;
  int32_t top_k = 0;
  double top_p = 1, min_p = 0;
  std::string name() const {
    char text[96];
    std::snprintf(text, sizeof text, "temperature %g, top-k %d, top-p %g, min-p %g", temperature, top_k, top_p, min_p);
    return text;
  }
};
const std::vector<Options> all_options = {{0},
                                          {1},
                                          {0.6},
                                          {1.7},
                                          {1, 1},
                                          {0.8, 5},
                                          {1, 40},
                                          {1, 9999999},
                                          {1, 0, 0.9},
                                          {0.7, 0, 0.3},
                                          {1, 0, 1e-6},
                                          {1, 0, 1, 0.05},
                                          {0.9, 0, 1, 0.5},
                                          {1, 20, 0.8, 0.02},
                                          {0.5, 7, 0.95, 0.1}};

struct Draws {
  int64_t vocabulary;
  Values logits;
  Ints sequences, positions;
};

struct Sampled {
  Ints tokens;
  Values logprobs;
};

Sampled run(const Device& d, const Draws& in, const Options& o, uint64_t seed = 1234567890123) {
  const size_t n = in.sequences.size();
  Buffer logits = real(d, in.logits), sequences(d, in.sequences), positions(d, in.positions), tokens(d, Ints(n, -1)),
         logprobs = real(d, n);
  const LoopSample s{int64_t(n),
                     in.vocabulary,
                     logits,
                     o.temperature,
                     o.top_k,
                     o.top_p,
                     o.min_p,
                     seed,
                     sequences.as<int32_t>(),
                     positions.as<int32_t>(),
                     static_cast<int32_t*>(static_cast<void*>(tokens)),
                     logprobs};
  d.expect(d.table.sample(d.ctx, d.dt, &s), "sample");
  Sampled out{{}, logprobs.values()};
  for (double token : tokens.values()) out.tokens.push_back(int32_t(token));
  return out;
}

Draws draws(Test& t, size_t rows, int64_t vocabulary) {
  Draws in{vocabulary, t.real_normal(rows * size_t(vocabulary), 2), t.integers(rows, 1000), t.integers(rows, 5000)};
  for (size_t i = 0; i < rows; i += 2)  // these rows have peaks
    for (int64_t v = 0; v < 3; ++v) {
      double& logit = in.logits[i * size_t(vocabulary) + size_t((v * 7 + 3) % vocabulary)];
      logit = rounded(t.device.real(), logit + 9);
    }
  return in;
}

// The distribution after the logits warpers of Hugging Face transformers; each sorts and renormalizes.
Values warped(Values x, const Options& o) {
  const size_t n = x.size();
  for (double& logit : x) logit /= o.temperature;
  const auto softmax = [&] {
    Values p;
    const double largest = *std::max_element(x.begin(), x.end());
    for (double logit : x) p.push_back(std::exp(logit - largest));
    const double sum = std::accumulate(p.begin(), p.end(), 0.0);
    for (double& value : p) value /= sum;
    return p;
  };
  const auto descending = [&] {
    std::vector<size_t> order(n);
    std::iota(order.begin(), order.end(), size_t(0));
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return x[a] > x[b]; });
    return order;
  };
  if (o.top_k > 0) {
    const double smallest = x[descending()[std::min(size_t(o.top_k), n) - 1]];
    for (double& logit : x)
      if (logit < smallest) logit = -INFINITY;
  }
  if (o.top_p < 1) {
    const Values p = softmax();
    double cumulative = 0;
    for (size_t v : descending()) {
      if (cumulative >= o.top_p) x[v] = -INFINITY;
      cumulative += p[v];
    }
  }
  if (o.min_p > 0) {
    const Values p = softmax();
    const double largest = *std::max_element(p.begin(), p.end());
    for (size_t v = 0; v < n; ++v)
      if (p[v] < o.min_p * largest) x[v] = -INFINITY;
  }
  return softmax();
}

Sampled plain_sample(const Draws& in, const Options& o, uint64_t seed = 1234567890123) {
  Sampled out;
  for (size_t i = 0; i < in.sequences.size(); ++i) {
    const Values row = slice(in.logits, i * size_t(in.vocabulary), size_t(in.vocabulary));
    const Values full = warped(row, {o.temperature == 0 ? 1 : o.temperature});
    size_t token = size_t(std::max_element(row.begin(), row.end()) - row.begin());
    if (o.temperature > 0) {
      const Values p = warped(row, o);
      const double u = uniform(seed, uint32_t(in.sequences[i]), uint32_t(in.positions[i]));
      double cumulative = p[0];
      for (token = 0; cumulative <= u && token + 1 < p.size();) cumulative += p[++token];
    }
    out.tokens.push_back(int32_t(token));
    out.logprobs.push_back(std::log(full[token]));
  }
  return out;
}

std::string disagreement(const Ints& a, const Ints& b) {
  size_t count = 0;
  for (size_t i = 0; i < a.size(); ++i) count += a[i] != b[i];
  return std::to_string(count) + " of " + std::to_string(a.size()) + " tokens differ";
}

KERNEL_TEST(sample_tokens, "sample") {
  for (const auto& [rows, vocabulary] : {std::pair{size_t(64), int64_t(31)},
                                         {size_t(13), int64_t(1031)},
                                         {size_t(2), int64_t(50000)},
                                         {size_t(3), int64_t(1)},
                                         {size_t(1), int64_t(60000)},  // longer than the shared memory of a CUDA block
                                         {size_t(1), int64_t(60001)}}) {
    const Draws in = draws(t, rows, vocabulary);
    for (const Options& o : all_options) {
      const Sampled got = run(t.device, in, o), truth = run(t.reference, in, o), plain = plain_sample(in, o);
      const std::string what = std::to_string(rows) + "x" + std::to_string(vocabulary) + ", " + o.name();
      t.claim(what + " token", got.tokens == plain.tokens, disagreement(got.tokens, plain.tokens));
      t.close_real(what + " logprob", got.logprobs, truth.logprobs, plain.logprobs);
    }
  }
}

KERNEL_TEST(sample_not_finite, "sample: logits without a distribution") {
  const auto with = [](int64_t vocabulary, double fill, size_t place, double value) {
    Values logits(size_t(vocabulary), fill);
    logits[place] = value;
    return logits;
  };
  for (const int64_t vocabulary : {int64_t(1), int64_t(31), int64_t(1031)}) {
    const size_t last = size_t(vocabulary) - 1;
    const std::vector<std::pair<std::string, Values>> rows = {{"all NaN", with(vocabulary, NAN, 0, NAN)},
                                                              {"the first NaN", with(vocabulary, 0.5, 0, NAN)},
                                                              {"the last NaN", with(vocabulary, 0.5, last, NAN)},
                                                              {"one infinite", with(vocabulary, 0.5, last / 2, INFINITY)},
                                                              {"none allowed", with(vocabulary, -INFINITY, 0, -INFINITY)}};
    for (const auto& [row, logits] : rows)
      for (const Options& o : all_options) {
        const Sampled got = run(t.device, {vocabulary, logits, {0}, {0}}, o);
        const bool known = got.tokens[0] >= 0 && got.tokens[0] < vocabulary;
        t.claim(row + " of " + std::to_string(vocabulary) + ", " + o.name(), known && !std::isfinite(got.logprobs[0]),
                "token " + std::to_string(got.tokens[0]) + ", logprob " + std::to_string(got.logprobs[0]));
      }
  }
}

KERNEL_TEST(edit_logits, "edit_logits") {
  for (const auto& [rows, vocabulary] :
       {std::pair{size_t(3), int64_t(1031)}, {size_t(9), int64_t(64)}, {size_t(1), int64_t(1)}}) {
    const Values logits = t.real_normal(rows * size_t(vocabulary), 2);
    const size_t words = size_t(vocabulary + 31) / 32;
    std::vector<LoopLogitEdit> edits;
    for (size_t i = 0; i < rows; ++i)
      for (int64_t v = int64_t(i) % 3; v < vocabulary; v += 5)
        edits.push_back({int64_t(i) * vocabulary + v, v % 4 == 0 ? 0.75 : 0.0, v % 3 == 0 ? 1.3 : 1.0, v % 2 == 0 ? 0.4 : 0.0});
    edits.back().bias = -INFINITY;
    Ints allowed;
    for (size_t w = 0; w < rows * words; ++w)  // no, all, and some tokens of a word allowed
      allowed.push_back(w % 3 == 0 ? 0 : w % 3 == 1 ? -1 : int32_t(0x9e3779b9u * uint32_t(w)));
    for (const bool masked : {false, true}) {
      Values expected = logits;
      for (const LoopLogitEdit& e : edits) {
        const double x = expected[size_t(e.place)] + e.bias;
        expected[size_t(e.place)] = rounded(t.device.real(), (x > 0 ? x / e.repetition : x * e.repetition) - e.penalty);
      }
      for (size_t i = 0; masked && i < expected.size(); ++i) {
        const size_t row = i / size_t(vocabulary), v = i % size_t(vocabulary);
        if (!(uint32_t(allowed[row * words + v / 32]) >> (v % 32) & 1)) expected[i] = -INFINITY;
      }
      Buffer x = real(t.device, logits), mask(t.device, allowed), changes = structs(t.device, edits);
      const LoopLogitEdits e{int64_t(rows),
                             vocabulary,
                             x,
                             int64_t(edits.size()),
                             changes.as<LoopLogitEdit>(),
                             masked ? mask.as<uint32_t>() : nullptr};
      t.device.expect(t.device.table.edit_logits(t.device.ctx, t.device.dt, &e), "edit_logits");
      const std::string what = std::to_string(rows) + "x" + std::to_string(vocabulary) + (masked ? ", masked" : "");
      t.claim(what, x.values() == expected, "logits differ from the formula");
    }
  }
}

KERNEL_TEST(sample_ties, "sample: ties") {
  const Draws in{6, {1, 3, 3, 0, 3, 2, 5, 5, 5, 5, 5, 5}, {0, 1}, {0, 0}};
  t.claim("greedy takes the lowest index", run(t.device, in, {0}).tokens == Ints{1, 0});
  Ints seen(6, 0), nucleus(6, 0);
  for (int32_t position = 0; position < 200; ++position) {
    ++seen[size_t(run(t.device, {6, {1, 3, 3, 0, 3, 2}, {0}, {position}}, {1, 2}).tokens[0])];
    ++nucleus[size_t(run(t.device, {6, {5, 5, 5, 5, 5, 5}, {0}, {position}}, {1, 0, 0.45}).tokens[0])];
  }
  const Values equal(5003, -0.25);
  bool within = true, spread = false;
  for (int32_t position = 0; position < 16; ++position) {
    const int32_t token = run(t.device, {5003, equal, {0}, {position}}, {1, 0, 0.5}).tokens[0];
    within &= token < 2502;
    spread |= token > 2000;
  }
  t.claim("top-p takes half of many equal ones", within && spread);
  Values zeros(64, -1.0);
  zeros[3] = 0.0, zeros[40] = -0.0;
  Ints drawn(64, 0);
  for (int32_t position = 0; position < 60; ++position)
    ++drawn[size_t(run(t.device, {64, zeros, {0}, {position}}, {1, 1}).tokens[0])];
  t.claim("both zeros tie for top-k", drawn[3] > 0 && drawn[40] > 0 && drawn[3] + drawn[40] == 60);
  t.claim("top-k keeps what ties with the k-th", seen[1] > 0 && seen[2] > 0 && seen[4] > 0 && seen[1] + seen[2] + seen[4] == 200);
  t.claim("top-p prefers the lower index",
          nucleus[0] > 0 && nucleus[1] > 0 && nucleus[2] > 0 && nucleus[0] + nucleus[1] + nucleus[2] == 200);
}

KERNEL_TEST(sample_independence, "sample: a draw does not depend on the batch") {
  const Draws in = draws(t, 64, 131);
  for (const Options& o : {Options{1}, Options{0.8, 20, 0.9, 0.02}}) {
    const Sampled batch = run(t.device, in, o);
    Ints tokens;
    Values logprobs;
    for (size_t i = 0; i < 64; ++i) {
      const Sampled one = run(t.device, {131, slice(in.logits, i * 131, 131), {in.sequences[i]}, {in.positions[i]}}, o);
      tokens.push_back(one.tokens[0]);
      logprobs.push_back(one.logprobs[0]);
    }
    t.claim(o.name() + " token", tokens == batch.tokens, disagreement(tokens, batch.tokens));
    t.same_bits(o.name() + " logprob", logprobs, batch.logprobs);
  }
  t.claim("another seed, other tokens", run(t.device, in, {1}, 1).tokens != run(t.device, in, {1}, 2).tokens);
}

// Compares the frequencies of many draws with the warped distribution: χ² must be far below what a wrong filter would give.
KERNEL_TEST(sample_frequencies, "sample: frequencies") {
  constexpr int32_t count = 20000;
  const Values logits = {0.3, -1, 2, 1.1, 0, -3, 1.4, 0.9};
  for (const Options& o :
       {Options{1}, Options{0.7}, Options{1, 5}, Options{1, 0, 0.8}, Options{1, 0, 1, 0.2}, Options{1.3, 6, 0.9, 0.1}}) {
    Draws in{8, {}, Ints(count, 17), Ints(count)};
    for (int32_t i = 0; i < count; ++i) {
      in.positions[size_t(i)] = i;
      in.logits.insert(in.logits.end(), logits.begin(), logits.end());
    }
    Values seen(8, 0.0);
    for (int32_t token : run(t.device, in, o).tokens) ++seen[size_t(token)];
    const Values p = warped(rounded(t.device.real(), logits), o);
    double chi = 0;
    bool outside = false;
    for (size_t v = 0; v < 8; ++v) {
      outside |= p[v] == 0 && seen[v] > 0;
      if (p[v] > 0) chi += (seen[v] - count * p[v]) * (seen[v] - count * p[v]) / (count * p[v]);
    }
    t.claim(o.name(), !outside && chi < 30,
            "chi square " + std::to_string(chi) + (outside ? ", and a filtered token was drawn" : ""));
  }
}

}  // namespace
}  // namespace looplm::test::sample_tests

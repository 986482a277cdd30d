// head_rows and policy_gradient: from logits to log-probabilities, coefficients and ∂L/∂logits (math.md §2).
#include <algorithm>
#include <cmath>

#include "harness.h"

namespace looplm::test::head_tests {
namespace {

struct Size {
  int64_t rows, vocabulary;
  std::string name() const { return std::to_string(rows) + "x" + std::to_string(vocabulary); }
};
const std::vector<Size> sizes = {{1, 31}, {7, 31}, {129, 31}, {1, 1031}, {13, 1031}, {64, 1031}, {3, 1}, {5, 50000}};

struct Loss {
  LoopSurrogate surrogate;
  const char* name;
  double dual_clip = 0;
  bool kl = false, entropy = false;
};
const std::vector<Loss> losses = {{LOOP_GIVEN, "given"},
                                  {LOOP_REINFORCE, "reinforce"},
                                  {LOOP_PPO, "ppo"},
                                  {LOOP_PPO, "ppo with dual clip", 1.5},
                                  {LOOP_CISPO, "cispo"},
                                  {LOOP_GIVEN, "given + kl", 0, true},
                                  {LOOP_REINFORCE, "reinforce + kl", 0, true},
                                  {LOOP_PPO, "ppo with dual clip + kl", 1.5, true},
                                  {LOOP_CISPO, "cispo + kl", 0, true},
                                  {LOOP_GIVEN, "given + entropy", 0, false, true},
                                  {LOOP_PPO, "ppo with dual clip + kl + entropy", 1.5, true, true}};

struct Rows {
  Size size;
  double temperature;
  Values logits;  // real
  Ints targets;
};

// Every second row has a peak: at its target, or at another token.
Rows rows(Test& t, const Size& s, double temperature) {
  Rows r{s, temperature, t.real_normal(size_t(s.rows * s.vocabulary), 2), t.integers(size_t(s.rows), int32_t(s.vocabulary))};
  const Ints peaks = t.integers(size_t(s.rows), int32_t(s.vocabulary));
  for (int64_t i = 1; i < s.rows; i += 2) {
    const int32_t at = i % 4 == 1 ? r.targets[size_t(i)] : peaks[size_t(i)];
    double& logit = r.logits[size_t(i * s.vocabulary + at)];
    logit = rounded(t.device.real(), logit + 14 + 0.1 * double(i % 7));
  }
  return r;
}

// The other inputs of a row. Every fifth row has scale 0, every third no KL, every fourth no entropy bonus.
struct Arrays {
  Values scale, advantage, old_logprob, reference_logprob, kl_scale, entropy_scale;
};

Arrays arrays(Test& t, const Values& logprobs) {
  const size_t n = logprobs.size();
  Arrays a{t.real_normal(n, 0.2), t.real_normal(n),      t.real_normal(n, 0.4),
           t.real_normal(n, 0.7), t.real_normal(n, 0.1), t.real_normal(n, 0.1)};
  for (size_t i = 0; i < n; ++i) {
    a.scale[i] = i % 5 == 4 ? 0 : std::abs(a.scale[i]);
    a.kl_scale[i] = i % 3 == 2 ? 0 : std::abs(a.kl_scale[i]);
    a.entropy_scale[i] = i % 4 == 3 ? 0 : std::abs(a.entropy_scale[i]);
    a.old_logprob[i] = rounded(t.device.real(), logprobs[i] + a.old_logprob[i]);
    a.reference_logprob[i] = rounded(t.device.real(), logprobs[i] + a.reference_logprob[i]);
  }
  return a;
}

// The arrays on a device, and the struct that points to them.
struct LossBuffers {
  LossBuffers(const Device& d, const Loss& l, const Arrays& a)
      : scale(real(d, a.scale)),
        advantage(real(d, a.advantage)),
        old_logprob(real(d, a.old_logprob)),
        reference_logprob(real(d, a.reference_logprob)),
        kl_scale(real(d, a.kl_scale)),
        entropy_scale(real(d, a.entropy_scale)) {
    const bool has_ratio = l.surrogate == LOOP_PPO || l.surrogate == LOOP_CISPO;
    loss = {l.surrogate,
            0.2,
            0.3,
            l.dual_clip,
            1.2,
            scale,
            advantage.when(l.surrogate != LOOP_GIVEN),
            old_logprob.when(has_ratio),
            reference_logprob.when(l.kl),
            kl_scale.when(l.kl),
            entropy_scale.when(l.entropy)};
  }
  Buffer scale, advantage, old_logprob, reference_logprob, kl_scale, entropy_scale;
  LoopLoss loss;
};

struct HeadResult {
  Values logprobs, entropies, dlogits;
};

// loss NULL: the logits do not change, and dlogits is empty.
HeadResult run(const Device& d, const Rows& r, const Loss* loss, const Arrays& a, bool with_logprobs = true,
               bool with_entropies = true) {
  Buffer logits = real(d, r.logits), targets(d, r.targets), logprobs = real(d, size_t(r.size.rows)),
         entropies = real(d, size_t(r.size.rows));
  const LossBuffers buffers(d, loss ? *loss : losses[0], a);
  d.expect(d.table.head_rows(d.ctx, d.dt, r.size.rows, r.size.vocabulary, r.temperature, logits, targets.as<int32_t>(),
                             loss ? &buffers.loss : nullptr, logprobs.when(with_logprobs), entropies.when(with_entropies)),
           "head_rows");
  HeadResult out{logprobs.values(), entropies.values(), {}};
  if (!loss) return out;
  const Values written = logits.values_as(d.dt);  // rows of act elements at a stride of `vocabulary` reals
  const size_t v = size_t(r.size.vocabulary), stride = v * loop_dtype_size(d.real()) / loop_dtype_size(d.dt);
  for (size_t i = 0; i < size_t(r.size.rows); ++i)
    out.dlogits.insert(out.dlogits.end(), written.begin() + ptrdiff_t(i * stride), written.begin() + ptrdiff_t(i * stride + v));
  return out;
}

Values no_loss_logprobs(const Device& d, const Rows& r) {
  const Values zero(size_t(r.size.rows), 0.0);
  return run(d, r, nullptr, {zero, zero, zero, zero, zero, zero}).logprobs;
}

// The loss and the coefficient of a row as trainers usually write them: minimum of two products, clamp, stop-gradient.
struct PlainLoss {
  double policy = 0, kl = 0, coefficient = 0, ratio = 0, low = 0, high = 0;
};

PlainLoss plain_loss(const Loss& l, const Arrays& a, size_t i, double logprob) {
  const double s = a.scale[i], advantage = a.advantage[i], r = std::exp(logprob - a.old_logprob[i]);
  PlainLoss out;
  if (s != 0 && l.surrogate == LOOP_GIVEN) out = {s * logprob, 0, s, 1, 0, 0};
  if (s != 0 && l.surrogate == LOOP_REINFORCE) out = {-s * advantage * logprob, 0, -s * advantage, 1, 0, 0};
  if (s != 0 && l.surrogate == LOOP_CISPO) {
    const double weight = std::min(r, 1.2);
    out = {-s * advantage * weight * logprob, 0, -s * advantage * weight, r, 0, double(r > 1.2)};
  }
  if (s != 0 && l.surrogate == LOOP_PPO) {
    double objective = std::min(r * advantage, std::clamp(r, 0.8, 1.3) * advantage);
    if (l.dual_clip > 0 && advantage < 0) objective = std::max(objective, l.dual_clip * advantage);
    const bool cut = objective != r * advantage;
    out = {-s * objective, 0, cut ? 0 : -s * advantage * r, r, double(cut && r < 1), double(cut && r > 1)};
  }
  if (l.kl && a.kl_scale[i] != 0) {
    const double d = a.reference_logprob[i] - logprob;
    out.kl = std::exp(d) - d - 1;
    out.coefficient += a.kl_scale[i] * (1 - std::exp(d));
  }
  return out;
}

// log-softmax, exp, onehot - P, times c, over τ; one pass each.
HeadResult plain_head(const Plain& p, const Rows& r, const Loss* loss, const Arrays& a) {
  HeadResult out;
  const size_t v = size_t(r.size.vocabulary);
  for (size_t i = 0; i < size_t(r.size.rows); ++i) {
    Values x = slice(r.logits, i * v, v);
    for (double& logit : x) logit /= r.temperature;
    const double largest = *std::max_element(x.begin(), x.end());
    double sum = 0, entropy = 0;
    for (double logit : x) sum += std::exp(logit - largest);
    for (double& logit : x) logit = logit - largest - std::log(sum);
    for (double log_p : x) entropy -= std::exp(log_p) * log_p;
    const double logprob = x[size_t(r.targets[i])];
    out.logprobs.push_back(logprob);
    out.entropies.push_back(entropy);
    if (!loss) continue;
    const double c = plain_loss(*loss, a, i, logprob).coefficient, bonus = loss->entropy ? a.entropy_scale[i] : 0;
    for (size_t j = 0; j < v; ++j) {
      const double log_p = p.act(x[j]), probability = p.act(std::exp(log_p));
      const double by_target = p.act(p.act(c) * ((int32_t(j) == r.targets[i]) - probability)),
                   by_entropy = p.act(p.act(bonus) * p.act(probability * p.act(log_p + p.act(entropy))));
      out.dlogits.push_back(p.act(p.act(by_target + by_entropy) / r.temperature));
    }
  }
  return out;
}

KERNEL_TEST(head_forward, "head_rows: log-probability and entropy") {
  for (const Size& s : sizes)
    for (double temperature : {1.0, 0.7}) {
      const Rows r = rows(t, s, temperature);
      const Arrays a = arrays(t, Values(size_t(s.rows), -1.0));
      const HeadResult got = run(t.device, r, nullptr, a), truth = run(t.reference, r, nullptr, a),
                       plain = t.is_reference() ? plain_head(t.plain(), r, nullptr, a) : HeadResult();
      const std::string what = s.name() + (temperature == 1 ? "" : " temperature 0.7");
      t.close_real(what + " logprob", got.logprobs, truth.logprobs, plain.logprobs);
      t.close_real(what + " entropy", got.entropies, truth.entropies, plain.entropies);
      t.same_bits(what + " logprob alone", run(t.device, r, nullptr, a, true, false).logprobs, got.logprobs);
      t.same_bits(what + " entropy alone", run(t.device, r, nullptr, a, false, true).entropies, got.entropies);
    }
}

KERNEL_TEST(head_backward, "head_rows: gradient of the logits") {
  for (const Loss& loss : losses)
    for (const Size& s : sizes) {
      if (s.vocabulary == 50000 && loss.surrogate != LOOP_PPO) continue;
      const Rows r = rows(t, s, s.rows % 2 ? 1.0 : 0.7);
      const Arrays a = arrays(t, no_loss_logprobs(t.reference, r));
      const HeadResult got = run(t.device, r, &loss, a), truth = run(t.reference, r, &loss, a),
                       plain = t.reads_plain() ? plain_head(t.plain(), r, &loss, a) : HeadResult();
      const std::string what = s.name() + " " + loss.name;
      t.close(what + " dlogits", got.dlogits, truth.dlogits, plain.dlogits);
      t.close_real(what + " logprob", got.logprobs, truth.logprobs, plain.logprobs);
      t.close_real(what + " entropy", got.entropies, truth.entropies, plain.entropies);
    }
}

// Rows longer than the shared memory of a CUDA block, so that the kernel reads them a second time for the gradient.
KERNEL_TEST(head_long_rows, "head_rows: long rows") {
  const Loss loss{LOOP_PPO, "ppo", 1.5, true, true};
  for (const Size& s : {Size{2, 60000}, Size{1, 58001}, Size{9, 58001}}) {
    const Rows r = rows(t, s, 0.7);
    const Arrays a = arrays(t, no_loss_logprobs(t.reference, r));
    const HeadResult got = run(t.device, r, &loss, a), truth = run(t.reference, r, &loss, a),
                     plain = t.reads_plain() ? plain_head(t.plain(), r, &loss, a) : HeadResult();
    t.close(s.name() + " dlogits", got.dlogits, truth.dlogits, plain.dlogits);
    t.close_real(s.name() + " logprob", got.logprobs, truth.logprobs, plain.logprobs);
    t.close_real(s.name() + " entropy", got.entropies, truth.entropies, plain.entropies);
    t.same_bits(s.name() + " logprob without a loss", run(t.device, r, nullptr, a).logprobs, got.logprobs);
  }
}

KERNEL_TEST(head_row_invariance, "head_rows: a row does not depend on the others") {
  const Loss loss{LOOP_PPO, "ppo", 1.5, true, true};
  for (const Size& s : {Size{64, 1031}, Size{129, 31}}) {
    const size_t v = size_t(s.vocabulary);
    const Rows r = rows(t, s, 0.7);
    const Arrays a = arrays(t, no_loss_logprobs(t.reference, r));
    const HeadResult batch = run(t.device, r, &loss, a);
    HeadResult alone;
    for (size_t i = 0; i < size_t(s.rows); ++i) {
      const Rows one{{1, s.vocabulary}, r.temperature, slice(r.logits, i * v, v), {r.targets[i]}};
      const HeadResult row = run(
          t.device, one, &loss,
          {{a.scale[i]}, {a.advantage[i]}, {a.old_logprob[i]}, {a.reference_logprob[i]}, {a.kl_scale[i]}, {a.entropy_scale[i]}});
      alone.logprobs.push_back(row.logprobs[0]);
      alone.entropies.push_back(row.entropies[0]);
      alone.dlogits.insert(alone.dlogits.end(), row.dlogits.begin(), row.dlogits.end());
    }
    t.same_bits(s.name() + " logprob", alone.logprobs, batch.logprobs);
    t.same_bits(s.name() + " entropy", alone.entropies, batch.entropies);
    t.same_bits(s.name() + " dlogits", alone.dlogits, batch.dlogits);
    t.same_bits(s.name() + " dlogits twice", run(t.device, r, &loss, a).dlogits, batch.dlogits);
  }
}

KERNEL_TEST(head_limits, "head_rows: extreme logits stay finite") {
  const Rows r{{2, 4}, 1, {1e4, -1e4, 0, 0, 88, 89, 90, 91}, {1, 3}};
  const HeadResult got = run(t.device, r, nullptr, arrays(t, {-1, -1}));
  t.within("logprob", got.logprobs, {-2e4, -0.44018969856119533}, 1e-6);
  t.within("entropy", got.entropies, {0, 0.9475369}, 1e-6);
}

struct Reduction {
  Values coefficients;
  LoopLossSums sums;
  Values totals() const { return {sums.loss, sums.policy_loss, sums.kl, sums.ratio}; }
  Values counts() const { return {sums.rows, sums.kl_rows, sums.clipped_low, sums.clipped_high}; }
};

Reduction reduce(const Device& d, const Loss& loss, const Arrays& a, const Values& logprobs, bool with_coefficients = true) {
  Buffer l = real(d, logprobs), c = real(d, logprobs.size());
  const LossBuffers buffers(d, loss, a);
  Reduction out{{}, {}};
  d.expect(d.table.policy_gradient(d.ctx, d.dt, int64_t(logprobs.size()), l, &buffers.loss, c.when(with_coefficients), &out.sums),
           "policy_gradient");
  out.coefficients = c.values();
  return out;
}

Reduction plain_reduce(const Loss& loss, const Arrays& a, const Values& logprobs) {
  Reduction out{{}, {}};
  for (size_t i = 0; i < logprobs.size(); ++i) {
    const PlainLoss row = plain_loss(loss, a, i, logprobs[i]);
    out.coefficients.push_back(row.coefficient);
    out.sums.policy_loss += row.policy;
    out.sums.loss += row.policy + (loss.kl ? a.kl_scale[i] * row.kl : 0);
    out.sums.kl += row.kl;
    out.sums.ratio += row.ratio;
    out.sums.rows += a.scale[i] != 0;
    out.sums.kl_rows += loss.kl && a.kl_scale[i] != 0;
    out.sums.clipped_low += row.low;
    out.sums.clipped_high += row.high;
  }
  return out;
}

KERNEL_TEST(policy, "policy_gradient") {
  for (const Loss& loss : losses)
    for (size_t n : {1, 2, 7, 64, 129, 300, 5000}) {
      Values logprobs = t.real_normal(n, 2);
      for (double& x : logprobs) x = -std::abs(x);
      const Arrays a = arrays(t, logprobs);
      const Reduction got = reduce(t.device, loss, a, logprobs), truth = reduce(t.reference, loss, a, logprobs),
                      plain = plain_reduce(loss, a, logprobs);
      const std::string what = std::string(loss.name) + ", " + std::to_string(n) + " rows";
      t.close_real(what + " coefficients", got.coefficients, truth.coefficients, plain.coefficients);
      t.close_real(what + " loss, policy loss, kl, ratio", got.totals(), truth.totals(), plain.totals());
      t.within(what + " counts", got.counts(), plain.counts(), 0);
      t.same_bits(what + " sums without coefficients", reduce(t.device, loss, a, logprobs, false).totals(), got.totals());
    }
}

// Rows of scale 0 must not even be evaluated: their ratio would overflow.
KERNEL_TEST(policy_masked, "policy_gradient: rows of scale 0 add nothing") {
  for (const Loss& loss : losses) {
    const Arrays a{{0, 0.5}, {1, 1}, {-1e4, -1}, {1e4, -1}, {0, 0.25}, {0, 0}};
    const Reduction got = reduce(t.device, loss, a, {-1, -1});
    const Reduction one = reduce(t.device, loss, {{0.5}, {1}, {-1}, {-1}, {0.25}, {0}}, {-1});
    t.within(std::string(loss.name) + " coefficients", got.coefficients, {0, one.coefficients[0]}, 0);
    t.within(std::string(loss.name) + " totals", got.totals(), one.totals(), 0);
    t.within(std::string(loss.name) + " counts", got.counts(), one.counts(), 0);
  }
}

KERNEL_TEST(policy_is_head, "policy_gradient: the coefficients of head_rows") {
  for (const Loss& loss : losses) {
    const Rows r = rows(t, {7, 31}, 0.7);
    const Values logprobs = no_loss_logprobs(t.device, r);
    const Arrays a = arrays(t, logprobs);
    const Values c = reduce(t.device, loss, a, logprobs).coefficients, dlogits = run(t.device, r, &loss, a).dlogits;
    const Arrays given{c, a.advantage, a.old_logprob, a.reference_logprob, a.kl_scale, a.entropy_scale};
    const Loss by_coefficient{LOOP_GIVEN, "given", 0, false, loss.entropy};
    const Values from_coefficients = run(t.device, r, &by_coefficient, given).dlogits;
    t.within(loss.name, dlogits, from_coefficients, t.device.dt == LOOP_F64 ? 1e-14 : t.device.dt == LOOP_F32 ? 1e-6 : 4e-3);
  }
}

REFERENCE_TEST(head_differences, "head_rows gradient by differences") {
  for (const Loss& loss : losses) {
    Rows r = rows(t, {6, 9}, 0.7);
    for (double& x : r.logits) x = x > 8 ? x - 12 : x;  // sharper peaks would leave differences too small to measure
    const Arrays a = arrays(t, no_loss_logprobs(t.device, r));
    const Values analytic = run(t.device, r, &loss, a).dlogits;
    // CISPO's weight is behind a stop-gradient. So the loss to differentiate is GIVEN with this weight held fixed, plus the
    // KL.
    Loss differentiable = loss;
    Arrays held = a;
    if (loss.surrogate == LOOP_CISPO) {
      differentiable.surrogate = LOOP_GIVEN;
      held.scale = reduce(t.device, {LOOP_CISPO, "cispo"}, a, no_loss_logprobs(t.device, r)).coefficients;
    }
    t.gradient(loss.name, analytic, r.logits, [&] {
      const HeadResult now = run(t.device, r, nullptr, a);
      double value = reduce(t.device, differentiable, held, now.logprobs).sums.loss;
      for (size_t i = 0; loss.entropy && i < now.entropies.size(); ++i) value -= a.entropy_scale[i] * now.entropies[i];
      return value;
    });
  }
}

}  // namespace
}  // namespace looplm::test::head_tests

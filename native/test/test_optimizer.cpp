#include <cmath>

#include "harness.h"

namespace looplm::test::optimizer_tests {
namespace {

struct State {
  Values truth, gradient, first, second;  // truth: the master for bfloat16, else the parameter
};
struct Settings {
  double learning_rate, beta1, beta2, weight_decay, gradient_scale;
  int64_t step;
};
struct Stepped {
  Values parameter, master, first, second;
};

Stepped run(const Device& d, const State& s, const Settings& o) {
  Buffer parameter = act(d, s.truth), master = real(d, s.truth), gradient = real(d, s.gradient), first = real(d, s.first),
         second = real(d, s.second);
  const LoopAdamW a{int64_t(s.truth.size()),
                    parameter,
                    master.when(d.dt == LOOP_BF16),
                    gradient,
                    first,
                    second,
                    o.learning_rate,
                    o.beta1,
                    o.beta2,
                    1e-8,
                    o.weight_decay,
                    o.gradient_scale,
                    o.step};
  d.expect(d.table.adamw(d.ctx, d.dt, &a), "adamw");
  return {parameter.values(), d.dt == LOOP_BF16 ? master.values() : parameter.values(), first.values(), second.values()};
}

Values difference(const Values& a, const Values& b) {
  Values out;
  for (size_t i = 0; i < a.size(); ++i) out.push_back(a[i] - b[i]);
  return out;
}

// The adamw of the oracle (oracle/ouro_torch.py).
Stepped plain_adamw(const State& s, const Settings& o) {
  Stepped out;
  for (size_t i = 0; i < s.truth.size(); ++i) {
    const double g = s.gradient[i] * o.gradient_scale;
    out.first.push_back(o.beta1 * s.first[i] + (1 - o.beta1) * g);
    out.second.push_back(o.beta2 * s.second[i] + (1 - o.beta2) * g * g);
    const double mh = out.first[i] / (1 - std::pow(o.beta1, o.step)), vh = out.second[i] / (1 - std::pow(o.beta2, o.step));
    out.master.push_back(s.truth[i] - o.learning_rate * (mh / (std::sqrt(vh) + 1e-8) + o.weight_decay * s.truth[i]));
  }
  return out;
}

KERNEL_TEST(adamw, "adamw") {
  for (size_t count : {1, 7, 64, 129, 5003})
    for (const Settings& o :
         {Settings{0.1, 0.9, 0.999, 0, 1, 1}, Settings{0.1, 0.9, 0.95, 0.1, 0.37, 7}, Settings{0.5, 0, 0.5, 0.01, 2, 100000}}) {
      State s{t.real_normal(count), t.real_normal(count), t.real_normal(count, 0.3), t.real_normal(count)};
      for (double& v : s.second) v = std::abs(v);
      if (o.step == 1) s.first = s.second = Values(count, 0.0);
      const Stepped got = run(t.device, s, o), truth = run(t.reference, s, o), plain = plain_adamw(s, o);
      const std::string what = std::to_string(count) + " elements, step " + std::to_string(o.step);
      t.close_real(what + " update", difference(got.master, s.truth), difference(truth.master, s.truth),
                   difference(plain.master, s.truth));
      t.close_real(what + " first moment", got.first, truth.first, plain.first);
      t.close_real(what + " second moment", got.second, truth.second, plain.second);
      t.same_bits(what + " the parameter is the rounded master", got.parameter, rounded(t.device.dt, got.master));
    }
}

Values sums_of_squares(const Device& d, const std::vector<Values>& arrays) {
  std::vector<Buffer> buffers;
  std::vector<int64_t> counts;
  std::vector<const void*> pointers;
  for (const Values& x : arrays) {
    buffers.push_back(real(d, x));
    counts.push_back(int64_t(x.size()));
    pointers.push_back(buffers.back());
  }
  Values sums(arrays.size(), NAN);
  d.expect(d.table.sum_squares(d.ctx, d.dt, int64_t(arrays.size()), counts.data(), pointers.data(), sums.data()), "sum_squares");
  return sums;
}
double sum_squares(const Device& d, const Values& x) { return sums_of_squares(d, {x})[0]; }

KERNEL_TEST(squares, "sum_squares") {
  for (size_t count : {1, 2, 13, 64, 300, 100003}) {
    const Values x = t.real_normal(count, 3);
    t.close_real(std::to_string(count) + " elements", {sum_squares(t.device, x)}, {sum_squares(t.reference, x)}, {dot(x, x)});
    t.same_bits(std::to_string(count) + " elements twice", {sum_squares(t.device, x)}, {sum_squares(t.device, x)});
  }
  std::vector<Values> arrays;
  Values alone;
  for (size_t count : {300, 0, 1, 100003, 64}) {
    arrays.push_back(t.real_normal(count, 3));
    alone.push_back(sum_squares(t.device, arrays.back()));
  }
  t.same_bits("several arrays at once", sums_of_squares(t.device, arrays), alone);
  t.same_bits("no array", sums_of_squares(t.device, {}), {});
  t.within("does not overflow", {sum_squares(t.device, {3e25, 4e25})}, {25e50}, 1e-6);
}

}  // namespace
}  // namespace looplm::test::optimizer_tests

// The exit gate and the exit distribution.
#include <cmath>

#include "harness.h"

namespace looplm::test::exit_tests {
namespace {

struct Size {
  int64_t n, d;
  std::string name() const { return std::to_string(n) + "x" + std::to_string(d); }
};
const std::vector<Size> sizes = {{1, 64}, {2, 33}, {7, 257}, {13, 8}, {64, 130}, {129, 1}, {300, 31}};

struct Gate {
  Values h, w, b;
};

Values gate(const Device& d, const Size& s, const Gate& in) {
  Buffer h = act(d, in.h), w = act(d, in.w), b = act(d, in.b), a = real(d, size_t(s.n));
  d.expect(d.table.gate(d.ctx, d.dt, s.n, s.d, h, w, b, a), "gate");
  return a.values();
}

struct GateGradient {
  Values dh, dw, db;
};

GateGradient gate_backward(const Device& d, const Size& s, const Values& da, const Gate& in, const GateGradient& start) {
  Buffer gradient = real(d, da), h = act(d, in.h), w = act(d, in.w), dh = real(d, start.dh), dw = real(d, start.dw),
         db = real(d, start.db);
  d.expect(d.table.gate_backward(d.ctx, d.dt, s.n, s.d, gradient, h, w, dh, dw, db), "gate_backward");
  return {dh.values(), dw.values(), db.values()};
}

KERNEL_TEST(gate_both_ways, "gate") {
  for (const Size& s : sizes) {
    const Gate in{t.act_normal(size_t(s.n * s.d)), t.act_normal(size_t(s.d), 0.5), t.act_normal(1)};
    const Values da = t.real_normal(size_t(s.n));
    const GateGradient start{t.real_normal(in.h.size()), t.real_normal(in.w.size()), t.real_normal(1)};
    Values plain_a(size_t(s.n), in.b[0]);
    GateGradient plain = start;
    for (size_t i = 0; i < in.h.size(); ++i) {
      const size_t row = i / size_t(s.d), column = i % size_t(s.d);
      plain_a[row] += in.h[i] * in.w[column];
      plain.dh[i] += da[row] * in.w[column];
      plain.dw[column] += da[row] * in.h[i];
    }
    for (double x : da) plain.db[0] += x;
    const GateGradient got = gate_backward(t.device, s, da, in, start), truth = gate_backward(t.reference, s, da, in, start);
    t.close_real(s.name(), gate(t.device, s, in), gate(t.reference, s, in), plain_a);
    t.close_real(s.name() + " backward dh", got.dh, truth.dh, plain.dh);
    t.close_real(s.name() + " backward dw", got.dw, truth.dw, plain.dw);
    t.close_real(s.name() + " backward db", got.db, truth.db, plain.db);
  }
}

KERNEL_TEST(gate_row_invariance, "gate: a row does not depend on the others") {
  const Size s{129, 67};
  const Gate in{t.act_normal(129 * 67), t.act_normal(67), t.act_normal(1)};
  const Values batch = gate(t.device, s, in);
  Values alone;
  for (size_t i = 0; i < 129; ++i) alone.push_back(gate(t.device, {1, 67}, {slice(in.h, i * 67, 67), in.w, in.b})[0]);
  t.same_bits("", alone, batch);
}

REFERENCE_TEST(gate_differences, "gate gradient by differences") {
  const Size s{3, 5};
  Gate in{t.act_normal(15), t.act_normal(5), t.act_normal(1)};
  const Values da = t.act_normal(3);
  const GateGradient out = gate_backward(t.device, s, da, in, {Values(15, 0.0), Values(5, 0.0), Values(1, 0.0)});
  const auto loss = [&] { return dot(da, gate(t.device, s, in)); };
  t.gradient("h", out.dh, in.h, loss);
  t.gradient("w", out.dw, in.w, loss);
  t.gradient("b", out.db, in.b, loss);
}

struct ExitPdf {
  Values log_pdf, pdf;
};

ExitPdf exit_pdf(const Device& d, int64_t loops, int64_t n, const Values& gates, bool with_log = true, bool with_pdf = true) {
  Buffer a = real(d, gates), log_pdf = real(d, gates.size()), pdf = real(d, gates.size());
  d.expect(d.table.exit_pdf(d.ctx, d.dt, loops, n, a, log_pdf.when(with_log), pdf.when(with_pdf)), "exit_pdf");
  return {log_pdf.values(), pdf.values()};
}

Values exit_pdf_backward(const Device& d, int64_t loops, int64_t n, const Values& gates, const Values& dpdf) {
  Buffer a = real(d, gates), gradient = real(d, dpdf), out = real(d, gates.size());
  d.expect(d.table.exit_pdf_backward(d.ctx, d.dt, loops, n, a, gradient, out), "exit_pdf_backward");
  return out.values();
}

// λ by products, and the gradient through log p: ∂log p_t = d_t p_t, ∂a_j = ∂log p_j (1 - λ_j) - λ_j Σ_{t>j} ∂log p_t.
struct PlainExit {
  Values log_pdf, pdf, dgates;
};

PlainExit plain_exit(int64_t loops, int64_t n, const Values& gates, const Values& dpdf) {
  PlainExit out{Values(gates.size()), Values(gates.size()), Values(gates.size(), 0.0)};
  for (int64_t i = 0; i < n; ++i) {
    long double stay = 1, after = 0;
    const auto lambda = [&](int64_t loop) { return 1 / (1 + std::exp(-(long double)gates[size_t(loop * n + i)])); };
    const auto keep = [&](int64_t loop) { return 1 / (1 + std::exp((long double)gates[size_t(loop * n + i)])); };
    for (int64_t loop = 0; loop < loops; ++loop) {
      const long double p = loop < loops - 1 ? stay * lambda(loop) : stay;
      out.pdf[size_t(loop * n + i)] = double(p);
      out.log_pdf[size_t(loop * n + i)] = double(std::log(p));
      stay *= keep(loop);
    }
    for (int64_t loop = loops - 1; loop >= 0; --loop) {
      const size_t at = size_t(loop * n + i);
      const long double flow = (long double)dpdf[at] * out.pdf[at];
      if (loop < loops - 1) out.dgates[at] = double(flow * keep(loop) - lambda(loop) * after);
      after += flow;
    }
  }
  return out;
}

KERNEL_TEST(exit_distribution, "exit_pdf") {
  for (int64_t loops : {1, 2, 4, 9})
    for (int64_t n : {1, 7, 129, 300}) {
      Values gates = t.real_normal(size_t(loops * n), 2);
      for (size_t i = 5; i < gates.size(); i += 11) gates[i] = gates[i] > 0 ? 40 : -40;
      const Values dpdf = t.real_normal(gates.size());
      const PlainExit plain = plain_exit(loops, n, gates, dpdf);
      const ExitPdf got = exit_pdf(t.device, loops, n, gates), truth = exit_pdf(t.reference, loops, n, gates);
      const std::string what = std::to_string(loops) + " loops, " + std::to_string(n) + " rows";
      t.close_real(what + " log_pdf", got.log_pdf, truth.log_pdf, plain.log_pdf);
      t.close_real(what + " pdf", got.pdf, truth.pdf, plain.pdf);
      t.close_real(what + " backward", exit_pdf_backward(t.device, loops, n, gates, dpdf),
                   exit_pdf_backward(t.reference, loops, n, gates, dpdf), plain.dgates);
      t.same_bits(what + " log_pdf alone", exit_pdf(t.device, loops, n, gates, true, false).log_pdf, got.log_pdf);
      t.same_bits(what + " pdf alone", exit_pdf(t.device, loops, n, gates, false, true).pdf, got.pdf);
    }
}

KERNEL_TEST(exit_worked, "exit_pdf: the worked numbers of math.md §1") {
  const Values gates = {-1.5, -.2, .6, 9};
  t.within("pdf", exit_pdf(t.device, 4, 1, gates).pdf, {.182426, .368044, .290242, .159288}, 2e-6);
  const Values gradient = exit_pdf_backward(t.device, 4, 1, gates, {3.8, 3, 2.6, 2.65});
  t.within("gradient", gradient, {.150667, .077360, -.005142, 0}, 1e-5);
  t.claim("the last gate has no gradient", gradient[3] == 0);
  const Values shifted = exit_pdf_backward(t.device, 4, 1, gates, {4.8, 4, 3.6, 3.65});
  t.within("a constant added to every ∂L/∂p changes nothing", shifted, gradient, 1e-5);
}

KERNEL_TEST(exit_extreme, "exit_pdf: saturated gates stay finite") {
  const Values gates = {100, -100, -100, 100, -100, -100, 100, 0};  // [4 loops, 2 positions]
  const ExitPdf got = exit_pdf(t.device, 4, 2, gates);
  t.within("log_pdf", got.log_pdf, {0, -100, -200, 0, -200, -200, -100, -100}, 1e-6);
  t.within("pdf", got.pdf, {1, 0, 0, 1, 0, 0, 0, 0}, 1e-6);
}

REFERENCE_TEST(exit_differences, "exit_pdf gradient by differences") {
  Values gates = t.act_normal(20);
  const Values dpdf = t.act_normal(20);
  t.gradient("", exit_pdf_backward(t.device, 4, 5, gates, dpdf), gates,
             [&] { return dot(dpdf, exit_pdf(t.device, 4, 5, gates).pdf); });
}

}  // namespace
}  // namespace looplm::test::exit_tests

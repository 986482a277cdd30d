// RoPE, SwiGLU, the exit gate and the exit distribution.
#include <cmath>

#include "harness.h"

namespace looplm::test {
namespace {

struct Rope {
  int64_t n;
  int32_t heads, head_dim;
  int64_t row_stride;
  LoopRotaryPairs pairs = LOOP_HALVES;
  std::string name() const {
    return std::to_string(n) + " rows, " + std::to_string(heads) + "x" + std::to_string(head_dim) +
           (pairs == LOOP_NEIGHBOURS ? ", neighbours" : "");
  }
};
constexpr int32_t max_position = 600;

Values cos_sin(Test& t, int32_t head_dim) {
  Values table;
  for (int position = 0; position <= max_position; ++position)
    for (int part = 0; part < 2; ++part)
      for (int j = 0; j < head_dim / 2; ++j) {
        const double angle = position * std::pow(1e4, -2.0 * j / head_dim);
        table.push_back(rounded(t.device.real(), part == 0 ? std::cos(angle) : std::sin(angle)));
      }
  return table;
}

Values run(const Device& d, const Rope& r, const Ints& positions, const Values& table, int inverse, const Values& qkv) {
  Buffer at(d, positions), angles = real(d, table), x = act(d, qkv);
  d.expect(d.table.rope(d.ctx, d.dt, r.pairs, r.n, r.heads, r.head_dim, r.row_stride, at.as<int32_t>(), angles, inverse, x),
           "rope");
  return x.values();
}

Values plain_rope(const Plain& p, const Rope& r, const Ints& positions, const Values& table, int inverse, Values x) {
  const Values before = x;
  for (int64_t i = 0; i < r.n; ++i)
    for (int32_t e = 0; e < r.heads * r.head_dim; ++e) {
      const int32_t half = r.head_dim / 2, j = e % r.head_dim;
      const bool beside = r.pairs == LOOP_NEIGHBOURS, first = beside ? j % 2 == 0 : j < half;
      const int32_t apart = beside ? 1 : half, pair = first ? e + apart : e - apart;
      const size_t row = size_t(i * r.row_stride),
                   angle = size_t(positions[size_t(i)] * r.head_dim + (beside ? j / 2 : j % half));
      const double c = p.act(table[angle]), s = p.act(table[angle + size_t(half)]), sign = first != (inverse != 0) ? -1 : 1;
      x[row + size_t(e)] = p.act(p.act(before[row + size_t(e)] * c) + sign * p.act(before[row + size_t(pair)] * s));
    }
  return x;
}

KERNEL_TEST(rope, "rope") {
  for (const Rope& r : {Rope{1, 2, 8, 16}, Rope{7, 3, 16, 64}, Rope{13, 6, 32, 256}, Rope{64, 2, 64, 128}, Rope{129, 5, 96, 700},
                        Rope{300, 2, 128, 512}, Rope{5, 1, 2, 7}, Rope{7, 3, 16, 64, LOOP_NEIGHBOURS},
                        Rope{129, 5, 96, 700, LOOP_NEIGHBOURS}, Rope{5, 1, 2, 7, LOOP_NEIGHBOURS}}) {
    const Ints positions = t.integers(size_t(r.n), max_position + 1);
    const Values table = cos_sin(t, r.head_dim), x = t.act_normal(size_t(r.n * r.row_stride));
    for (int inverse : {0, 1})
      t.close(r.name() + (inverse ? " back" : ""), run(t.device, r, positions, table, inverse, x),
              run(t.reference, r, positions, table, inverse, x), plain_rope(t.plain(), r, positions, table, inverse, x));
  }
}

REFERENCE_TEST(rope_differences, "rope gradient by differences") {
  for (const Rope& r : {Rope{3, 2, 6, 17}, Rope{3, 2, 6, 17, LOOP_NEIGHBOURS}}) {
    const Ints positions = {0, 5, 77};
    const Values table = cos_sin(t, r.head_dim), weights = t.act_normal(51);
    Values x = t.act_normal(51);
    t.gradient(r.name(), run(t.device, r, positions, table, 1, weights), x,
               [&] { return dot(weights, run(t.device, r, positions, table, 0, x)); });
  }
}

struct Size {
  int64_t n, f;
  std::string name() const { return std::to_string(n) + "x" + std::to_string(f); }
};
const std::vector<std::pair<LoopGate, const char*>> gates = {{LOOP_SILU, "silu"}, {LOOP_SIGMOID, "sigmoid"}};
const std::vector<Size> sizes = {{1, 64}, {2, 33}, {7, 257}, {13, 8}, {64, 130}, {129, 1}, {300, 31}};

Values swiglu(const Device& d, LoopGate gate, const Size& s, const Values& gate_up) {
  Buffer in = act(d, gate_up), out = act(d, size_t(s.n * s.f));
  d.expect(d.table.swiglu(d.ctx, d.dt, gate, s.n, s.f, in, out), "swiglu");
  return out.values();
}

struct SwigluGradient {
  Values dgate_up, out;
};

SwigluGradient swiglu_backward(const Device& d, LoopGate gate, const Size& s, const Values& gate_up, const Values& dout,
                               bool in_place) {
  Buffer in = act(d, gate_up), gradient = act(d, dout), separate = act(d, gate_up.size()), out = act(d, dout.size());
  Buffer& dgate_up = in_place ? in : separate;
  d.expect(d.table.swiglu_backward(d.ctx, d.dt, gate, s.n, s.f, in, gradient, dgate_up, out), "swiglu_backward");
  return {dgate_up.values(), out.values()};
}

struct PlainSwiglu {
  double out, dg, du;
};

PlainSwiglu plain_swiglu(const Plain& p, LoopGate gate, double g, double u, double dout) {
  const double e = std::exp(-g), sigmoid = 1 / (1 + e), slope = e / ((1 + e) * (1 + e)), dvalue = p.act(dout * u);
  const double value = p.act(gate == LOOP_SILU ? g * sigmoid : sigmoid);
  return {p.act(value * u), p.act(dvalue * (gate == LOOP_SILU ? sigmoid + g * slope : slope)), p.act(dout * value)};
}

KERNEL_TEST(swiglu_both_ways, "swiglu") {
  for (const auto& [gate, kind] : gates)
    for (const Size& s : sizes) {
      const std::string what = s.name() + " " + kind;
      const Values gate_up = t.act_normal(size_t(2 * s.n * s.f), 3), dout = t.act_normal(size_t(s.n * s.f));
      Values plain_out(dout.size()), plain_gradient(gate_up.size());
      for (size_t i = 0; i < dout.size(); ++i) {
        const size_t f = size_t(s.f), at = i / f * 2 * f + i % f;
        const PlainSwiglu plain = plain_swiglu(t.plain(), gate, gate_up[at], gate_up[at + f], dout[i]);
        plain_out[i] = plain.out;
        plain_gradient[at] = plain.dg;
        plain_gradient[at + f] = plain.du;
      }
      const Values truth = swiglu(t.reference, gate, s, gate_up);
      const SwigluGradient gradient = swiglu_backward(t.reference, gate, s, gate_up, dout, false);
      t.close(what, swiglu(t.device, gate, s, gate_up), truth, plain_out);
      const SwigluGradient got = swiglu_backward(t.device, gate, s, gate_up, dout, false),
                           aliased = swiglu_backward(t.device, gate, s, gate_up, dout, true);
      t.close(what + " backward dgate_up", got.dgate_up, gradient.dgate_up, plain_gradient);
      t.close(what + " backward out", got.out, truth, plain_out);
      t.same_bits(what + " backward in place, dgate_up", aliased.dgate_up, got.dgate_up);
      t.same_bits(what + " backward in place, out", aliased.out, got.out);
    }
}

REFERENCE_TEST(swiglu_differences, "swiglu gradient by differences") {
  for (const auto& [gate, kind] : gates) {
    const LoopGate g = gate;
    const Size s{3, 5};
    Values gate_up = t.act_normal(30, 2);
    const Values dout = t.act_normal(15);
    t.gradient(kind, swiglu_backward(t.device, g, s, gate_up, dout, false).dgate_up, gate_up,
               [&] { return dot(dout, swiglu(t.device, g, s, gate_up)); });
  }
}

struct Gate {
  Values h, w, b;
};

Values gate(const Device& d, const Size& s, const Gate& in) {
  Buffer h = act(d, in.h), w = act(d, in.w), b = act(d, in.b), a = real(d, size_t(s.n));
  d.expect(d.table.gate(d.ctx, d.dt, s.n, s.f, h, w, b, a), "gate");
  return a.values();
}

struct GateGradient {
  Values dh, dw, db;
};

GateGradient gate_backward(const Device& d, const Size& s, const Values& da, const Gate& in, const GateGradient& start) {
  Buffer gradient = real(d, da), h = act(d, in.h), w = act(d, in.w), dh = real(d, start.dh), dw = real(d, start.dw),
         db = real(d, start.db);
  d.expect(d.table.gate_backward(d.ctx, d.dt, s.n, s.f, gradient, h, w, dh, dw, db), "gate_backward");
  return {dh.values(), dw.values(), db.values()};
}

KERNEL_TEST(gate_both_ways, "gate") {
  for (const Size& s : sizes) {
    const Gate in{t.act_normal(size_t(s.n * s.f)), t.act_normal(size_t(s.f), 0.5), t.act_normal(1)};
    const Values da = t.real_normal(size_t(s.n));
    const GateGradient start{t.real_normal(in.h.size()), t.real_normal(in.w.size()), t.real_normal(1)};
    Values plain_a(size_t(s.n), in.b[0]);
    GateGradient plain = start;
    for (size_t i = 0; i < in.h.size(); ++i) {
      const size_t row = i / size_t(s.f), column = i % size_t(s.f);
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
}  // namespace looplm::test

// SwiGLU and the output gate of attention.
#include <cmath>

#include "harness.h"

namespace looplm::test::swiglu_tests {
namespace {

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

}  // namespace
}  // namespace looplm::test::swiglu_tests

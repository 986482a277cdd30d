#include <cmath>

#include "harness.h"

namespace looplm::test::norm_tests {
namespace {

constexpr double eps = 1e-6;

struct Size {
  int64_t n, d;
  size_t count() const { return size_t(n * d); }
  std::string name() const { return std::to_string(n) + "x" + std::to_string(d); }
};
const std::vector<Size> sizes = {{1, 64}, {2, 33}, {7, 257}, {13, 8}, {64, 2048}, {129, 96}, {300, 31}, {3, 5}};

enum class Mode { both, next_alone, branch_alone, plain_both, plain_alone };
const std::vector<std::pair<Mode, const char*>> modes = {{Mode::both, "both"},
                                                         {Mode::next_alone, "no branch"},
                                                         {Mode::branch_alone, "no next"},
                                                         {Mode::plain_both, "branch as it is"},
                                                         {Mode::plain_alone, "branch as it is, no next"}};
bool branches(Mode m) { return m != Mode::next_alone; }
bool norms_branch(Mode m) { return m == Mode::both || m == Mode::branch_alone; }
bool has_next(Mode m) { return m != Mode::branch_alone && m != Mode::plain_alone; }

struct Forward {
  Values h, branch, w_branch, w_next;
};
struct ForwardResult {
  Values h_out, x;
};

Forward inputs(Test& t, const Size& s) {
  Forward in{t.act_normal(s.count()), t.act_normal(s.count(), 3), t.act_normal(size_t(s.d)), t.act_normal(size_t(s.d))};
  for (Values* w : {&in.w_branch, &in.w_next})
    for (double& x : *w) x = rounded(t.device.dt, 1 + 0.2 * x);
  return in;
}

ForwardResult run(const Device& d, const Size& s, const Forward& in, Mode mode, bool in_place = false) {
  Buffer h = act(d, in.h), branch = act(d, in.branch), w_branch = act(d, in.w_branch), w_next = act(d, in.w_next);
  Buffer separate = act(d, s.count()), x = act(d, s.count());
  const bool has_branch = branches(mode), normed = norms_branch(mode), next = has_next(mode);
  Buffer& h_out = in_place ? h : separate;
  d.expect(d.table.residual_norm(d.ctx, d.dt, s.n, s.d, eps, h, branch.when(has_branch), w_branch.when(normed), w_next.when(next),
                                 h_out.when(has_branch), x.when(next)),
           "residual_norm");
  return {has_branch ? h_out.values() : Values(), next ? x.values() : Values()};
}

// v rsqrt(mean v² + eps) in float32, rounded, then times w: as in the Hugging Face model.
Values plain_rms(const Plain& p, const Size& s, const Values& v, const Values& w) {
  Values out(v.size());
  for (int64_t i = 0; i < s.n; ++i) {
    double sum = 0;
    for (int64_t j = 0; j < s.d; ++j) sum += v[size_t(i * s.d + j)] * v[size_t(i * s.d + j)];
    for (int64_t j = 0; j < s.d; ++j) {
      const size_t at = size_t(i * s.d + j);
      out[at] = p.act(w[size_t(j)] * p.act(v[at] / std::sqrt(sum / double(s.d) + eps)));
    }
  }
  return out;
}

ForwardResult plain_forward(const Plain& p, const Size& s, const Forward& in, Mode mode) {
  ForwardResult out;
  if (mode != Mode::next_alone) {
    out.h_out = norms_branch(mode) ? plain_rms(p, s, in.branch, in.w_branch) : in.branch;
    for (size_t i = 0; i < out.h_out.size(); ++i) out.h_out[i] = p.act(in.h[i] + out.h_out[i]);
  }
  if (has_next(mode)) out.x = plain_rms(p, s, branches(mode) ? out.h_out : in.h, in.w_next);
  return out;
}

KERNEL_TEST(norm_forward, "residual_norm") {
  for (const Size& s : sizes)
    for (const auto& [mode, name] : modes) {
      const Forward in = inputs(t, s);
      const ForwardResult got = run(t.device, s, in, mode), truth = run(t.reference, s, in, mode),
                          plain = plain_forward(t.plain(), s, in, mode);
      if (mode != Mode::next_alone) t.close(s.name() + " " + name + " h_out", got.h_out, truth.h_out, plain.h_out);
      if (has_next(mode)) t.close(s.name() + " " + name + " x", got.x, truth.x, plain.x);
    }
}

KERNEL_TEST(norm_in_place, "residual_norm: h_out may be h") {
  for (const Size& s : sizes) {
    const Forward in = inputs(t, s);
    const ForwardResult separate = run(t.device, s, in, Mode::both), in_place = run(t.device, s, in, Mode::both, true);
    t.same_bits(s.name() + " h_out", in_place.h_out, separate.h_out);
    t.same_bits(s.name() + " x", in_place.x, separate.x);
  }
}

KERNEL_TEST(norm_row_invariance, "residual_norm: a row does not depend on the others") {
  const Size s{129, 67}, one{1, 67};
  const Forward in = inputs(t, s);
  const ForwardResult batch = run(t.device, s, in, Mode::both);
  for (size_t i : {0, 7, 64, 128}) {
    const ForwardResult row =
        run(t.device, one, {slice(in.h, i * 67, 67), slice(in.branch, i * 67, 67), in.w_branch, in.w_next}, Mode::both);
    t.same_bits("row " + std::to_string(i) + " h_out", row.h_out, slice(batch.h_out, i * 67, 67));
    t.same_bits("row " + std::to_string(i) + " x", row.x, slice(batch.x, i * 67, 67));
  }
}

struct Backward {
  Values h_out, branch, w_branch, w_next, dx, dh, dw_branch, dw_next;
};
struct BackwardResult {
  Values dh, dbranch, dw_branch, dw_next;
};

Backward backward_inputs(Test& t, const Size& s) {
  const Forward in = inputs(t, s);
  return {in.h,
          in.branch,
          in.w_branch,
          in.w_next,
          t.act_normal(s.count()),
          t.real_normal(s.count()),
          t.real_normal(size_t(s.d)),
          t.real_normal(size_t(s.d))};
}

BackwardResult run_backward(const Device& d, const Size& s, const Backward& in, Mode mode) {
  Buffer h_out = act(d, in.h_out), branch = act(d, in.branch), w_branch = act(d, in.w_branch), w_next = act(d, in.w_next),
         dx = act(d, in.dx);
  Buffer dh = real(d, in.dh), dbranch = act(d, s.count()), dw_branch = real(d, in.dw_branch), dw_next = real(d, in.dw_next);
  const bool has_branch = branches(mode), normed = norms_branch(mode), next = has_next(mode);
  d.expect(d.table.residual_norm_backward(d.ctx, d.dt, s.n, s.d, eps, h_out, branch.when(has_branch), w_branch.when(normed),
                                          w_next.when(next), dx.when(next), dh, dbranch.when(has_branch), dw_branch.when(normed),
                                          dw_next.when(next)),
           "residual_norm_backward");
  return {dh.values(), has_branch ? dbranch.values() : Values(), normed ? dw_branch.values() : Values(),
          next ? dw_next.values() : Values()};
}

// y = w n, n = v r: ∂n = ∂y w, ∂w = Σ ∂y n, ∂v = r (∂n - n mean(∂n n)), rounded where eager PyTorch rounds.
void plain_rms_backward(const Plain& p, const Size& s, const Values& v, const Values& w, const Values& dy, Values& dv,
                        Values& dw) {
  dv.resize(s.count());
  for (int64_t i = 0; i < s.n; ++i) {
    const auto at = [&](int64_t j) { return size_t(i * s.d + j); };
    double square = 0, mean = 0;
    for (int64_t j = 0; j < s.d; ++j) square += v[at(j)] * v[at(j)];
    const double r = 1 / std::sqrt(square / double(s.d) + eps);
    for (int64_t j = 0; j < s.d; ++j) mean += p.act(dy[at(j)] * w[size_t(j)]) * v[at(j)] * r / double(s.d);
    for (int64_t j = 0; j < s.d; ++j) {
      dw[size_t(j)] = p.real(dw[size_t(j)] + dy[at(j)] * p.act(v[at(j)] * r));
      dv[at(j)] = p.act(r * (p.act(dy[at(j)] * w[size_t(j)]) - v[at(j)] * r * mean));
    }
  }
}

BackwardResult plain_backward(const Plain& p, const Size& s, const Backward& in, Mode mode) {
  BackwardResult out{in.dh, {}, in.dw_branch, in.dw_next};
  if (has_next(mode)) {
    Values dv;
    plain_rms_backward(p, s, in.h_out, in.w_next, in.dx, dv, out.dw_next);
    for (size_t i = 0; i < dv.size(); ++i) out.dh[i] = p.real(out.dh[i] + dv[i]);
  }
  if (norms_branch(mode)) plain_rms_backward(p, s, in.branch, in.w_branch, out.dh, out.dbranch, out.dw_branch);
  else if (branches(mode))
    for (double x : out.dh) out.dbranch.push_back(p.act(x));
  return out;
}

KERNEL_TEST(norm_backward, "residual_norm_backward") {
  for (const Size& s : sizes)
    for (const auto& [mode, name] : modes) {
      const Backward in = backward_inputs(t, s);
      const BackwardResult got = run_backward(t.device, s, in, mode), truth = run_backward(t.reference, s, in, mode),
                           plain = plain_backward(t.plain(), s, in, mode);
      const std::string what = s.name() + " " + name;
      t.close_real(what + " dh", got.dh, truth.dh, plain.dh);
      if (has_next(mode)) t.close_real(what + " dw_next", got.dw_next, truth.dw_next, plain.dw_next);
      if (mode == Mode::next_alone) continue;
      t.close(what + " dbranch", got.dbranch, truth.dbranch, plain.dbranch);
      if (norms_branch(mode)) t.close_real(what + " dw_branch", got.dw_branch, truth.dw_branch, plain.dw_branch);
    }
}

KERNEL_TEST(norm_determinism, "residual_norm_backward: twice the same bits") {
  const Size s{300, 67};
  const Backward in = backward_inputs(t, s);
  const BackwardResult a = run_backward(t.device, s, in, Mode::both), b = run_backward(t.device, s, in, Mode::both);
  t.same_bits("dh", a.dh, b.dh);
  t.same_bits("dbranch", a.dbranch, b.dbranch);
  t.same_bits("dw_branch", a.dw_branch, b.dw_branch);
  t.same_bits("dw_next", a.dw_next, b.dw_next);
}

KERNEL_TEST(norm_unwanted, "residual_norm_backward: weight gradients that nobody wants") {
  const Size s{64, 67};
  const Backward in = backward_inputs(t, s);
  const BackwardResult all = run_backward(t.device, s, in, Mode::both);
  const Device& d = t.device;
  Buffer h_out = act(d, in.h_out), branch = act(d, in.branch), w_branch = act(d, in.w_branch), w_next = act(d, in.w_next),
         dx = act(d, in.dx), dh = real(d, in.dh), dbranch = act(d, s.count());
  d.expect(d.table.residual_norm_backward(d.ctx, d.dt, s.n, s.d, eps, h_out, branch, w_branch, w_next, dx, dh, dbranch, nullptr,
                                          nullptr),
           "residual_norm_backward");
  t.same_bits("dh", dh.values(), all.dh);
  t.same_bits("dbranch", dbranch.values(), all.dbranch);
}

// L = Σ α x + Σ β h_out, so ∂x = α, and β is the ∂h_out from elsewhere.
REFERENCE_TEST(norm_differences, "residual_norm gradient by differences") {
  for (const auto& [mode, name] : modes) {
    const Size s{3, 7};
    Forward in = inputs(t, s);
    const Values alpha = t.act_normal(s.count()), beta = t.act_normal(s.count());
    const Mode m = mode;
    const auto loss = [&] {
      const ForwardResult out = run(t.device, s, in, m);
      return (has_next(m) ? dot(alpha, out.x) : 0) + dot(beta, m == Mode::next_alone ? in.h : out.h_out);
    };
    const Values h_out = m == Mode::next_alone ? in.h : run(t.device, s, in, m).h_out, zero(size_t(s.d), 0.0);
    const BackwardResult out = run_backward(t.device, s, {h_out, in.branch, in.w_branch, in.w_next, alpha, beta, zero, zero}, m);
    t.gradient(std::string(name) + " h", out.dh, in.h, loss);
    if (has_next(m)) t.gradient(std::string(name) + " w_next", out.dw_next, in.w_next, loss);
    if (m == Mode::next_alone) continue;
    t.gradient(std::string(name) + " branch", out.dbranch, in.branch, loss);
    if (norms_branch(m)) t.gradient(std::string(name) + " w_branch", out.dw_branch, in.w_branch, loss);
  }
}

}  // namespace
}  // namespace looplm::test::norm_tests

// One token through all blocks and loops in one call must be bit for bit the same as with the table's other functions, called
// one after the other.
#include <cmath>
#include <limits>

#include "harness.h"

namespace looplm::test::decode_token_tests {
namespace {

struct Shape {
  int32_t layers, loops, heads, kv_heads, head_dim;
  int64_t hidden, intermediate;
  int32_t prefix, own;  // tokens in the cache; own includes the one that is decoded
  bool shared;
  std::string name() const {
    return std::to_string(layers) + " layers, " + std::to_string(loops) + " loops, " + std::to_string(heads) + "/" +
           std::to_string(kv_heads) + " heads of " + std::to_string(head_dim) + ", D " + std::to_string(hidden) + ", F " +
           std::to_string(intermediate) + ", " + std::to_string(prefix) + " + " + std::to_string(own) + " tokens" +
           (shared ? ", one plane" : "");
  }
  int64_t qkv_width() const { return int64_t(heads + 2 * kv_heads) * head_dim; }
  int64_t width() const { return int64_t(heads) * head_dim; }
  int64_t kv_width() const { return int64_t(kv_heads) * head_dim; }
};

// The weights, cache and input of a token on one device.
struct Model {
  struct Layer {
    std::vector<Buffer> weights;  // in the order of LoopDecodeLayer
    Buffer keys, values;
  };
  std::vector<Layer> layers;
  Buffer norm, gate_weight, gate_bias, cos_sin, embedded;
  int32_t slots;
};

struct Numbers {
  std::vector<std::vector<Values>> weights;  // [layers][8]
  std::vector<Values> keys, values;          // [layers] of [planes, slots, kv width]
  Values norm, gate_weight, gate_bias, cos_sin, embedded;
  int32_t slots = 0;
  LoopCacheContext context{};
};

int32_t last_slot(const LoopCacheContext& context) {
  int32_t last = 0;
  for (const LoopCacheRun& run : context.runs)
    if (run.length > 0) last = run.begin + run.length - 1;
  return last;
}

Numbers numbers(Test& t, const Shape& s) {
  Numbers n;
  const auto matrix = [&](int64_t out, int64_t in) { return t.act_normal(size_t(out * in), 1.5 / std::sqrt(double(in))); };
  const auto weight = [&] {
    Values w = t.act_normal(size_t(s.hidden), 0.2);
    for (double& x : w) x = rounded(t.device.dt, x + 1);
    return w;
  };
  n.slots = s.prefix + s.own + 9;
  n.context = {{{2, s.prefix}, {s.prefix + 5, s.own}}};
  const size_t planes = s.shared ? 1 : size_t(s.loops), cached = planes * size_t(n.slots) * size_t(s.kv_width());
  for (int32_t l = 0; l < s.layers; ++l) {
    n.weights.push_back({weight(), matrix(s.qkv_width(), s.hidden), matrix(s.hidden, s.width()), weight(), weight(),
                         matrix(2 * s.intermediate, s.hidden), matrix(s.hidden, s.intermediate), weight()});
    n.keys.push_back(t.act_normal(cached));
    n.values.push_back(t.act_normal(cached));
  }
  n.norm = weight();
  n.gate_weight = t.act_normal(size_t(s.hidden), 0.3);
  n.gate_bias = {rounded(t.device.dt, -0.4)};
  for (int32_t p = 0; p < s.prefix + s.own; ++p)
    for (int32_t part = 0; part < 2; ++part)
      for (int32_t j = 0; j < s.head_dim / 2; ++j) {
        const double angle = p * std::pow(1e4, -2.0 * j / s.head_dim);
        n.cos_sin.push_back(part ? std::sin(angle) : std::cos(angle));
      }
  n.embedded = t.act_normal(size_t(s.hidden));
  return n;
}

Model on(const Device& d, const Shape& s, const Numbers& n) {
  Model m{{}, act(d, n.norm), act(d, n.gate_weight), act(d, n.gate_bias), real(d, n.cos_sin), act(d, n.embedded), n.slots};
  for (int32_t l = 0; l < s.layers; ++l) {
    Model::Layer layer{{}, act(d, n.keys[size_t(l)]), act(d, n.values[size_t(l)])};
    for (const Values& w : n.weights[size_t(l)]) layer.weights.push_back(act(d, w));
    m.layers.push_back(std::move(layer));
  }
  return m;
}

struct Result {
  Values state, keys, values;  // the cache of all layers
  Values gates;                // of the loops at which the gate was read; may be empty
  int32_t left;
};
void add_cache(Result& r, const Model& m) {
  for (const Model::Layer& l : m.layers) {
    const Values keys = l.keys.values(), values = l.values.values();
    r.keys.insert(r.keys.end(), keys.begin(), keys.end());
    r.values.insert(r.values.end(), values.begin(), values.end());
  }
}

struct ExitAt {
  double threshold;
  int32_t min_loops;
};

// Computes the token function by function.
Result step_by_step(const Device& d, const Shape& s, const Numbers& n, const ExitAt* exit) {
  const Model m = on(d, s, n);
  const LoopBackend& table = d.table;
  const size_t D = size_t(s.hidden), F = size_t(s.intermediate);
  Buffer h = act(d, n.embedded), x = act(d, D), qkv = act(d, size_t(s.qkv_width())), attention = act(d, size_t(s.width())),
         branch = act(d, D), gate_up = act(d, 2 * F), activation = act(d, F), gate = real(d, 1);
  const Buffer positions(d, Ints{s.prefix + s.own - 1});
  const auto multiply = [&](int64_t rows, int64_t columns, void* from, void* w, void* to) {
    d.expect(table.gemm(d.ctx, d.dt, 0, 1, 1, rows, columns, from, columns, w, columns, to, rows, 0), "gemm");
  };
  const auto norm = [&](void* from, void* b, void* w_branch, void* w_next, void* out, void* next) {
    d.expect(table.residual_norm(d.ctx, d.dt, 1, s.hidden, 1e-6, from, b, w_branch, w_next, out, next), "residual_norm");
  };
  Result r{{}, {}, {}, {}, 0};
  double stay = 1;
  for (int32_t t = 0; t < s.loops && r.left == 0; ++t) {
    const int32_t behind = s.shared ? 0 : t * n.slots;
    const Buffer slots(d, Ints{behind + last_slot(n.context)});
    LoopCacheContext context = n.context;
    for (LoopCacheRun& run : context.runs) run.begin += behind;
    const Buffer contexts = structs(d, std::vector<LoopCacheContext>{context});
    norm(h, nullptr, nullptr, m.layers[0].weights[0], nullptr, x);
    for (int32_t l = 0; l < s.layers; ++l) {
      const Model::Layer& layer = m.layers[size_t(l)];
      const auto& w = layer.weights;
      multiply(s.qkv_width(), s.hidden, x, w[1], qkv);
      d.expect(table.rope(d.ctx, d.dt, LOOP_HALVES, 1, s.heads + s.kv_heads, s.head_dim, s.qkv_width(), positions.as<int32_t>(),
                          m.cos_sin, 0, qkv),
               "rope");
      d.expect(
          table.cache_write(d.ctx, d.dt, 1, s.heads, s.kv_heads, s.head_dim, slots.as<int32_t>(), qkv, layer.keys, layer.values),
          "cache_write");
      const LoopDecodeAttention a{1,
                                  s.heads,
                                  s.kv_heads,
                                  s.head_dim,
                                  1 / std::sqrt(double(s.head_dim)),
                                  qkv,
                                  layer.keys,
                                  layer.values,
                                  contexts.as<LoopCacheContext>(),
                                  attention};
      d.expect(table.decode_attention(d.ctx, d.dt, &a), "decode_attention");
      multiply(s.hidden, s.width(), attention, w[2], branch);
      norm(h, branch, w[3], w[4], h, x);
      multiply(2 * s.intermediate, s.hidden, x, w[5], gate_up);
      d.expect(table.swiglu(d.ctx, d.dt, LOOP_SILU, 1, s.intermediate, gate_up, activation), "swiglu");
      multiply(s.hidden, s.intermediate, activation, w[6], branch);
      const bool last = l + 1 == s.layers;
      norm(h, branch, w[7], last ? m.norm : m.layers[size_t(l) + 1].weights[0], h, x);
    }
    d.expect(table.copy(d.ctx, h, x, D * loop_dtype_size(d.dt)), "copy");
    if (t + 1 == s.loops) r.left = s.loops;
    else if (exit) {
      d.expect(table.gate(d.ctx, d.dt, 1, s.hidden, h, m.gate_weight, m.gate_bias, gate), "gate");
      r.gates.push_back(gate.values()[0]);
      stay *= 1 / (1 + std::exp(r.gates.back()));
      if (t + 1 >= exit->min_loops && 1 - stay >= exit->threshold) r.left = t + 1;
    }
  }
  r.state = h.values();
  add_cache(r, m);
  return r;
}

// Computes the token in one call, and returns its status.
int at_once(const Device& d, const Shape& s, const Numbers& n, const ExitAt* exit, Result& r) {
  const Model m = on(d, s, n);
  Buffer state = act(d, size_t(s.hidden));
  Buffer left(d, Ints{-1});
  std::vector<LoopDecodeLayer> layers;
  for (const Model::Layer& l : m.layers) {
    const auto& w = l.weights;
    layers.push_back({w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], l.keys, l.values});
  }
  const LoopDecodeToken t{s.layers,
                          s.heads,
                          s.kv_heads,
                          s.head_dim,
                          s.hidden,
                          s.intermediate,
                          1e-6,
                          1 / std::sqrt(double(s.head_dim)),
                          layers.data(),
                          m.norm,
                          m.gate_weight,
                          m.gate_bias,
                          m.cos_sin,
                          m.embedded,
                          s.prefix + s.own - 1,
                          last_slot(n.context),
                          n.context,
                          s.shared ? 0 : n.slots,
                          s.loops,
                          exit ? exit->min_loops : 1,
                          exit != nullptr,
                          exit ? exit->threshold : 0,
                          state,
                          static_cast<int32_t*>(static_cast<void*>(left))};
  const int status = d.table.decode_token(d.ctx, d.dt, &t);
  if (status) return status;
  int32_t loops = 0;
  d.expect(d.table.copy_out(d.ctx, &loops, left, sizeof loops), "copy_out");
  r = {state.values(), {}, {}, {}, loops};
  add_cache(r, m);
  return 0;
}

void compare(Test& t, const Shape& s, const ExitAt* exit, const std::string& what) {
  const Numbers n = numbers(t, s);
  const Result one_by_one = step_by_step(t.device, s, n, exit);
  Result whole;
  const int status = at_once(t.device, s, n, exit, whole);
  if (status == LOOP_DECLINED) return t.claim(what, false, "was declined");
  t.device.expect(status, "decode_token");
  t.same_bits(what + ": state", whole.state, one_by_one.state);
  t.same_bits(what + ": keys", whole.keys, one_by_one.keys);
  t.same_bits(what + ": values", whole.values, one_by_one.values);
  t.claim(what + ": leaves after loop " + std::to_string(one_by_one.left), whole.left == one_by_one.left);
  t.claim(what + ": the state is finite", std::isfinite(dot(whole.state, whole.state)));
}

}  // namespace

KERNEL_TEST(token, "decode_token") {
  if (!t.device.table.decode_token) return;
  for (const Shape& s : {Shape{1, 1, 1, 1, 8, 8, 8, 0, 1, false},      // fewer tiles than warps
                         Shape{2, 2, 4, 4, 8, 40, 72, 3, 2, false},    // pieces with a remainder
                         Shape{2, 3, 4, 2, 16, 64, 136, 0, 65, true},  // two parts, the second with one key
                         Shape{1, 2, 8, 1, 32, 136, 264, 70, 130, false}, Shape{3, 1, 6, 2, 24, 48, 40, 5, 1, false},
                         Shape{1, 2, 2, 1, 96, 264, 16, 64, 64, true}, Shape{1, 1, 3, 3, 128, 24, 520, 1, 63, false},
                         Shape{1, 1, 1, 1, 256, 136, 24, 0, 3, false},
                         Shape{1, 1, 1, 1, 8, 8, 16384, 0, 1, false}})  // so wide that only the ring with fewer stages fits
    compare(t, s, nullptr, s.name());
}

KERNEL_TEST(token_exit, "decode_token: leaves where its gate says so") {
  if (!t.device.table.decode_token) return;
  const Shape s{2, 4, 4, 2, 8, 32, 48, 4, 3, false};
  for (const ExitAt& exit : {ExitAt{0.5, 1}, ExitAt{0.6, 1}, ExitAt{0, 1}, ExitAt{0, 3}, ExitAt{0.999, 2}})
    compare(t, s, &exit, "threshold " + std::to_string(exit.threshold) + ", at least " + std::to_string(exit.min_loops));
}

KERNEL_TEST(token_declined, "decode_token: declines rows that are not multiples of 16 bytes") {
  if (!t.device.table.decode_token) return;
  for (const Shape& s : {Shape{1, 1, 2, 2, 10, 24, 40, 0, 1, false}, Shape{1, 1, 2, 2, 8, 20, 40, 0, 1, false},
                         Shape{1, 1, 2, 2, 8, 24, 36, 0, 1, false}, Shape{1, 1, 1, 1, 264, 24, 40, 0, 1, false}}) {
    Result r;
    t.claim(s.name(), at_once(t.device, s, numbers(t, s), nullptr, r) == LOOP_DECLINED);
  }
}

KERNEL_TEST(replayed, "record: a replay does the calls with what lies in memory by then") {
  const Device& d = t.device;
  if (!d.table.record) return;
  const size_t rows = 3, k = 40, n = 24;
  Buffer a = act(d, t.act_normal(rows * k)), b = act(d, t.act_normal(n * k)), c = act(d, rows * n), out = act(d, rows * n / 2);
  const auto calls = [&] {
    d.expect(d.table.gemm(d.ctx, d.dt, 0, 1, rows, n, k, a, k, b, k, c, n, 0), "gemm");
    d.expect(d.table.swiglu(d.ctx, d.dt, LOOP_SILU, rows, n / 2, c, out), "swiglu");
  };
  calls();
  const Values before = out.values();
  void* recording = nullptr;
  d.expect(d.table.record(d.ctx), "record");
  calls();
  d.expect(d.table.recorded(d.ctx, &recording), "recorded");
  const Values second = t.act_normal(rows * k);
  const Buffer other = act(d, second);
  d.expect(d.table.copy(d.ctx, a, other, second.size() * loop_dtype_size(d.dt)), "copy");
  t.same_bits("recording does nothing", out.values(), before);
  d.expect(d.table.replay(d.ctx, recording), "replay");
  const Values replayed = out.values();
  calls();
  t.same_bits("a replay", replayed, out.values());
  t.claim("and not the first result", replayed != before);
  d.table.forget(d.ctx, recording);

  d.expect(d.table.record(d.ctx), "record");
  int32_t number = 0;
  t.claim("copy_in is refused", d.table.copy_in(d.ctx, a, &number, sizeof number) != 0);
  t.claim("copy_out is refused", d.table.copy_out(d.ctx, &number, a, sizeof number) != 0);
  t.claim("an allocation is refused", d.table.allocate(d.ctx, 64) == nullptr);
  calls();
  d.expect(d.table.recorded(d.ctx, &recording), "recorded");
  d.table.forget(d.ctx, recording);
}

}  // namespace looplm::test::decode_token_tests

#include <algorithm>
#include <cmath>
#include <limits>

#include "harness.h"

namespace looplm::test::attention_tests {
namespace {

struct Heads {
  int32_t heads, kv_heads, head_dim;
  int32_t width() const { return (heads + 2 * kv_heads) * head_dim; }
  int32_t out_width() const { return heads * head_dim; }
  double scale() const { return 1 / std::sqrt(double(head_dim)); }
  std::string name() const {
    return std::to_string(heads) + "/" + std::to_string(kv_heads) + " heads of " + std::to_string(head_dim);
  }
};

// A prefix and the suffixes that attend to it; without suffixes, a single sequence. The first `two_way` tokens attend to each
// other in both directions.
struct Group {
  int32_t prefix;
  std::vector<int32_t> suffixes;
  int32_t two_way = 0;
};

struct Layout {
  std::vector<LoopSegment> segments;
  int32_t tokens = 0, groups = 0, max_context = 0;
  std::string name;
};

Layout layout(const std::vector<Group>& groups) {
  Layout l;
  for (const Group& group : groups) {
    const int32_t begin = l.tokens, end = begin + group.prefix;
    l.segments.push_back({begin, end, begin, begin, l.groups, group.two_way});
    l.tokens = end;
    l.max_context = std::max(l.max_context, group.prefix);
    l.name += (l.groups ? ", " : "[") + std::to_string(group.prefix);
    if (group.two_way > 0) l.name += " (" + std::to_string(group.two_way) + " both ways)";
    for (int32_t length : group.suffixes) {
      l.segments.push_back({l.tokens, l.tokens + length, begin, end, l.groups});
      l.tokens += length;
      l.max_context = std::max(l.max_context, group.prefix + length);
      l.name += "+" + std::to_string(length);
    }
    ++l.groups;
  }
  l.name += "]";
  return l;
}

struct Forward {
  Values out, lse;
};

LoopAttention arguments(const Heads& h, const Layout& l, const Buffer& segments) {
  LoopAttention a{};
  a.tokens = l.tokens;
  a.heads = h.heads;
  a.kv_heads = h.kv_heads;
  a.head_dim = h.head_dim;
  a.scale = h.scale();
  a.segments = segments.as<LoopSegment>();
  a.segment_count = int32_t(l.segments.size());
  a.group_count = l.groups;
  a.max_context = l.max_context;
  return a;
}

Forward run(const Device& d, const Heads& h, const Layout& l, const Values& qkv) {
  Buffer segments = structs(d, l.segments), in = act(d, qkv), out = act(d, size_t(l.tokens * h.out_width())),
         lse = real(d, size_t(l.tokens * h.heads));
  LoopAttention a = arguments(h, l, segments);
  a.qkv = in;
  a.out = out;
  a.lse = lse;
  d.expect(d.table.attention(d.ctx, d.dt, &a), "attention");
  return {out.values(), lse.values()};
}

Values run_backward(const Device& d, const Heads& h, const Layout& l, const Values& qkv, const Forward& forward,
                    const Values& dout) {
  Buffer segments = structs(d, l.segments), in = act(d, qkv), out = act(d, forward.out), lse = real(d, forward.lse),
         gradient = act(d, dout), dqkv = act(d, qkv.size());
  LoopAttention a = arguments(h, l, segments);
  a.qkv = in;
  a.out = out;
  a.lse = lse;
  a.dout = gradient;
  a.dqkv = dqkv;
  d.expect(d.table.attention_backward(d.ctx, d.dt, &a), "attention_backward");
  return dqkv.values();
}

double plain_dot(const Plain& p, const double* a, const double* b, int32_t n) {
  double sum = 0;
  for (int32_t e = 0; e < n; ++e) sum = p.real(sum + a[e] * b[e]);
  return p.act(sum);
}

// softmax(scale q·k) over a list of keys, rounded after each pass. Returns the log-sum-exp.
double plain_softmax(const Plain& p, double scale, const double* q, const std::vector<const double*>& keys, int32_t head_dim,
                     Values& probabilities) {
  probabilities.clear();
  double largest = -INFINITY, sum = 0;
  for (const double* k : keys) {
    probabilities.push_back(p.act(plain_dot(p, q, k, head_dim) * scale));
    largest = std::max(largest, probabilities.back());
  }
  for (double s : probabilities) sum += std::exp(s - largest);
  for (double& s : probabilities) s = p.act(std::exp(s - largest) / sum);
  return largest + std::log(sum);
}

bool attends(const Layout& l, int32_t i, int32_t j) {
  for (const LoopSegment& s : l.segments)
    if (s.begin <= i && i < s.end)
      return (s.prefix_begin <= j && j < s.prefix_end) || (s.begin <= j && (j <= i || std::max(i, j) < s.begin + s.two_way));
  return false;
}

struct PlainAttention {
  Forward forward;
  Values dqkv;
};

// Eager attention with a mask, forward and backward. dout may be empty.
PlainAttention plain_attention(const Plain& p, const Heads& h, const Layout& l, const Values& qkv, const Values& dout) {
  PlainAttention r{{Values(size_t(l.tokens * h.out_width())), Values(size_t(l.tokens * h.heads))}, Values(qkv.size(), 0.0)};
  const int32_t hd = h.head_dim, ratio = h.heads / h.kv_heads;
  for (int32_t head = 0; head < h.heads; ++head) {
    const auto q = [&](int32_t i) { return size_t(i * h.width() + head * hd); };
    const auto k = [&](int32_t i) { return size_t(i * h.width() + (h.heads + head / ratio) * hd); };
    const auto v = [&](int32_t i) { return k(i) + size_t(h.kv_heads * hd); };
    Values dk(size_t(l.tokens * hd), 0.0), dv(size_t(l.tokens * hd), 0.0);
    for (int32_t i = 0; i < l.tokens; ++i) {
      Ints seen;
      for (int32_t j = 0; j < l.tokens; ++j)
        if (attends(l, i, j)) seen.push_back(j);
      std::vector<const double*> keys;
      for (int32_t j : seen) keys.push_back(&qkv[k(j)]);
      Values probabilities;
      r.forward.lse[size_t(head * l.tokens + i)] = plain_softmax(p, h.scale(), &qkv[q(i)], keys, hd, probabilities);
      const size_t row = size_t((i * h.heads + head) * hd);
      for (int32_t e = 0; e < hd; ++e) {
        double sum = 0;
        for (size_t j = 0; j < seen.size(); ++j) sum = p.real(sum + probabilities[j] * qkv[v(seen[j]) + size_t(e)]);
        r.forward.out[row + size_t(e)] = p.act(sum);
      }
      if (dout.empty()) continue;
      Values dp;
      for (int32_t j : seen) dp.push_back(plain_dot(p, &dout[row], &qkv[v(j)], hd));
      const double mean = dot(probabilities, dp);
      for (size_t j = 0; j < seen.size(); ++j) {
        const double ds = p.act(p.act(probabilities[j] * (dp[j] - mean)) * h.scale());
        for (int32_t e = 0; e < hd; ++e) {
          const size_t at = size_t(seen[j] * hd + e);
          r.dqkv[q(i) + size_t(e)] += ds * qkv[k(seen[j]) + size_t(e)];
          dk[at] += ds * qkv[q(i) + size_t(e)];
          dv[at] += probabilities[j] * dout[row + size_t(e)];
        }
      }
    }
    for (int32_t i = 0; i < l.tokens && !dout.empty(); ++i)
      for (int32_t e = 0; e < hd; ++e) {
        double &dq_at = r.dqkv[q(i) + size_t(e)], &dk_at = r.dqkv[k(i) + size_t(e)], &dv_at = r.dqkv[v(i) + size_t(e)];
        dq_at = p.act(dq_at);
        dk_at = p.act(dk_at + p.act(dk[size_t(i * hd + e)]));
        dv_at = p.act(dv_at + p.act(dv[size_t(i * hd + e)]));
      }
  }
  return r;
}

struct Case {
  Heads heads;
  std::vector<Group> groups;
  double peak = 1;  // factor for the queries
};
const std::vector<Case> cases = {
    {{4, 4, 8}, {{1, {}}}},
    {{4, 2, 16}, {{1, {}}, {7, {}}, {2, {}}, {13, {}}}},
    {{6, 2, 32}, {{64, {}}, {1, {}}, {33, {}}}},
    {{8, 1, 64}, {{129, {}}, {5, {}}}},
    {{3, 3, 96}, {{300, {}}}},
    {{2, 1, 128}, {{65, {}}, {130, {}}}},
    {{4, 2, 32}, {{129, {}}, {64, {}}}, 12},
    {{4, 2, 64}, {{5, {3, 1, 7}}, {4, {}}, {64, {65, 2}}}},
    {{2, 2, 128}, {{130, {1, 67, 64}}}},
    {{6, 2, 96}, {{1, {1, 1}}, {129, {13, 66}}}},
    {{8, 1, 16}, {{33, {2, 2, 2, 2, 2, 2, 2, 2}}, {1, {}}}, 6},
    {{3, 1, 10}, {{33, {2, 5}}, {70, {}}}},
    {{2, 1, 130}, {{40, {}}}},
    {{4, 2, 16}, {{7, {}, 3}, {13, {}, 13}, {2, {}, 1}}},
    {{6, 2, 32}, {{150, {}, 100}, {64, {}, 64}, {33, {}}}, 6},
    {{2, 1, 128}, {{130, {1, 67}, 130}, {70, {}, 33}}},
    {{3, 1, 10}, {{33, {2, 5}, 33}, {70, {}, 65}}},
};

Values inputs(Test& t, const Heads& h, const Layout& l, double peak = 1) {
  Values qkv = t.act_normal(size_t(l.tokens * h.width()));
  for (size_t i = 0; i < qkv.size(); ++i)
    if (int32_t(i % size_t(h.width())) < h.out_width()) qkv[i] = rounded(t.device.dt, qkv[i] * peak);
  return qkv;
}

// The forward results that both devices get for the backward pass: the reference's, rounded as the backend would store them.
Forward stored(const Device& d, const Forward& forward) { return {rounded(d.dt, forward.out), rounded(d.real(), forward.lse)}; }

// The rows [begin, end) of every segment in `order`, one after the other.
Values take(const Values& v, size_t width, const std::vector<LoopSegment>& order) {
  Values out;
  for (const LoopSegment& s : order)
    out.insert(out.end(), v.begin() + ptrdiff_t(size_t(s.begin) * width), v.begin() + ptrdiff_t(size_t(s.end) * width));
  return out;
}

struct Both {
  Values out, dqkv;
};

// Each suffix as a whole sequence on the reference: its prefix, then the suffix. The gradient of a prefix is the sum over the
// suffixes, plus its own.
Both every_sequence_alone(const Device& reference, const Heads& h, const Layout& l, const Values& qkv, const Values& dout) {
  const size_t width = size_t(h.width()), out_width = size_t(h.out_width());
  Both sum{Values(dout.size()), Values(qkv.size(), 0.0)};
  for (const LoopSegment& s : l.segments) {
    const LoopSegment prefix{s.prefix_begin, s.prefix_end, 0, 0, 0, 0};
    const int32_t before = prefix.end - prefix.begin;
    int32_t two_way = s.two_way;
    for (const LoopSegment& other : l.segments)
      if (before > 0 && other.begin == prefix.begin) two_way = other.two_way;
    const Layout alone = layout({{before + s.end - s.begin, {}, two_way}});
    const Values own = take(qkv, width, {prefix, s});
    Values own_dout = take(dout, out_width, {prefix, s});
    std::fill(own_dout.begin(), own_dout.begin() + ptrdiff_t(size_t(before) * out_width), 0.0);
    const Forward forward = run(reference, h, alone, own);
    const Values own_gradient = run_backward(reference, h, alone, own, forward, own_dout);
    for (int32_t i = 0; i < alone.tokens; ++i) {
      const size_t to = size_t(i < before ? prefix.begin + i : s.begin + i - before);
      for (size_t e = 0; e < out_width && i >= before; ++e) sum.out[to * out_width + e] = forward.out[size_t(i) * out_width + e];
      for (size_t e = 0; e < width; ++e) sum.dqkv[to * width + e] += own_gradient[size_t(i) * width + e];
    }
  }
  return sum;
}

KERNEL_TEST(attention_both_ways, "attention") {
  for (const Case& c : cases) {
    const Heads& h = c.heads;
    const Layout l = layout(c.groups);
    const Values qkv = inputs(t, h, l, c.peak), dout = t.act_normal(size_t(l.tokens * h.out_width()));
    const Forward got = run(t.device, h, l, qkv), truth = run(t.reference, h, l, qkv), given = stored(t.device, truth);
    const Values gradient = run_backward(t.device, h, l, qkv, given, dout);
    const PlainAttention plain = t.reads_plain() ? plain_attention(t.plain(), h, l, qkv, dout) : PlainAttention();
    const std::string what = h.name() + " " + l.name;
    t.close(what + " out", got.out, truth.out, plain.forward.out);
    t.close(what + " lse", got.lse, truth.lse, plain.forward.lse);
    t.close(what + " backward", gradient, run_backward(t.reference, h, l, qkv, truth, dout), plain.dqkv);
    if (l.segments.size() == size_t(l.groups)) continue;
    const Both alone = every_sequence_alone(t.reference, h, l, qkv, dout);
    t.close(what + " out equals every sequence alone", got.out, alone.out, t.is_reference() ? alone.out : plain.forward.out);
    t.close(what + " backward equals every sequence alone", gradient, alone.dqkv, t.is_reference() ? alone.dqkv : plain.dqkv);
  }
}

KERNEL_TEST(attention_row_invariance, "attention: a row does not depend on other sequences or later tokens") {
  for (const Heads& h : {Heads{4, 2, 64}, Heads{3, 1, 32}, Heads{2, 2, 128}}) {
    const Layout l = layout({{13, {}}, {150, {}}, {64, {5, 70}}});
    const Values qkv = inputs(t, h, l);
    const Forward batch = run(t.device, h, l, qkv);
    const size_t width = size_t(h.width()), out_width = size_t(h.out_width());
    for (int32_t length : {150, 129, 64, 1}) {
      const Layout alone = layout({{length, {}}});
      const Forward got = run(t.device, h, alone, slice(qkv, 13 * width, size_t(length) * width));
      Values lse;
      for (int32_t head = 0; head < h.heads; ++head)
        for (int32_t i = 0; i < length; ++i) lse.push_back(batch.lse[size_t(head * l.tokens + 13 + i)]);
      t.same_bits(h.name() + ", its first " + std::to_string(length) + " tokens alone", got.out,
                  slice(batch.out, 13 * out_width, size_t(length) * out_width));
      t.same_bits(h.name() + ", lse of its first " + std::to_string(length) + " tokens alone", got.lse, lse);
    }
    const Layout fewer = layout({{64, {70}}});
    Values own = slice(qkv, 163 * width, 64 * width);
    const Values suffix = slice(qkv, 232 * width, 70 * width);
    own.insert(own.end(), suffix.begin(), suffix.end());
    const Forward got = run(t.device, h, fewer, own);
    t.same_bits(h.name() + ", a suffix without its sibling", slice(got.out, 64 * out_width, 70 * out_width),
                slice(batch.out, 232 * out_width, 70 * out_width));
  }
}

// As prompts go on in pieces: cached rows lie before the first segment and are only read.
KERNEL_TEST(attention_cached_prefix, "attention: prefixes that are no segments") {
  for (const Heads& h : {Heads{4, 2, 64}, Heads{2, 1, 20}}) {
    Layout whole = layout({{150, {70}}, {40, {5}}});
    Layout pieces = whole;  // both prefixes, then both suffixes
    pieces.segments = {{190, 260, 0, 150, 0}, {260, 265, 150, 190, 1}};
    const Values qkv = inputs(t, h, whole);
    const std::vector<LoopSegment>& w = whole.segments;
    const Values moved = take(qkv, size_t(h.width()), {w[0], w[2], w[1], w[3]});
    // A segment in front of those that are passed would show if a kernel read it: it covers the prefixes.
    std::vector<LoopSegment> guarded = pieces.segments;
    guarded.insert(guarded.begin(), {0, 190, 0, 0, 0});
    const size_t out_width = size_t(h.out_width());
    const Device& d = t.device;
    const Buffer segments = structs(d, guarded), in = act(d, moved), lse = real(d, size_t(pieces.tokens * h.heads));
    Buffer out = act(d, Values(size_t(pieces.tokens) * out_width, 7.0));
    LoopAttention a = arguments(h, pieces, segments);
    a.segments = segments.as<LoopSegment>() + 1;
    a.segment_count = int32_t(pieces.segments.size());
    a.qkv = in, a.out = out, a.lse = lse;
    d.expect(d.table.attention(d.ctx, d.dt, &a), "attention");
    const Values got = out.values();
    t.same_bits(h.name() + " out", take(got, out_width, pieces.segments),
                take(run(t.device, h, whole, qkv).out, out_width, {w[1], w[3]}));
    t.same_bits(h.name() + " rows of prefixes", slice(got, 0, 190 * out_width), Values(190 * out_width, 7.0));
  }
}

KERNEL_TEST(attention_determinism, "attention: twice the same bits") {
  const Heads h{6, 2, 64};
  const Layout l = layout({{64, {65, 2}}, {70, {}}});
  const Values qkv = inputs(t, h, l), dout = t.act_normal(size_t(l.tokens * h.out_width()));
  const Forward a = run(t.device, h, l, qkv), b = run(t.device, h, l, qkv);
  t.same_bits("out", a.out, b.out);
  t.same_bits("backward", run_backward(t.device, h, l, qkv, a, dout), run_backward(t.device, h, l, qkv, a, dout));
}

REFERENCE_TEST(attention_differences, "attention gradient by differences") {
  for (const Case& c : {Case{{2, 2, 4}, {{5, {}}}}, Case{{4, 2, 2}, {{3, {}}, {1, {}}}}, Case{{3, 1, 4}, {{3, {2, 1}}, {2, {}}}},
                        Case{{2, 1, 2}, {{1, {1, 3, 2}}}}, Case{{2, 1, 2}, {{5, {}, 3}, {3, {2}, 3}}}}) {
    const Layout l = layout(c.groups);
    Values qkv = inputs(t, c.heads, l);
    const Values dout = t.act_normal(size_t(l.tokens * c.heads.out_width()));
    const Values analytic = run_backward(t.device, c.heads, l, qkv, run(t.device, c.heads, l, qkv), dout);
    t.gradient(c.heads.name() + " " + l.name, analytic, qkv, [&] { return dot(dout, run(t.device, c.heads, l, qkv).out); });
  }
}

// Decoding from a cache of slots. Most of them are NaN, because no row may read them.
struct Decode {
  Heads heads;
  std::vector<LoopCacheContext> contexts;
  int32_t slots = 0;
  Values qkv, keys, values;
};

Decode decode_inputs(Test& t, const Heads& h, const std::vector<std::pair<int32_t, int32_t>>& lengths, double peak) {
  Decode d{h, {}, 0, {}, {}, {}};
  const auto reserve = [&](int32_t length) {
    const int32_t begin = d.slots + 3;  // unused slots between the runs
    d.slots = begin + length;
    return begin;
  };
  const int32_t shared = reserve(70);
  for (const auto& [prefix, own] : lengths) {
    LoopCacheContext context{{{prefix ? shared : 0, prefix}}};
    // the row's own keys, in runs of different lengths with unused slots in between
    int32_t rest = own;
    for (int32_t r = 1; r < LOOP_CACHE_RUNS && rest > 0; ++r) {
      const int32_t length = r + 1 == LOOP_CACHE_RUNS || rest <= 4 * r ? rest : 4 * r;
      context.runs[r] = {reserve(length), length};
      rest -= length;
    }
    d.contexts.push_back(context);
  }
  d.slots += 3;
  const size_t width = size_t(h.kv_heads * h.head_dim);
  d.qkv = t.act_normal(lengths.size() * size_t(h.width()), peak);
  d.keys = Values(size_t(d.slots) * width, std::numeric_limits<double>::quiet_NaN());
  d.values = d.keys;
  const auto write = [&](int32_t begin, int32_t length) {
    for (Values* plane : {&d.keys, &d.values}) {
      const Values rows = t.act_normal(size_t(length) * width);
      std::copy(rows.begin(), rows.end(), plane->begin() + ptrdiff_t(size_t(begin) * width));
    }
  };
  write(shared, 70);
  for (const LoopCacheContext& context : d.contexts)
    for (int32_t r = 1; r < LOOP_CACHE_RUNS; ++r) write(context.runs[r].begin, context.runs[r].length);
  return d;
}

Values run(const Device& d, const Decode& in) {
  Buffer qkv = act(d, in.qkv), keys = act(d, in.keys), values = act(d, in.values), contexts = structs(d, in.contexts),
         out = act(d, in.contexts.size() * size_t(in.heads.out_width()));
  LoopDecodeAttention a{int64_t(in.contexts.size()),
                        in.heads.heads,
                        in.heads.kv_heads,
                        in.heads.head_dim,
                        in.heads.scale(),
                        qkv,
                        keys,
                        values,
                        contexts.as<LoopCacheContext>(),
                        out};
  d.expect(d.table.decode_attention(d.ctx, d.dt, &a), "decode_attention");
  return out.values();
}

Values plain_decode(const Plain& p, const Decode& in) {
  const Heads& h = in.heads;
  Values out;
  for (size_t i = 0; i < in.contexts.size(); ++i)
    for (int32_t head = 0; head < h.heads; ++head) {
      const LoopCacheContext& c = in.contexts[i];
      std::vector<const double*> keys;
      Ints slots;
      for (int32_t slot = 0; slot < in.slots; ++slot)
        if (std::any_of(std::begin(c.runs), std::end(c.runs),
                        [&](const LoopCacheRun& run) { return slot >= run.begin && slot < run.begin + run.length; }))
          slots.push_back((slot * h.kv_heads + head / (h.heads / h.kv_heads)) * h.head_dim);
      for (int32_t slot : slots) keys.push_back(&in.keys[size_t(slot)]);
      Values probabilities;
      plain_softmax(p, h.scale(), &in.qkv[i * size_t(h.width()) + size_t(head * h.head_dim)], keys, h.head_dim, probabilities);
      for (int32_t e = 0; e < h.head_dim; ++e) {
        double sum = 0;
        for (size_t j = 0; j < slots.size(); ++j) sum = p.real(sum + probabilities[j] * in.values[size_t(slots[j] + e)]);
        out.push_back(p.act(sum));
      }
    }
  return out;
}

const std::vector<std::pair<int32_t, int32_t>> contexts = {{0, 1}, {70, 1}, {0, 129}, {64, 13}, {1, 7}, {70, 300}, {0, 64}};

KERNEL_TEST(decode, "decode_attention") {
  for (const auto& [h, peak] : {std::pair{Heads{4, 4, 8}, 1.0},
                                {Heads{4, 2, 16}, 1.0},
                                {Heads{6, 2, 32}, 6.0},
                                {Heads{8, 1, 64}, 1.0},
                                {Heads{3, 3, 96}, 1.0},
                                {Heads{2, 1, 128}, 1.0},
                                {Heads{3, 1, 10}, 1.0},
                                {Heads{2, 2, 130}, 1.0},
                                {Heads{1, 1, 260}, 1.0},
                                {Heads{16, 16, 64}, 12.0}}) {
    const Decode in = decode_inputs(t, h, contexts, peak);
    t.close(h.name(), run(t.device, in), run(t.reference, in), t.reads_plain() ? plain_decode(t.plain(), in) : Values());
  }
}

KERNEL_TEST(decode_row_invariance, "decode_attention: a row does not depend on the others") {
  for (const auto& [h, times] : {std::pair{Heads{4, 2, 64}, 1}, {Heads{3, 1, 96}, 1}, {Heads{16, 16, 8}, 20}}) {
    std::vector<std::pair<int32_t, int32_t>> lengths;
    for (int32_t i = 0; i < times; ++i) lengths.insert(lengths.end(), contexts.begin(), contexts.end());
    const Decode in = decode_inputs(t, h, lengths, 2);
    const Values batch = run(t.device, in);
    Values alone;
    for (size_t i = 0; i < contexts.size(); ++i) {
      Decode one = in;
      one.contexts = {in.contexts[i]};
      one.qkv = slice(in.qkv, i * size_t(h.width()), size_t(h.width()));
      const Values row = run(t.device, one);
      alone.insert(alone.end(), row.begin(), row.end());
    }
    t.same_bits(h.name() + ", " + std::to_string(lengths.size()) + " rows", alone, slice(batch, 0, alone.size()));
  }
}

// Keys in one run or in many, at any slots, give the same bits.
KERNEL_TEST(decode_runs, "decode_attention: a row does not depend on how its keys are cut into runs") {
  for (const Heads& h : {Heads{4, 2, 64}, Heads{3, 1, 96}, Heads{2, 2, 10}}) {
    Decode in = decode_inputs(t, h, {{70, 300}}, 2), one = in;
    const size_t width = size_t(h.kv_heads * h.head_dim);
    one.keys.clear(), one.values.clear();
    for (const LoopCacheRun& run : in.contexts[0].runs)
      for (const auto& [from, to] : {std::pair{&in.keys, &one.keys}, std::pair{&in.values, &one.values}}) {
        const auto first = from->begin() + ptrdiff_t(size_t(run.begin) * width);
        to->insert(to->end(), first, first + ptrdiff_t(size_t(run.length) * width));
      }
    one.contexts = {LoopCacheContext{{{0, 370}}}};
    one.slots = 370;
    t.same_bits(h.name(), run(t.device, in), run(t.device, one));
  }
}

// Decoding the last row of a sequence from a cache gives the same row as packed attention.
KERNEL_TEST(decode_is_attention, "decode_attention: equals attention over the whole sequence") {
  for (const Heads& h : {Heads{4, 2, 64}, Heads{6, 2, 32}}) {
    const Layout l = layout({{77, {}}});
    const Values qkv = inputs(t, h, l);
    const size_t width = size_t(h.width()), kv = size_t(h.kv_heads * h.head_dim), last = 76 * width;
    Decode in{h, {{{{0, 40}, {40, 37}}}}, 77, slice(qkv, last, width), {}, {}};
    for (size_t i = 0; i < 77; ++i)
      for (size_t e = 0; e < kv; ++e) {
        in.keys.push_back(qkv[i * width + size_t(h.out_width()) + e]);
        in.values.push_back(qkv[i * width + size_t(h.out_width()) + kv + e]);
      }
    const Values truth = slice(run(t.reference, h, l, qkv).out, 76 * size_t(h.out_width()), size_t(h.out_width()));
    t.close(h.name(), run(t.device, in), truth, t.is_reference() ? truth : plain_decode(t.plain(), in));
  }
}

KERNEL_TEST(cache, "cache_write") {
  for (const Heads& h : {Heads{4, 4, 8}, Heads{6, 2, 33}, Heads{8, 1, 128}})
    for (int32_t rows : {1, 2, 7, 64}) {
      const Device& d = t.device;
      const size_t width = size_t(h.width()), kv = size_t(h.kv_heads * h.head_dim), planes = size_t(2 * rows) * kv;
      const Values qkv = t.act_normal(size_t(rows) * width), before = t.act_normal(planes);
      Ints slots;
      for (int32_t i = 0; i < rows; ++i) slots.push_back(2 * (rows - 1 - i) + i % 2);
      Buffer at(d, slots), in = act(d, qkv), keys = act(d, before), values = act(d, before);
      d.expect(d.table.cache_write(d.ctx, d.dt, int64_t(slots.size()), h.heads, h.kv_heads, h.head_dim, at.as<int32_t>(), in,
                                   keys, values),
               "cache_write");
      Values expected_keys = before, expected_values = before;
      for (size_t i = 0; i < slots.size(); ++i)
        for (size_t e = 0; e < kv; ++e) {
          expected_keys[size_t(slots[i]) * kv + e] = qkv[i * width + size_t(h.out_width()) + e];
          expected_values[size_t(slots[i]) * kv + e] = qkv[i * width + size_t(h.out_width()) + kv + e];
        }
      const std::string what = h.name() + ", " + std::to_string(rows) + " rows";
      t.same_bits(what + " keys", keys.values(), expected_keys);
      t.same_bits(what + " values", values.values(), expected_values);
    }
}

}  // namespace
}  // namespace looplm::test::attention_tests

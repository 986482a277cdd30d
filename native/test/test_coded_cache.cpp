// The quantized KV cache: the contents of records, and attention over them.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "harness.h"

namespace looplm::test::coded_cache_tests {
namespace {

struct Shape {
  int32_t heads, kv_heads, head_dim;
  LoopCacheCodes codes;
  std::string name() const {
    return std::to_string(heads) + "/" + std::to_string(kv_heads) + " heads of " + std::to_string(head_dim) + ", int" +
           std::to_string(codes.bits) + " in groups of " + std::to_string(codes.group) +
           (codes.kept ? ", " + std::to_string(codes.kept) + " kept" : "");
  }
  int64_t width() const { return int64_t(heads + 2 * kv_heads) * head_dim; }
  int64_t kv() const { return int64_t(kv_heads) * head_dim; }
  int64_t words() const { return loop_record_bytes(codes, kv()) / 4; }                  // per record of keys
  Shape whole() const { return {heads, kv_heads, head_dim, loop_whole_codes(codes)}; }  // for values: never pruned
};

const std::vector<Shape> shapes = {{4, 4, 64, {4, 64}},   {4, 2, 64, {8, 64}}, {2, 1, 128, {4, 64}}, {2, 1, 128, {8, 64}},
                                   {6, 2, 32, {4, 32}},   {6, 2, 32, {8, 32}}, {3, 3, 8, {4, 8}},    {3, 1, 8, {8, 8}},
                                   {2, 2, 96, {4, 32}},   {3, 1, 10, {4, 10}}, {2, 2, 130, {8, 26}}, {2, 1, 4, {4, 4}},
                                   {16, 16, 64, {4, 64}}, {4, 2, 64, {2, 32}}, {2, 1, 128, {2, 64}}, {2, 1, 12, {2, 12}}};
const std::vector<Shape> pruned = {{4, 4, 64, {4, 64, 32}},  {4, 2, 64, {4, 64, 16}},  {2, 1, 128, {4, 64, 32}},
                                   {6, 2, 32, {4, 32, 16}},  {2, 2, 96, {4, 32, 16}},  {3, 1, 10, {4, 10, 5}},
                                   {2, 2, 130, {4, 26, 13}}, {2, 1, 4, {4, 4, 2}},     {8, 2, 48, {4, 48, 47}},
                                   {2, 1, 67, {4, 67, 33}},  {16, 16, 64, {4, 64, 32}}};
std::vector<Shape> all_shapes() {
  std::vector<Shape> all = shapes;
  all.insert(all.end(), pruned.begin(), pruned.end());
  return all;
}

// Encodes rows of keys and values [slots, kv] into the records of slots [0, slots), in reverse order.
struct Records {
  Buffer keys, values;
};
Records records(const Device& d, const Shape& s, const Values& keys, const Values& values) {
  const size_t rows = keys.size() / size_t(s.kv()), kv = size_t(s.kv());
  Values qkv;
  Ints slots;
  for (size_t i = 0; i < rows; ++i) {
    qkv.insert(qkv.end(), size_t(s.width()) - 2 * kv, 0.0);
    for (const Values* from : {&keys, &values})
      qkv.insert(qkv.end(), from->begin() + ptrdiff_t(i * kv), from->begin() + ptrdiff_t((i + 1) * kv));
    slots.push_back(int32_t(rows - 1 - i));  // reversed: row 0 goes to the last slot
  }
  Records out{{d, LOOP_I32, rows * size_t(s.words())}, {d, LOOP_I32, rows * size_t(s.whole().words())}};
  Buffer at(d, slots), in = act(d, qkv);
  d.expect(d.table.cache_encode(d.ctx, d.dt, s.codes, int64_t(rows), s.heads, s.kv_heads, s.head_dim, at.as<int32_t>(), in,
                                out.keys, out.values),
           "cache_encode");
  return out;
}

Values decoded(const Device& d, const Shape& s, const Buffer& from, int64_t rows) {
  Buffer out = act(d, size_t(rows * s.kv()));
  d.expect(d.table.cache_decode(d.ctx, d.dt, s.codes, rows, s.kv(), from, s.codes, nullptr, s.kv(), out), "cache_decode");
  return out.values();
}

Values reversed_rows(const Values& v, int64_t width) {
  Values out;
  for (int64_t i = int64_t(v.size()) / width - 1; i >= 0; --i)
    out.insert(out.end(), v.begin() + ptrdiff_t(i * width), v.begin() + ptrdiff_t((i + 1) * width));
  return out;
}

KERNEL_TEST(encode, "cache_encode") {
  for (const Shape& s : all_shapes()) {
    constexpr int64_t rows = 9;
    Values keys = t.act_normal(size_t(rows * s.kv()), 3), values = t.act_normal(size_t(rows * s.kv()));
    for (double& x : keys) x = rounded(t.device.dt, x + 2);
    std::fill_n(values.begin(), s.codes.group, rounded(t.device.dt, -0.7));  // a group of equal numbers
    std::fill_n(keys.begin() + s.kv(), s.codes.group, rounded(t.device.dt, 0.3));
    for (int64_t i = 0; i < s.codes.group; ++i)  // equal numbers, next to each other and apart
      if (i % 4 != 3) keys[size_t(s.kv() + i)] = rounded(t.device.dt, double(i / 2 % 3) - 1);
    const Records own = records(t.device, s, keys, values), truth = records(t.reference, s, keys, values);
    t.same_bits(s.name() + " keys", own.keys.values(), truth.keys.values());
    t.same_bits(s.name() + " values", own.values.values(), truth.values.values());
    const Shape whole = s.whole();
    const Values exact = slice(reversed_rows(decoded(t.reference, whole, truth.values, rows), s.kv()), 0, size_t(s.codes.group));
    t.within(s.name() + ": equal numbers", exact, slice(values, 0, exact.size()), 1.0 / 128);
    t.close(s.name() + " decoded", decoded(t.device, s, own.keys, rows), decoded(t.reference, s, truth.keys, rows),
            rounded(t.device.dt, decoded(t.reference, s, truth.keys, rows)));
    if (s.codes.kept) continue;
    // A decoded number is at most half a scale from the original. The scale is that of the range, rounded up.
    const Values back = reversed_rows(decoded(t.reference, s, truth.keys, rows), s.kv());
    bool near = true;
    for (size_t g = 0; g < keys.size(); g += size_t(s.codes.group)) {
      const Values group = slice(keys, g, size_t(s.codes.group));
      const auto [low, high] = std::minmax_element(group.begin(), group.end());
      const double range = (*high - *low) + std::abs(*low) / 128,
                   scale = range / double((1 << s.codes.bits) - 1) * (1 + 1.0 / 128);
      for (size_t i = 0; i < group.size(); ++i) near &= std::abs(back[g + i] - group[i]) <= 0.5001 * scale + 1e-6;
    }
    t.claim(s.name() + ": codes stand for the nearest", near);
  }
}

// One group whose eight nearest numbers, from 0.25 to 1, are pruned. They share a code, that of their middle.
KERNEL_TEST(encode_pruned, "cache_encode: pruned keys are the nearest ones, and stand for their middle") {
  const Shape s{1, 1, 16, {4, 16, 8}};
  Values keys = {-7, 0.5, 7, 0.25, -6, 1, 3, 0.75, -4, 0.5, 5, 1, -2, 0.5, 6, 0.5};  // eight of them are from 0.25 to 1
  const Values back = decoded(t.device, s, records(t.device, s, keys, keys).keys, 1);
  Values expected;  // the scale is 1
  for (double x : keys) expected.push_back(x >= 0.25 && x <= 1 ? 1 : -7 + 2 * std::nearbyint((x + 7) / 2));
  t.within(s.name(), back, expected, 0);
}

KERNEL_TEST(encode_not_finite, "cache_encode: a number that is not finite stays one") {
  for (const Shape& s : {shapes[0], pruned[0]})
    for (const double bad : {double(NAN), double(INFINITY), -double(INFINITY)}) {
      Values keys = t.act_normal(size_t(s.kv())), values = t.act_normal(size_t(s.kv()));
      keys[70] = bad;
      const Values back = decoded(t.device, s, records(t.device, s, keys, values).keys, 1);
      bool in_group = true, elsewhere = false;
      for (int64_t i = 0; i < s.kv(); ++i)
        (i / 64 == 1 ? in_group : elsewhere) =
            i / 64 == 1 ? in_group && std::isnan(back[size_t(i)]) : elsewhere || std::isnan(back[size_t(i)]);
      t.claim(s.name() + ": " + std::to_string(bad), in_group && !elsewhere);
    }
}

using Lengths = std::vector<std::pair<int32_t, int32_t>>;  // of each row: tokens in the cache, and recent ones

struct Decode {
  Shape shape;
  std::vector<LoopCacheContext> contexts, recent;
  Values qkv, keys, values, recent_keys, recent_values;
};

Decode inputs(Test& t, const Shape& s, const Lengths& lengths) {
  Decode in{s, {}, {}, {}, {}, {}, {}, {}};
  int32_t slots = 0, recent = 0;
  for (const auto& [coded, own] : lengths) {
    const int32_t first = coded / 3;  // two runs with a gap between them
    in.contexts.push_back({{{slots, first}, {slots + first + 2, coded - first}}});
    slots += coded + 2;
    in.recent.push_back({{{recent, own}}});
    recent += own;
  }
  in.qkv = Values(lengths.size() * size_t(s.width()));  // drawn by the tests, with different peaks
  in.keys = t.act_normal(size_t(slots * s.kv())), in.values = t.act_normal(size_t(slots * s.kv()));
  in.recent_keys = t.act_normal(size_t(recent * s.kv())), in.recent_values = t.act_normal(size_t(recent * s.kv()));
  return in;
}

// The records of the cache. Encoding takes long on the emulated device, so runs with the same keys and values share them.
Records records(const Device& d, const Decode& in) {
  const int64_t kv = in.shape.kv();
  return records(d, in.shape, reversed_rows(in.keys, kv), reversed_rows(in.values, kv));
}

Values run(const Device& d, const Decode& in, const Records& r) {
  const Shape& s = in.shape;
  const Buffer qkv = act(d, in.qkv), keys = act(d, in.recent_keys), values = act(d, in.recent_values);
  const Buffer contexts = structs(d, in.contexts), recent = structs(d, in.recent);
  Buffer out = act(d, in.contexts.size() * size_t(s.heads * s.head_dim));
  const LoopCodedAttention a{{int64_t(in.contexts.size()), s.heads, s.kv_heads, s.head_dim, 1 / std::sqrt(double(s.head_dim)),
                              qkv, r.keys, r.values, contexts.as<LoopCacheContext>(), out},
                             s.codes,
                             keys,
                             values,
                             recent.as<LoopCacheContext>(),
                             {},
                             nullptr,
                             nullptr,
                             nullptr};
  d.expect(d.table.coded_attention(d.ctx, d.dt, &a), "coded_attention");
  return out.values();
}

// Attention over unquantized keys and values.
Values attention(const Device& d, const Shape& s, const std::vector<LoopCacheContext>& contexts, const Buffer& qkv,
                 const Buffer& keys, const Buffer& values) {
  const Buffer at = structs(d, contexts);
  Buffer out = act(d, contexts.size() * size_t(s.heads * s.head_dim));
  const LoopDecodeAttention a{int64_t(contexts.size()),          s.heads, s.kv_heads, s.head_dim,
                              1 / std::sqrt(double(s.head_dim)), qkv,     keys,       values,
                              at.as<LoopCacheContext>(),         out};
  d.expect(d.table.decode_attention(d.ctx, d.dt, &a), "decode_attention");
  return out.values();
}

// Decodes the records to act, then computes plain attention.
Values plain(const Device& d, const Decode& in, const Records& r) {
  const Shape& s = in.shape;
  const int64_t slots = int64_t(in.keys.size()) / s.kv();
  const auto joined = [&](const Shape& s, const Buffer& from, const Values& recent) {
    Values all = decoded(d, s, from, slots);
    all.insert(all.end(), recent.begin(), recent.end());
    return act(d, all);
  };
  std::vector<LoopCacheContext> contexts = in.contexts;
  for (size_t i = 0; i < contexts.size(); ++i)
    contexts[i].runs[2] = {in.recent[i].runs[0].begin + int32_t(slots), in.recent[i].runs[0].length};
  const Buffer qkv = act(d, in.qkv), keys = joined(s, r.keys, in.recent_keys),
               values = joined(s.whole(), r.values, in.recent_values);
  return attention(d, s, contexts, qkv, keys, values);
}

// Wide shapes get few tokens: how many there are matters to each head alone.
const Lengths lengths = {{0, 1}, {64, 13}, {320, 64}, {1, 7}, {192, 1}, {0, 64}}, short_lengths = {{64, 13}, {0, 1}, {33, 7}};
const Lengths& lengths_for(const Shape& s) { return s.heads < 16 ? lengths : short_lengths; }

KERNEL_TEST(coded, "coded_attention") {
  for (const Shape& s : all_shapes()) {
    Decode in = inputs(t, s, lengths_for(s));
    const Records own = records(t.device, in), exact = records(t.reference, in);
    for (double peak : {1.0, 6.0}) {
      in.qkv = t.act_normal(in.qkv.size(), peak);
      const Values truth = run(t.reference, in, exact);
      if (t.is_reference()) t.within(s.name(), truth, plain(t.reference, in, exact), 1e-12);
      else t.close(s.name(), run(t.device, in, own), truth, plain(t.device, in, own));
    }
  }
}

KERNEL_TEST(coded_row_invariance, "coded_attention: a row does not depend on the others") {
  const Lengths rows = {{0, 1}, {192, 13}, {64, 64}, {1, 7}};
  for (const Shape& s : {shapes[0], shapes[3], shapes[7], pruned[0], pruned[2]}) {
    Lengths many;
    for (int i = 0; i < 2; ++i) many.insert(many.end(), rows.begin(), rows.end());
    Decode in = inputs(t, s, many);
    in.qkv = t.act_normal(in.qkv.size(), 2);
    const Records own = records(t.device, in);
    const Values batch = run(t.device, in, own);
    Values alone;
    for (size_t i = 0; i < rows.size(); ++i) {
      Decode one = in;
      one.contexts = {in.contexts[i]}, one.recent = {in.recent[i]};
      one.qkv = slice(in.qkv, i * size_t(s.width()), size_t(s.width()));
      const Values row = run(t.device, one, own);
      alone.insert(alone.end(), row.begin(), row.end());
    }
    t.same_bits(s.name(), alone, slice(batch, 0, alone.size()));
  }
}

// ---- Residuals

struct Residuals {
  Shape shape;  // its codes are those of the anchor
  LoopCacheCodes residual;
  std::string name() const {
    return shape.name() + ", residuals of int" + std::to_string(residual.bits) + " in groups of " +
           std::to_string(residual.group);
  }
  size_t words() const { return size_t(loop_record_bytes(residual, shape.kv()) / 4); }
};
const std::vector<Residuals> residuals = {{{4, 2, 64, {4, 64}}, {2, 64}}, {{2, 1, 128, {4, 64}}, {2, 32}},
                                          {{6, 2, 32, {4, 32}}, {2, 32}}, {{3, 1, 10, {4, 10}}, {2, 10}},
                                          {{2, 2, 96, {8, 32}}, {2, 32}}, {{16, 16, 64, {4, 64}}, {2, 64}}};
constexpr int LOOPS = 3;

// Numbers of all loops [LOOPS, slots, kv]. The earlier loops are near the last one.
Values loops_of(Test& t, const Shape& s, size_t slots) {
  const Values last = t.act_normal(slots * size_t(s.kv()), 2);
  Values out;
  for (int loop = 0; loop < LOOPS; ++loop) {
    const Values noise = t.act_normal(last.size(), 0.2 * (LOOPS - 1 - loop));
    for (size_t i = 0; i < last.size(); ++i) out.push_back(rounded(t.device.dt, last[i] + (loop + 1 < LOOPS ? noise[i] : 0)));
  }
  return out;
}

struct ResidualRecords {
  Records anchor, residual;
};
// Slot i gets the numbers of row `slots - 1 - i`. Tokens in slots that are a multiple of 5 run one loop fewer.
int32_t loops_at(int64_t slot) { return slot % 5 ? LOOPS : LOOPS - 1; }
ResidualRecords encoded(const Device& d, const Residuals& r, const Values& keys, const Values& values) {
  const Shape& s = r.shape;
  const int64_t slots = int64_t(keys.size()) / s.kv() / LOOPS;
  std::vector<LoopResidualToken> tokens;
  for (int32_t i = 0; i < slots; ++i) tokens.push_back({int32_t(slots) - 1 - i, i, loops_at(i)});
  const auto records = [&](size_t words) { return Records{{d, Ints(words, 0)}, {d, Ints(words, 0)}}; };
  ResidualRecords out{records(size_t(slots * s.words())), records(size_t((LOOPS - 1) * slots) * r.words())};
  const Buffer k = act(d, keys), v = act(d, values), at = structs(d, tokens);
  const LoopResidualEncode e{
      slots, s.kv(),          s.codes,           r.residual,        at.as<LoopResidualToken>(), slots, slots, k,
      v,     out.anchor.keys, out.anchor.values, out.residual.keys, out.residual.values};
  d.expect(d.table.cache_encode_residuals(d.ctx, d.dt, &e), "cache_encode_residuals");
  return out;
}

// Decodes the records of one loop, [slots, kv]. The last loop is the anchor alone.
Values decoded(const Device& d, const Residuals& r, const Buffer& anchor, const Buffer& residual, int loop, int64_t slots) {
  const Shape& s = r.shape;
  Buffer out = act(d, size_t(slots * s.kv()));
  const int32_t* added = loop + 1 < LOOPS ? residual.as<int32_t>() + size_t(loop * slots) * r.words() : nullptr;
  d.expect(d.table.cache_decode(d.ctx, d.dt, s.codes, slots, s.kv(), anchor, r.residual, added, s.kv(), out), "cache_decode");
  return out.values();
}

KERNEL_TEST(residual_encode, "cache_encode_residuals") {
  for (const Residuals& r : residuals) {
    constexpr int64_t slots = 9;
    const Shape& s = r.shape;
    const Values keys = loops_of(t, s, slots), values = loops_of(t, s, slots);
    const ResidualRecords own = encoded(t.device, r, keys, values), truth = encoded(t.reference, r, keys, values);
    t.same_bits(r.name() + ": anchor keys", own.anchor.keys.values(), truth.anchor.keys.values());
    t.same_bits(r.name() + ": anchor values", own.anchor.values.values(), truth.anchor.values.values());
    t.same_bits(r.name() + ": keys", own.residual.keys.values(), truth.residual.keys.values());
    t.same_bits(r.name() + ": values", own.residual.values.values(), truth.residual.values.values());
    for (int loop = 0; loop < LOOPS; ++loop) {
      const Values back = decoded(t.reference, r, truth.anchor.keys, truth.residual.keys, loop, slots);
      const std::string name = r.name() + ", loop " + std::to_string(loop);
      t.close(name + " decoded", decoded(t.device, r, own.anchor.keys, own.residual.keys, loop, slots), back,
              rounded(t.device.dt, back));
      double error = 0, changes = 0;  // squared distance of the original from its decoded number and from the last loop
      for (int64_t i = 0; i < slots; ++i) {
        if (loop + 1 >= loops_at(i)) continue;
        for (int64_t j = 0; j < s.kv(); ++j) {
          const double x = keys[size_t((loop * slots + slots - 1 - i) * s.kv() + j)];
          error += std::pow(back[size_t(i * s.kv() + j)] - x, 2);
          changes += std::pow(keys[size_t(((loops_at(i) - 1) * slots + slots - 1 - i) * s.kv() + j)] - x, 2);
        }
      }
      t.claim(name + ": nearer than the anchor", loop + 1 == LOOPS || error < 0.5 * changes);
    }
  }
}

struct ResidualDecode {
  Residuals of;
  Decode rows;
  Ints loops;  // current loop of each row
};

ResidualRecords encoded(const Device& d, const ResidualDecode& in) { return encoded(d, in.of, in.rows.keys, in.rows.values); }

Values run(const Device& d, const ResidualDecode& in, const ResidualRecords& r) {
  const Shape& s = in.of.shape;
  const int32_t slots = int32_t(in.rows.keys.size()) / int32_t(s.kv()) / LOOPS;
  const Buffer qkv = act(d, in.rows.qkv), keys = act(d, in.rows.recent_keys), values = act(d, in.rows.recent_values);
  const Buffer contexts = structs(d, in.rows.contexts), recent = structs(d, in.rows.recent);
  Ints at;
  for (int32_t loop : in.loops) at.push_back(loop + 1 < LOOPS ? loop * slots : -1);
  const Buffer residual_at(d, at);
  Buffer out = act(d, in.loops.size() * size_t(s.heads * s.head_dim));
  const LoopCodedAttention a{{int64_t(in.loops.size()), s.heads, s.kv_heads, s.head_dim, 1 / std::sqrt(double(s.head_dim)), qkv,
                              r.anchor.keys, r.anchor.values, contexts.as<LoopCacheContext>(), out},
                             s.codes,
                             keys,
                             values,
                             recent.as<LoopCacheContext>(),
                             in.of.residual,
                             r.residual.keys,
                             r.residual.values,
                             residual_at.as<int32_t>()};
  d.expect(d.table.coded_attention(d.ctx, d.dt, &a), "coded_attention");
  return out.values();
}

// Decodes the records of all loops to act planes, with the recent rows after them, then computes plain attention.
Values plain(const Device& d, const ResidualDecode& in, const ResidualRecords& r) {
  const Shape& s = in.of.shape;
  const int32_t slots = int32_t(in.rows.keys.size()) / int32_t(s.kv()) / LOOPS;
  const auto joined = [&](const Buffer& anchor, const Buffer& residual, const Values& recent) {
    Values all;
    for (int loop = 0; loop < LOOPS; ++loop) {
      const Values one = decoded(d, in.of, anchor, residual, loop, slots);
      all.insert(all.end(), one.begin(), one.end());
    }
    all.insert(all.end(), recent.begin(), recent.end());
    return act(d, all);
  };
  std::vector<LoopCacheContext> contexts = in.rows.contexts;
  for (size_t i = 0; i < contexts.size(); ++i) {
    for (int run : {0, 1}) contexts[i].runs[run].begin += in.loops[i] * slots;
    contexts[i].runs[2] = {in.rows.recent[i].runs[0].begin + LOOPS * slots, in.rows.recent[i].runs[0].length};
  }
  const Buffer qkv = act(d, in.rows.qkv), keys = joined(r.anchor.keys, r.residual.keys, in.rows.recent_keys),
               values = joined(r.anchor.values, r.residual.values, in.rows.recent_values);
  return attention(d, s, contexts, qkv, keys, values);
}

ResidualDecode residual_inputs(Test& t, const Residuals& r) {
  ResidualDecode in{r, inputs(t, r.shape, lengths_for(r.shape)), {}};
  const size_t slots = in.rows.keys.size() / size_t(r.shape.kv());
  in.rows.keys = loops_of(t, r.shape, slots), in.rows.values = loops_of(t, r.shape, slots);
  for (size_t i = 0; i < lengths_for(r.shape).size(); ++i) in.loops.push_back(int32_t(i * 2 % LOOPS));
  return in;
}

KERNEL_TEST(residual, "coded_attention with residuals") {
  for (const Residuals& r : residuals) {
    ResidualDecode in = residual_inputs(t, r);
    const ResidualRecords own = encoded(t.device, in), exact = encoded(t.reference, in);
    for (double peak : {1.0, 6.0}) {
      in.rows.qkv = t.act_normal(in.rows.qkv.size(), peak);
      const Values truth = run(t.reference, in, exact);
      if (t.is_reference()) t.within(r.name(), truth, plain(t.reference, in, exact), 1e-12);
      else t.close(r.name(), run(t.device, in, own), truth, plain(t.device, in, own));
    }
  }
}

KERNEL_TEST(residual_row_invariance, "coded_attention with residuals: a row does not depend on the others") {
  ResidualDecode in = residual_inputs(t, residuals[0]);
  in.rows.qkv = t.act_normal(in.rows.qkv.size(), 2);
  const ResidualRecords own = encoded(t.device, in);
  const Values batch = run(t.device, in, own);
  Values alone;
  for (size_t i = 0; i < lengths.size(); ++i) {
    ResidualDecode one = in;
    one.rows.contexts = {in.rows.contexts[i]}, one.rows.recent = {in.rows.recent[i]}, one.loops = {in.loops[i]};
    one.rows.qkv = slice(in.rows.qkv, i * size_t(in.of.shape.width()), size_t(in.of.shape.width()));
    const Values row = run(t.device, one, own);
    alone.insert(alone.end(), row.begin(), row.end());
  }
  t.same_bits(in.of.name(), alone, batch);
}

}  // namespace
}  // namespace looplm::test::coded_cache_tests

// The rotary embedding.
#include <cmath>

#include "harness.h"

namespace looplm::test::rope_tests {
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

}  // namespace
}  // namespace looplm::test::rope_tests

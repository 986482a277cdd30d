#include <cmath>

#include "harness.h"

namespace looplm::test {
namespace {

struct Quantized {
  int bits;
  int32_t group;
  int64_t m, n, k;
  int flags;
  std::string name() const {
    return std::to_string(bits) + " bits, groups of " + std::to_string(group) + ", " + std::to_string(m) + "x" +
           std::to_string(n) + "x" + std::to_string(k) + " flags " + std::to_string(flags);
  }
};

struct Operands {
  Values a;
  std::vector<uint8_t> codes;
  std::vector<float> scales;
};

int code(const Quantized& q, const Operands& o, int64_t j, int64_t l) {
  if (q.bits == 8) return int8_t(o.codes[size_t(j * q.k + l)]);
  const int pair = o.codes[size_t(j * q.k + l) / 2];
  return (l % 2 ? pair >> 4 : pair & 15) - 8;
}

Operands operands(Test& t, const Quantized& q) {
  Operands o{t.act_normal(size_t(q.m * q.k)), {}, {}};
  const Values draws = t.real_normal(size_t(q.n * q.k * q.bits / 8)), scales = t.real_normal(size_t(q.k / q.group * q.n));
  for (double x : draws) o.codes.push_back(uint8_t(int64_t(std::floor(x * 1e6)) & 255));
  o.codes.resize(o.codes.size() + 64);
  for (double x : scales) o.scales.push_back(float(x / std::sqrt(double(q.k)) / (q.bits == 8 ? 64 : 4)));
  return o;
}

Values run(const Device& d, const Quantized& q, const Operands& o) {
  Buffer a = act(d, o.a), c = q.flags ? real(d, size_t(q.m * q.n)) : act(d, size_t(q.m * q.n));
  void *codes = d.table.allocate(d.ctx, o.codes.size()), *scales = d.table.allocate(d.ctx, o.scales.size() * 4);
  d.expect(d.table.copy_in(d.ctx, codes, o.codes.data(), o.codes.size()), "copy_in");
  d.expect(d.table.copy_in(d.ctx, scales, o.scales.data(), o.scales.size() * 4), "copy_in");
  const LoopQuantized b{q.bits, q.group, codes, static_cast<const float*>(scales)};
  d.expect(d.table.gemm_quantized(d.ctx, d.dt, q.m, q.n, q.k, a, q.k, &b, c, q.n, q.flags), "gemm_quantized");
  Values out = c.values();
  d.table.release(d.ctx, codes);
  d.table.release(d.ctx, scales);
  return out;
}

Values plain_product(const Plain& p, const Quantized& q, const Operands& o) {
  Values c;
  for (int64_t i = 0; i < q.m; ++i)
    for (int64_t j = 0; j < q.n; ++j) {
      double sum = 0;
      for (int64_t l = 0; l < q.k; ++l)
        sum = p.real(sum + o.a[size_t(i * q.k + l)] * code(q, o, j, l) * double(o.scales[size_t(l / q.group * q.n + j)]));
      c.push_back(q.flags ? sum : p.act(sum));
    }
  return c;
}

const std::vector<Quantized> shapes = {{8, 32, 1, 1, 32, 0},    {4, 32, 1, 1, 32, 0},     {8, 64, 3, 37, 192, 0},
                                       {4, 64, 3, 37, 192, 0},  {8, 128, 17, 65, 256, 1}, {4, 128, 17, 65, 256, 1},
                                       {8, 32, 40, 16, 96, 0},  {4, 32, 40, 16, 96, 1},   {4, 32, 2, 130, 288, 0},
                                       {8, 32, 5, 130, 288, 1}, {4, 96, 16, 33, 480, 0}};

KERNEL_TEST(gemm_quantized, "product with a quantized weight") {
  if (!t.device.table.gemm_quantized) return;
  for (const Quantized& q : shapes) {
    const Operands o = operands(t, q);
    const Values got = run(t.device, q, o), truth = run(t.reference, q, o), plain = plain_product(t.plain(), q, o);
    if (q.flags) t.close_real(q.name(), got, truth, plain);
    else t.close(q.name(), got, truth, plain);
  }
}

KERNEL_TEST(gemm_quantized_rows, "product with a quantized weight: a row does not depend on the others") {
  if (!t.device.table.gemm_quantized) return;
  for (int bits : {4, 8}) {
    const Quantized q{bits, 32, 40, 67, 160, 1};
    const Operands o = operands(t, q);
    const Values batch = run(t.device, q, o);
    Values alone, expected;
    for (size_t i : {0, 15, 16, 39}) {
      Quantized single = q;
      single.m = 1;
      const Values row = run(t.device, single, {slice(o.a, i * 160, 160), o.codes, o.scales});
      alone.insert(alone.end(), row.begin(), row.end());
      expected.insert(expected.end(), batch.begin() + ptrdiff_t(i * 67), batch.begin() + ptrdiff_t((i + 1) * 67));
    }
    t.same_bits(std::to_string(bits) + " bits", alone, expected);
  }
}

}  // namespace
}  // namespace looplm::test

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "harness.h"

namespace looplm::test::quantized_tests {
namespace {

struct Quantized {
  int bits;
  int32_t group;
  int64_t m, n, k;
  int flags;
  int64_t pad = 0;  // elements between the rows of A and of C
  int32_t activation_bits = 0, asymmetric = 0;
  std::string name() const {
    return (activation_bits == 8 ? "int8 activations, " : "") + std::to_string(bits) +
           (asymmetric ? " bits, asymmetric, groups of " : " bits, groups of ") + std::to_string(group) + ", " +
           std::to_string(m) + "x" + std::to_string(n) + "x" + std::to_string(k) + " flags " + std::to_string(flags) + " pad " +
           std::to_string(pad);
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
  if (!q.asymmetric) return o;
  const Values middles = t.real_normal(o.scales.size());
  for (size_t i = 0; i < o.scales.size(); ++i) {
    const float middle = float(middles[i] / std::sqrt(double(q.k)));
    o.scales[i] =
        std::bit_cast<float>((std::bit_cast<uint32_t>(o.scales[i]) & 0xffff0000u) | std::bit_cast<uint32_t>(middle) >> 16);
  }
  return o;
}

// Scale and middle of a group.
std::pair<double, double> grid(const Quantized& q, float packed) {
  if (!q.asymmetric) return {packed, 0};
  const auto bits = std::bit_cast<uint32_t>(packed);
  return {std::bit_cast<float>(bits & 0xffff0000u), std::bit_cast<float>(bits << 16)};
}

// Interleaves rows as LoopQuantized defines: unit u of row i of [n, units] comes from `unit(i, u)`.
template <class T, class F>
std::vector<T> side_by_side(int64_t side, int64_t n, int64_t units, F unit) {
  std::vector<T> out(size_t((n + side - 1) / side * side * units));
  for (int64_t i = 0; i < n; ++i)
    for (int64_t u = 0; u < units; ++u) out[size_t((i / side * units + u) * side + i % side)] = unit(i, u);
  return out;
}
Operands arranged(const Device& d, const Quantized& q, const Operands& o) {
  LoopDeviceProperties properties{};
  d.expect(d.table.properties(d.ctx, &properties), "properties");
  const int64_t side = properties.quantized_rows, units = q.k * q.bits / 32;
  if (side == 1) return o;
  const auto codes = side_by_side<uint32_t>(side, q.n, units, [&](int64_t i, int64_t u) {
    uint32_t unit;
    std::memcpy(&unit, &o.codes[size_t(4 * (i * units + u))], 4);
    return unit;
  });
  Operands out{o.a, std::vector<uint8_t>(codes.size() * 4 + 64), {}};
  std::memcpy(out.codes.data(), codes.data(), codes.size() * 4);
  out.scales = side_by_side<float>(side, q.n, q.k / q.group, [&](int64_t i, int64_t g) { return o.scales[size_t(g * q.n + i)]; });
  return out;
}
bool has_int8_activations(const Device& d) {
  LoopDeviceProperties properties{};
  d.expect(d.table.properties(d.ctx, &properties), "properties");
  return properties.int8_activations > 0;
}

bool takes_asymmetric(const Device& d) {
  LoopDeviceProperties properties{};
  d.expect(d.table.properties(d.ctx, &properties), "properties");
  return properties.asymmetric_weights != 0;
}

Values run(const Device& d, const Quantized& q, const Operands& plain) {
  const Operands o = arranged(d, q, plain);
  const int64_t lda = q.k + q.pad, ldc = q.n + q.pad;
  Values spread(size_t(q.m * lda), 1e3);
  for (size_t i = 0; i < o.a.size(); ++i) spread[i / size_t(q.k) * size_t(lda) + i % size_t(q.k)] = o.a[i];
  Buffer a = act(d, spread), c = q.flags ? real(d, size_t(q.m * ldc)) : act(d, size_t(q.m * ldc));
  void *codes = d.table.allocate(d.ctx, o.codes.size()), *scales = d.table.allocate(d.ctx, o.scales.size() * 4);
  d.expect(d.table.copy_in(d.ctx, codes, o.codes.data(), o.codes.size()), "copy_in");
  d.expect(d.table.copy_in(d.ctx, scales, o.scales.data(), o.scales.size() * 4), "copy_in");
  const LoopQuantized b{q.bits, q.group, codes, static_cast<const float*>(scales), q.activation_bits, q.asymmetric};
  d.expect(d.table.gemm_quantized(d.ctx, d.dt, q.m, q.n, q.k, a, lda, &b, c, ldc, q.flags), "gemm_quantized");
  const Values rows = c.values();
  Values out;
  for (size_t i = 0; i < rows.size(); ++i)
    if (int64_t(i) % ldc < q.n) out.push_back(rows[i]);
  d.table.release(d.ctx, codes);
  d.table.release(d.ctx, scales);
  return out;
}

// A row of activations after rounding to 8 bits, as numbers.
Values eight_bits(const Quantized& q, const Values& a) {
  Values out;
  for (size_t first = 0; first < a.size(); first += size_t(q.group)) {
    float most = 0;
    for (size_t l = 0; l < size_t(q.group); ++l) most = std::max(most, float(std::fabs(a[first + l])));
    const float inverse = most > 1e-30f ? 127 / most : 0, scale = most / 127;
    for (size_t l = 0; l < size_t(q.group); ++l) out.push_back(std::nearbyint(float(a[first + l]) * inverse) * double(scale));
  }
  return out;
}

Values plain_product(const Plain& p, const Quantized& q, const Operands& given) {
  const Operands o{q.activation_bits == 8 ? eight_bits(q, given.a) : given.a, given.codes, given.scales};
  Values c;
  for (int64_t i = 0; i < q.m; ++i)
    for (int64_t j = 0; j < q.n; ++j) {
      double sum = 0;
      for (int64_t l = 0; l < q.k; ++l) {
        const auto [scale, middle] = grid(q, o.scales[size_t(l / q.group * q.n + j)]);
        sum = p.real(sum + o.a[size_t(i * q.k + l)] * (code(q, o, j, l) * scale + middle));
      }
      c.push_back(q.flags ? sum : p.act(sum));
    }
  return c;
}

const std::vector<Quantized> shapes = {
    {8, 32, 1, 1, 32, 0},     {4, 32, 1, 1, 32, 0},       {8, 64, 3, 37, 192, 0},    {4, 64, 3, 37, 192, 0},
    {8, 128, 17, 65, 256, 1}, {4, 128, 17, 65, 256, 1},   {8, 32, 40, 16, 96, 0},    {4, 32, 40, 16, 96, 1},
    {4, 32, 2, 130, 288, 0},  {8, 32, 5, 130, 288, 1},    {4, 96, 16, 33, 480, 0},   {4, 32, 1, 9, 2304, 1},
    {8, 64, 2, 20, 2112, 0},  {4, 128, 16, 17, 4224, 1},  {4, 64, 7, 263, 192, 0},   {8, 32, 12, 258, 160, 1},
    {4, 32, 3, 18, 96, 0, 3}, {8, 64, 21, 18, 192, 1, 3}, {4, 64, 70, 129, 64, 0, 8}};

void compare(Test& t, const Quantized& q) {
  const Operands o = operands(t, q);
  const Values got = run(t.device, q, o), truth = run(t.reference, q, o),
               plain = (q.flags ? t.is_reference() : t.reads_plain()) ? plain_product(t.plain(), q, o) : Values();
  if (q.flags) t.close_real(q.name(), got, truth, plain);
  else t.close(q.name(), got, truth, plain);
}

KERNEL_TEST(gemm_quantized, "product with a quantized weight") {
  if (!t.device.table.gemm_quantized) return;
  for (const Quantized& q : shapes) compare(t, q);
}

KERNEL_TEST(gemm_int8, "product of int8 activations with a quantized weight") {
  if (!has_int8_activations(t.device)) return;
  for (Quantized q : shapes) {
    q.activation_bits = 8;
    compare(t, q);
  }
  compare(t, {4, 32, 600, 40, 640, 1, 0, 8});  // more rows than the kernel processes at a time
  compare(t, {8, 64, 71, 40, 192, 1, 0, 8});   // enough rows that the kernel expands the codes
}

KERNEL_TEST(gemm_asymmetric, "product with an asymmetric weight") {
  if (!takes_asymmetric(t.device)) return;
  for (Quantized q : shapes) {
    if (q.bits != 4) continue;
    q.asymmetric = 1;
    compare(t, q);
    q.activation_bits = 8;
    compare(t, q);
  }
}

KERNEL_TEST(gemm_int8_extremes, "product of int8 activations: the largest codes, zeros and what is not finite") {
  if (!has_int8_activations(t.device)) return;
  for (const auto& [bits, rows] : {std::pair{8, 5}, {4, 5}, {8, 70}, {4, 70}}) {
    const Quantized q{bits, 64, rows, 20, 128, 1, 0, 8};
    const std::string name = std::to_string(bits) + " bits, " + std::to_string(rows) + " rows";
    Operands o = operands(t, q);
    // the largest codes of both signs: 16-bit sums must not overflow
    for (size_t i = 0; i < o.codes.size(); ++i)
      o.codes[i] = bits == 4 ? (i / 64 % 2 ? 0xff : 0x00) : (i / 128 % 3 == 0 ? 0x81 : i / 128 % 3 == 1 ? 0x80 : 0x7f);
    for (size_t i = 0; i < o.a.size(); ++i) o.a[i] = i / 128 == 0 ? 1 : i / 128 == 1 ? -1 : i / 128 == 2 ? 0 : o.a[i];
    t.within(name + ", largest", run(t.device, q, o), run(t.reference, q, o), 1e-5);
    const size_t n = size_t(q.n), k = size_t(q.k);
    const Values before = run(t.device, q, o);
    o.a[3 * k + 70] = std::nan("");
    o.a[4 * k] = INFINITY;
    const Values after = run(t.device, q, o);
    t.same_bits(name + ", the other rows", slice(after, 0, 3 * n), slice(before, 0, 3 * n));
    bool all = true;
    for (double x : slice(after, 3 * n, 2 * n)) all = all && std::isnan(x);
    t.claim(name + ": a row with a number that is not finite is not a number", all);
  }
}

KERNEL_TEST(gemm_quantized_rows, "product with a quantized weight: a row does not depend on the others") {
  if (!t.device.table.gemm_quantized) return;
  for (const Quantized& q : {Quantized{4, 32, 40, 67, 160, 1},
                             {8, 32, 40, 67, 160, 1},
                             {4, 64, 67, 20, 1216, 1},
                             {4, 32, 40, 67, 160, 1, 0, 8},
                             {8, 96, 600, 67, 480, 1, 0, 8},
                             {4, 64, 300, 20, 1216, 1, 0, 8},
                             {4, 64, 40, 20, 1216, 1, 0, 0, 1},
                             {4, 64, 300, 20, 1216, 1, 0, 8, 1}}) {
    if (q.activation_bits == 8 && !has_int8_activations(t.device)) continue;
    if (q.asymmetric && !takes_asymmetric(t.device)) continue;
    const Operands o = operands(t, q);
    const Values batch = run(t.device, q, o);
    const size_t n = size_t(q.n), k = size_t(q.k);
    for (int64_t m : {1, 6, 16}) {  // few rows at a time, as in decoding
      Values alone, expected;
      for (size_t i : {0, 15, 16, 24}) {
        Quantized part = q;
        part.m = m;
        const Values rows = run(t.device, part, {slice(o.a, i * k, size_t(m) * k), o.codes, o.scales});
        alone.insert(alone.end(), rows.begin(), rows.end());
        const Values same = slice(batch, i * n, size_t(m) * n);
        expected.insert(expected.end(), same.begin(), same.end());
      }
      t.same_bits(q.name() + ", " + std::to_string(m) + " at a time", alone, expected);
    }
  }
}

}  // namespace
}  // namespace looplm::test::quantized_tests

#include <cmath>
#include <limits>

#include "harness.h"

namespace looplm::test::gemm_tests {
namespace {

constexpr double nan = std::numeric_limits<double>::quiet_NaN();

struct Gemm {
  int transpose_a, transpose_b;
  int64_t m, n, k;
  int flags = 0;
  int64_t padding = 0;  // added to every leading dimension

  int64_t a_rows() const { return transpose_a ? k : m; }
  int64_t b_rows() const { return transpose_b ? n : k; }
  int64_t lda() const { return (transpose_a ? m : k) + padding; }
  int64_t ldb() const { return (transpose_b ? k : n) + padding; }
  int64_t ldc() const { return n + padding; }
  std::string shape() const { return std::to_string(m) + "x" + std::to_string(n) + "x" + std::to_string(k); }
};

struct Operands {
  Values a, b, c;
};

// Padding columns are NaN: they must be neither used nor written.
void poison_padding(Values& v, int64_t ld, int64_t padding) {
  for (size_t i = 0; i < v.size(); ++i)
    if (int64_t(i) % ld >= ld - padding) v[i] = nan;
}

Operands operands(Test& t, const Gemm& g) {
  Operands o{t.act_normal(size_t(g.a_rows() * g.lda())), t.act_normal(size_t(g.b_rows() * g.ldb()), 1 / std::sqrt(double(g.k))),
             g.flags & LOOP_GEMM_ACCUMULATE ? t.real_normal(size_t(g.m * g.ldc())) : Values(size_t(g.m * g.ldc()))};
  poison_padding(o.a, g.lda(), g.padding);
  poison_padding(o.b, g.ldb(), g.padding);
  poison_padding(o.c, g.ldc(), g.padding);
  return o;
}

Values run(const Device& d, const Gemm& g, const Operands& o) {
  const bool is_real = g.flags & (LOOP_GEMM_REAL_OUT | LOOP_GEMM_ACCUMULATE);
  Buffer a = act(d, o.a), b = act(d, o.b);
  Buffer c = g.flags & LOOP_GEMM_ACCUMULATE ? real(d, o.c) : is_real ? real(d, o.c.size()) : act(d, o.c.size());
  d.expect(d.table.gemm(d.ctx, d.dt, g.transpose_a, g.transpose_b, g.m, g.n, g.k, a, g.lda(), b, g.ldb(), c, g.ldc(), g.flags),
           "gemm");
  return c.values();
}

Values plain_gemm(const Plain& p, const Gemm& g, const Operands& o) {
  Values c(o.c.size(), nan);
  const bool is_real = g.flags & (LOOP_GEMM_REAL_OUT | LOOP_GEMM_ACCUMULATE);
  for (int64_t i = 0; i < g.m; ++i)
    for (int64_t j = 0; j < g.n; ++j) {
      double sum = 0;
      for (int64_t l = 0; l < g.k; ++l) {
        const int64_t ia = g.transpose_a ? l * g.lda() + i : i * g.lda() + l,
                      ib = g.transpose_b ? j * g.ldb() + l : l * g.ldb() + j;
        sum = p.real(sum + o.a[size_t(ia)] * o.b[size_t(ib)]);
      }
      const size_t at = size_t(i * g.ldc() + j);
      c[at] = g.flags & LOOP_GEMM_ACCUMULATE ? p.real(o.c[at] + sum) : is_real ? sum : p.act(sum);
    }
  return c;
}

void compare(Test& t, const std::string& what, const Gemm& g) {
  const Operands o = operands(t, g);
  const Values got = run(t.device, g, o), truth = run(t.reference, g, o),
               plain = (g.flags ? t.is_reference() : t.reads_plain()) ? plain_gemm(t.plain(), g, o) : Values();
  if (g.flags) t.close_real(what + " " + g.shape(), got, truth, plain);
  else t.close(what + " " + g.shape(), got, truth, plain);
}

struct Size {
  int64_t m, n, k;
};
const std::vector<Size> sizes = {{1, 1, 1},    {1, 31, 7},    {2, 33, 64},  {7, 129, 33},  {13, 64, 129},
                                 {64, 17, 65}, {129, 100, 8}, {300, 70, 3}, {1, 257, 513}, {130, 131, 257}};

KERNEL_TEST(gemm_forward, "gemm forward (B a weight)") {
  for (const Size& s : sizes) compare(t, "", {0, 1, s.m, s.n, s.k});
}

KERNEL_TEST(gemm_input_gradient, "gemm input gradient (nothing transposed)") {
  for (const Size& s : sizes) compare(t, "", {0, 0, s.m, s.n, s.k});
}

KERNEL_TEST(gemm_weight_gradient, "gemm weight gradient (A transposed, accumulated)") {
  for (const Size& s : sizes) compare(t, "", {1, 0, s.m, s.n, s.k, LOOP_GEMM_ACCUMULATE});
}

KERNEL_TEST(gemm_real_out, "gemm into real") {
  for (const Size& s : sizes) compare(t, "", {0, 1, s.m, s.n, s.k, LOOP_GEMM_REAL_OUT});
  compare(t, "accumulated, both flags", {0, 0, 33, 65, 31, LOOP_GEMM_REAL_OUT | LOOP_GEMM_ACCUMULATE});
}

KERNEL_TEST(gemm_transposes, "gemm every transposition and leading dimension") {
  for (int transpose_a : {0, 1})
    for (int transpose_b : {0, 1})
      for (int flags : {0, int(LOOP_GEMM_REAL_OUT), int(LOOP_GEMM_ACCUMULATE)})
        compare(t, std::string(transpose_a ? "Aᵀ" : "A") + (transpose_b ? " Bᵀ" : " B") + " flags " + std::to_string(flags),
                {transpose_a, transpose_b, 37, 41, 67, flags, 5});
}

KERNEL_TEST(gemm_few_rows, "gemm with few rows, padded") {
  for (int transpose_b : {0, 1})
    for (int64_t m : {1, 2, 7, 64})
      for (int flags : {0, int(LOOP_GEMM_REAL_OUT), int(LOOP_GEMM_ACCUMULATE)})
        compare(t, std::string(transpose_b ? "Bᵀ" : "B") + " flags " + std::to_string(flags),
                {0, transpose_b, m, 131, 77, flags, 3});
}

KERNEL_TEST(gemm_empty_sums, "gemm: sums of no products") {
  for (int64_t m : {3, 200})
    for (int transpose_a : {0, 1})
      for (int flags : {0, int(LOOP_GEMM_REAL_OUT), int(LOOP_GEMM_ACCUMULATE)}) {
        const Gemm g{transpose_a, 1, m, 37, 0, flags, 5};
        const Operands o = operands(t, g);
        const Values got = run(t.device, g, o);
        bool right = true;
        for (int64_t i = 0; i < g.m; ++i)
          for (int64_t j = 0; j < g.n; ++j) right &= got[size_t(i * g.ldc() + j)] == o.c[size_t(i * g.ldc() + j)];
        t.claim(g.shape() + (transpose_a ? " Aᵀ" : "") + " flags " + std::to_string(flags), right,
                "C is not 0, or not as before");
      }
}

// Enough tiles that the kernel for large products is chosen, with a partial tile on every side, but fewer rows than a GPU's
// library needs.
KERNEL_TEST(gemm_large, "gemm with many tiles") {
  for (int ta : {0, 1})
    for (int tb : {0, 1}) compare(t, "A " + std::to_string(ta) + ", B " + std::to_string(tb), {ta, tb, 1016, 1032, 40});
  compare(t, "no alignment", {0, 1, 1023, 530, 72, LOOP_GEMM_ACCUMULATE, 1});
  for (int tb : {0, 1}) compare(t, "fewer tiles, B " + std::to_string(tb), {0, tb, 200, 136, 40});
}

KERNEL_TEST(gemm_row_invariance, "gemm: a row does not depend on the others") {
  for (int transpose_b : {0, 1})
    for (int flags : {0, int(LOOP_GEMM_REAL_OUT)}) {
      const Gemm whole{0, transpose_b, 300, 67, 129, flags};
      const Operands o = operands(t, whole);
      const Values batch = run(t.device, whole, o);
      Values alone, expected;
      for (size_t i : {0, 1, 63, 64, 128, 299}) {
        Gemm single = whole;
        single.m = 1;
        const Values row = run(t.device, single, {slice(o.a, i * 129, 129), o.b, slice(o.c, i * 67, 67)});
        alone.insert(alone.end(), row.begin(), row.end());
        expected.insert(expected.end(), batch.begin() + ptrdiff_t(i * 67), batch.begin() + ptrdiff_t((i + 1) * 67));
      }
      t.same_bits(std::string(transpose_b ? "Bᵀ" : "B") + " flags " + std::to_string(flags), alone, expected);
    }
}

KERNEL_TEST(gemm_determinism, "gemm: twice the same bits") {
  for (int flags : {0, int(LOOP_GEMM_ACCUMULATE)}) {
    const Gemm g{1, 0, 130, 70, 301, flags};
    const Operands o = operands(t, g);
    t.same_bits("flags " + std::to_string(flags), run(t.device, g, o), run(t.device, g, o));
  }
}

}  // namespace
}  // namespace looplm::test::gemm_tests

// Tensor operations on the dtypes that belong to the dtype under test; copy_strided between all dtypes.
#include <algorithm>
#include <cmath>

#include "harness.h"

namespace looplm::test::tensor_tests {
namespace {

using Shape = std::vector<int64_t>;

const char* type_name(LoopDType type) {
  switch (type) {
    case LOOP_F32:
      return "f32";
    case LOOP_BF16:
      return "bf16";
    case LOOP_F64:
      return "f64";
    case LOOP_I32:
      return "i32";
    case LOOP_F16:
      return "f16";
  }
  return "?";
}

std::vector<LoopDType> types(const Test& t) {
  if (t.device.dt == LOOP_BF16) return {LOOP_BF16};
  if (t.device.dt == LOOP_F32) return {LOOP_F32, LOOP_I32};
  return {LOOP_F64, LOOP_F32, LOOP_BF16, LOOP_I32};
}

Values numbers(Test& t, LoopDType type, size_t count) { return rounded(type, t.act_normal(count, type == LOOP_I32 ? 1000 : 2)); }

int64_t elements(const Shape& shape) {
  int64_t count = 1;
  for (int64_t n : shape) count *= n;
  return count;
}

int64_t offset(int64_t i, const Shape& shape, const Shape& strides) {
  int64_t at = 0;
  for (size_t r = shape.size(); r-- > 0; i /= shape[r]) at += i % shape[r] * strides[r];
  return at;
}

// One more than the largest offset.
int64_t extent(const Shape& shape, const Shape& strides) {
  int64_t last = 0;
  for (size_t r = 0; r < shape.size(); ++r) last += (shape[r] - 1) * strides[r];
  return last + 1;
}

std::string text(const Shape& shape) {
  std::string out = "[";
  for (size_t r = 0; r < shape.size(); ++r) out += (r ? "," : "") + std::to_string(shape[r]);
  return out + "]";
}

struct Strided {
  Shape shape, a, b;
};
const std::vector<Strided> strided = {{{}, {}, {}},
                                      {{1}, {1}, {0}},
                                      {{129}, {1}, {1}},
                                      {{300}, {3}, {0}},
                                      {{13, 31}, {31, 1}, {0, 1}},
                                      {{31, 13}, {1, 31}, {1, 0}},
                                      {{7, 1, 33}, {33, 33, 1}, {0, 0, 0}},
                                      {{5, 64, 3}, {192, 1, 64}, {3, 0, 1}},
                                      {{2, 3, 4, 5}, {1, 2, 6, 24}, {60, 20, 5, 1}},
                                      {{2, 1, 2, 1, 3, 1, 2, 2}, {24, 0, 12, 0, 4, 0, 2, 1}, {0, 0, 1, 0, 2, 0, 6, 12}}};

KERNEL_TEST(binary, "binary") {
  for (LoopDType type : types(t))
    for (LoopBinaryOp op : {LOOP_ADD, LOOP_MULTIPLY})
      for (const Strided& s : strided) {
        const Values a = numbers(t, type, size_t(extent(s.shape, s.a))), b = numbers(t, type, size_t(extent(s.shape, s.b)));
        Buffer left(t.device, type, a), right(t.device, type, b), out(t.device, type, size_t(elements(s.shape)));
        t.device.expect(t.device.table.binary(t.device.ctx, type, op, int32_t(s.shape.size()), s.shape.data(), left, s.a.data(),
                                              right, s.b.data(), out),
                        "binary");
        Values expected;
        for (int64_t i = 0; i < elements(s.shape); ++i) {
          const double x = a[size_t(offset(i, s.shape, s.a))], y = b[size_t(offset(i, s.shape, s.b))];
          expected.push_back(rounded(type, op == LOOP_ADD ? x + y : x * y));
        }
        t.same_bits(std::string(type_name(type)) + (op == LOOP_ADD ? " add " : " multiply ") + text(s.shape), out.values(),
                    expected);
      }
}

const std::vector<LoopDType> all_types = {LOOP_F32, LOOP_BF16, LOOP_F64, LOOP_I32, LOOP_F16};

// Copies with source strides s.a into a destination that is dense except for a gap of one element after each element.
KERNEL_TEST(copy_strides, "copy_strided: strides") {
  for (LoopDType type : types(t))
    for (const Strided& s : strided) {
      const Values src = numbers(t, type, size_t(extent(s.shape, s.a)));
      Shape to_strides(s.shape.size());
      int64_t stride = 2;
      for (size_t r = s.shape.size(); r-- > 0; stride *= s.shape[r]) to_strides[r] = stride;
      Values expected(size_t(2 * elements(s.shape)), 77.0);
      Buffer from(t.device, type, src), to(t.device, type, expected);
      t.device.expect(t.device.table.copy_strided(t.device.ctx, type, type, int32_t(s.shape.size()), s.shape.data(), from,
                                                  s.a.data(), to, to_strides.data()),
                      "copy_strided");
      for (int64_t i = 0; i < elements(s.shape); ++i) expected[size_t(2 * i)] = src[size_t(offset(i, s.shape, s.a))];
      t.same_bits(std::string(type_name(type)) + " " + text(s.shape), to.values(), expected);
    }
}

// Parts of rows. CUDA copies 16 bytes at a time if rows and parts are multiples of that.
KERNEL_TEST(copy_parts, "copy_strided: parts of rows") {
  const std::vector<Strided> parts = {
      {{5, 64}, {96, 1}, {80, 1}},           {{5, 64}, {97, 1}, {80, 1}}, {{5, 64}, {96, 1}, {81, 1}},
      {{5, 60}, {96, 1}, {80, 1}},           {{5, 63}, {64, 1}, {64, 1}}, {{3, 4, 16}, {16, 48, 1}, {64, 16, 1}},
      {{3, 4, 16}, {0, 16, 1}, {80, 16, 1}}, {{40, 8}, {8, 40}, {8, 1}},  {{0, 16}, {32, 1}, {48, 1}}};
  for (LoopDType type : types(t))
    for (const Strided& s : parts) {
      const Values src = numbers(t, type, size_t(std::max<int64_t>(extent(s.shape, s.a), 1)));
      Values expected(size_t(std::max<int64_t>(extent(s.shape, s.b), 1)), 77.0);
      Buffer from(t.device, type, src), to(t.device, type, expected);
      t.device.expect(t.device.table.copy_strided(t.device.ctx, type, type, int32_t(s.shape.size()), s.shape.data(), from,
                                                  s.a.data(), to, s.b.data()),
                      "copy_strided");
      for (int64_t i = 0; i < elements(s.shape); ++i)
        expected[size_t(offset(i, s.shape, s.b))] = src[size_t(offset(i, s.shape, s.a))];
      t.same_bits(std::string(type_name(type)) + " " + text(s.shape) + " from " + text(s.a) + " to " + text(s.b), to.values(),
                  expected);
    }
}

KERNEL_TEST(copy_types, "copy_strided: conversions") {
  for (LoopDType from : all_types)
    for (LoopDType to : all_types) {
      Values src = t.act_normal(301, 50);
      // Halfway cases of bfloat16 and float16, the ends of their ranges, float16 subnormals, signed zeros. No float32
      // subnormals: processors that convert to bfloat16 in hardware flush them to 0.
      for (double x : {1 + 0x1p-8, 1 + 0x3p-8, 1 + 0x1p-8 + 0x1p-20, 1 + 0x1p-11, 1 + 0x3p-11, -1 - 0x1p-11, 2048.5, 65504.0,
                       65519.0, 3.0e-5, 5.9604644775390625e-8, 2.9802322387695312e-8, 8.9e-8, 0.0, -0.0, 123456.0, -7.9, 7.9})
        src.push_back(x);
      if (from != LOOP_I32 && to != LOOP_I32)
        for (double x : {65520.0, -7e4, 3.3961e38, 1e30, -1e30, double(INFINITY), -double(INFINITY), double(NAN)})
          src.push_back(x);
      src = rounded(from, src);
      const int64_t count = int64_t(src.size()), stride = 1;
      Buffer in(t.device, from, src), out(t.device, to, src.size());
      t.device.expect(t.device.table.copy_strided(t.device.ctx, from, to, 1, &count, in, &stride, out, &stride), "copy_strided");
      t.within(std::string(type_name(from)) + " to " + type_name(to), out.values(), rounded(to, src), 0);
    }
}

struct Size {
  int64_t rows, n;
};

Values softmax(const Device& d, LoopDType type, const Size& s, int logarithm, const Values& x) {
  Buffer in(d, type, x), out(d, type, x.size());
  d.expect(d.table.softmax(d.ctx, type, s.rows, s.n, logarithm, in, out), "softmax");
  return out.values();
}

KERNEL_TEST(softmax_rows, "softmax") {
  for (LoopDType type : types(t))
    for (int logarithm : {0, 1})
      for (const Size& s : {Size{1, 1}, Size{1, 31}, Size{7, 64}, Size{129, 33}, Size{13, 1031}, Size{2, 50000}}) {
        if (type == LOOP_I32) continue;
        Values x = numbers(t, type, size_t(s.rows * s.n)), plain;
        for (size_t i = 0; i < x.size(); i += 97) x[i] = rounded(type, x[i] + 15);
        for (size_t row = 0; row < size_t(s.rows); ++row) {
          const Values values = slice(x, row * size_t(s.n), size_t(s.n));
          const double largest = *std::max_element(values.begin(), values.end());
          double sum = 0;
          for (double v : values) sum += std::exp(v - largest);
          for (double v : values)
            plain.push_back(rounded(type, logarithm ? v - largest - std::log(sum) : std::exp(v - largest) / sum));
        }
        t.close_as(
            type, std::string(type_name(type)) + (logarithm ? " log " : " ") + std::to_string(s.rows) + "x" + std::to_string(s.n),
            softmax(t.device, type, s, logarithm, x), softmax(t.reference, LOOP_F64, s, logarithm, x), plain);
      }
}

struct Reduced {
  int64_t outer, n, inner;
  std::string name() const { return std::to_string(outer) + "x" + std::to_string(n) + "x" + std::to_string(inner); }
};

Values reduce(const Device& d, LoopDType type, LoopReduceOp op, const Reduced& s, const Values& x) {
  Buffer in(d, type, x), out(d, op == LOOP_ARGMAX ? LOOP_I32 : type, size_t(s.outer * s.inner));
  d.expect(d.table.reduce(d.ctx, type, op, s.outer, s.n, s.inner, in, out), "reduce");
  return out.values();
}

Values plain_reduce(LoopDType type, LoopReduceOp op, const Reduced& s, const Values& x) {
  Values out;
  for (int64_t o = 0; o < s.outer; ++o)
    for (int64_t i = 0; i < s.inner; ++i) {
      Values column;
      for (int64_t j = 0; j < s.n; ++j) column.push_back(x[size_t((o * s.n + j) * s.inner + i)]);
      double sum = 0;
      for (double v : column) sum += v;
      const auto largest = std::max_element(column.begin(), column.end());
      out.push_back(op == LOOP_ARGMAX ? double(largest - column.begin())
                                      : rounded(type, op == LOOP_MAX    ? *largest
                                                      : op == LOOP_MEAN ? sum / double(s.n)
                                                                        : sum));
    }
  return out;
}

KERNEL_TEST(reductions, "reduce") {
  const std::vector<std::pair<LoopReduceOp, const char*>> ops = {
      {LOOP_SUM, "sum"}, {LOOP_MEAN, "mean"}, {LOOP_MAX, "max"}, {LOOP_ARGMAX, "argmax"}};
  for (LoopDType type : types(t))
    for (const auto& [op, name] : ops)
      for (const Reduced& s : {Reduced{1, 1, 1}, Reduced{1, 1031, 1}, Reduced{7, 33, 1}, Reduced{1, 300, 13}, Reduced{5, 64, 31},
                               Reduced{129, 2, 3}, Reduced{3, 50000, 1}}) {
        if (type == LOOP_I32 && op == LOOP_MEAN) continue;
        Values x = numbers(t, type, size_t(s.outer * s.n * s.inner));
        if (op == LOOP_SUM || op == LOOP_MEAN)
          for (double& v : x) v = rounded(type, v + 1);  // avoids cancellation in the sum
        if (op == LOOP_ARGMAX && s.n > 2)
          for (int64_t i = 0; i < s.inner; ++i)
            x[size_t((s.n - 1) * s.inner + i)] = x[size_t(s.inner + i)] = rounded(type, 9000.0);  // a tie
        const std::string what = std::string(type_name(type)) + " " + name + " " + s.name();
        const Values got = reduce(t.device, type, op, s, x), plain = plain_reduce(type, op, s, x);
        if (op == LOOP_MAX || op == LOOP_ARGMAX) t.same_bits(what, got, plain);
        else t.close_as(type, what, got, reduce(t.reference, LOOP_F64, op, s, x), plain);
      }
}

KERNEL_TEST(reductions_of_nan, "reduce: the first NaN is the largest") {
  for (LoopDType type : types(t)) {
    if (type == LOOP_I32) continue;
    for (const Reduced& s : {Reduced{1, 1, 1}, Reduced{2, 1031, 1}, Reduced{2, 70, 13}})
      for (const int64_t first : {int64_t(0), s.n / 2, s.n - 1}) {
        Values x = numbers(t, type, size_t(s.outer * s.n * s.inner));
        for (int64_t o = 0; o < s.outer; ++o)
          for (int64_t i = 0; i < s.inner; ++i)
            for (int64_t j = first; j < s.n; j += 9) x[size_t((o * s.n + j) * s.inner + i)] = NAN;
        const Values largest = reduce(t.device, type, LOOP_MAX, s, x), place = reduce(t.device, type, LOOP_ARGMAX, s, x);
        const bool all_nan = std::all_of(largest.begin(), largest.end(), [](double v) { return std::isnan(v); });
        const std::string what = std::string(type_name(type)) + " " + s.name() + ", NaN from " + std::to_string(first) + " on";
        t.claim(what, all_nan && place == Values(place.size(), double(first)),
                "max " + std::to_string(largest[0]) + ", argmax " + std::to_string(place[0]));
      }
  }
}

}  // namespace
}  // namespace looplm::test::tensor_tests

// Embedding, gather and scatter, and the memory functions.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "../numeric/philox.h"
#include "harness.h"

namespace looplm::test::rows_tests {
namespace {

struct Size {
  int64_t n, d;
  std::string name() const { return std::to_string(n) + "x" + std::to_string(d); }
};
const std::vector<Size> sizes = {{1, 64}, {2, 33}, {7, 1}, {13, 257}, {64, 8}, {129, 31}, {300, 96}};
constexpr int32_t vocabulary = 37;

Values embed(const Device& d, const Size& s, const Ints& ids, const Values& table) {
  Buffer id = Buffer(d, ids), weights = act(d, table), out = act(d, size_t(s.n * s.d));
  d.expect(d.table.embed(d.ctx, d.dt, s.n, s.d, id.as<int32_t>(), weights, out), "embed");
  return out.values();
}

Values embed_backward(const Device& d, const Size& s, const Ints& ids, const Values& dout, const Values& dtable) {
  Buffer id = Buffer(d, ids), gradient = real(d, dout), sum = real(d, dtable);
  d.expect(d.table.embed_backward(d.ctx, d.dt, s.n, s.d, vocabulary, id.as<int32_t>(), gradient, sum), "embed_backward");
  return sum.values();
}

Values plain_scatter(const Plain& p, const Size& s, const Ints& index, const Values& src, Values dst) {
  for (size_t i = 0; i < src.size(); ++i) {
    double& to = dst[size_t(index[i / size_t(s.d)]) * size_t(s.d) + i % size_t(s.d)];
    to = p.real(to + src[i]);
  }
  return dst;
}

Values compared(const Device& d, const Size& s, const Values& x, const Values& y) {
  Buffer a = act(d, x), b = act(d, y);
  Values out(size_t(4 * s.n), NAN);
  d.expect(d.table.compare_rows(d.ctx, d.dt, s.n, s.d, a, b, out.data()), "compare_rows");
  return out;
}

KERNEL_TEST(compare, "compare_rows") {
  for (const Size& s : sizes) {
    const Values x = t.act_normal(size_t(s.n * s.d)), y = t.act_normal(size_t(s.n * s.d));
    Values want;
    for (size_t i = 0; i < size_t(s.n); ++i) {
      double difference = 0, first = 0, product = 0, second = 0;
      for (size_t j = i * size_t(s.d); j < (i + 1) * size_t(s.d); ++j) {
        difference += (x[j] - y[j]) * (x[j] - y[j]), first += x[j] * x[j], product += x[j] * y[j], second += y[j] * y[j];
      }
      want.insert(want.end(), {difference, first, product, second});
    }
    const Values got = compared(t.device, s, x, y);
    t.within(s.name(), got, want, 1e-12);
    const Size one = {1, s.d};
    const auto last = [&](const Values& v, size_t count) { return slice(v, v.size() - count, count); };
    t.same_bits(s.name() + ", a row alone", compared(t.device, one, last(x, size_t(s.d)), last(y, size_t(s.d))), last(got, 4));
  }
}

KERNEL_TEST(embed_rows, "embed") {
  for (const Size& s : sizes) {
    const Ints ids = t.integers(size_t(s.n), vocabulary);
    const Values table = t.act_normal(size_t(vocabulary * s.d));
    Values expected;
    for (int32_t id : ids) expected.insert(expected.end(), table.begin() + id * s.d, table.begin() + (id + 1) * s.d);
    t.same_bits(s.name(), embed(t.device, s, ids, table), expected);
  }
}

KERNEL_TEST(embed_gradient, "embed_backward") {
  std::vector<Size> all = sizes;
  all.insert(all.end(), {{2049, 8}, {5000, 4}, {33000, 1}});  // CUDA sorts 2048 ids at a time and merges 16 such runs
  for (const Size& s : all) {
    const Ints ids = t.integers(size_t(s.n), s.n < 5000 ? vocabulary / 3 : vocabulary);
    const Values dout = t.real_normal(size_t(s.n * s.d)), dtable = t.real_normal(size_t(vocabulary * s.d));
    const Values got = embed_backward(t.device, s, ids, dout, dtable), in_order = plain_scatter(t.plain(), s, ids, dout, dtable);
    t.close_real(s.name(), got, embed_backward(t.reference, s, ids, dout, dtable), in_order);
    t.same_bits(s.name() + " adds in the order of the rows", got, in_order);
  }
}

REFERENCE_TEST(embed_differences, "embed gradient by differences") {
  const Size s{7, 5};
  const Ints ids = t.integers(7, vocabulary);
  Values table = t.act_normal(size_t(vocabulary * s.d));
  const Values dout = t.real_normal(size_t(s.n * s.d));
  const Values analytic = embed_backward(t.device, s, ids, dout, Values(table.size(), 0.0));
  t.gradient("", analytic, table, [&] { return dot(dout, embed(t.device, s, ids, table)); });
}

// What CUDA can detect about an index without knowing the number of rows. Other devices are not tested.
KERNEL_TEST(bad_indices, "rows: CUDA reports an index that cannot be one") {
  const Device& d = t.device;
  if (std::string(d.table.name).find("cuda") != 0) return;
  const Ints index = {1, -7, 2}, past = {1, vocabulary, 2};
  Buffer at(d, index), outside(d, past), reals = real(d, Values(3 * 8, 1.0)), acts = act(d, Values(3 * 3 * 8, 1.0)),
                                         table = real(d, Values(size_t(vocabulary * 8), 2.0)),
                                         weights = act(d, Values(size_t(vocabulary * 8), 2.0)),
                                         more = act(d, Values(size_t(vocabulary * 8), 2.0));
  const auto reports = [&](const char* what, int32_t value, int status) {
    const int waited = d.table.synchronize(d.ctx);
    const std::string message = d.table.last_error(d.ctx);
    t.claim(what, status == 0 && waited != 0 && message.find("got index " + std::to_string(value) + ",") != std::string::npos,
            message);
    t.claim(std::string(what) + ", once", d.table.synchronize(d.ctx) == 0);
  };
  const auto* ids = at.as<int32_t>();
  reports("embed", -7, d.table.embed(d.ctx, d.dt, 3, 8, ids, weights, acts));
  reports("gather_rows", -7, d.table.gather_rows(d.ctx, d.real(), 3, 8, ids, table, reals));
  reports("scatter_add_rows", -7, d.table.scatter_add_rows(d.ctx, d.dt, 3, 8, ids, reals, table));
  reports("cache_write", -7, d.table.cache_write(d.ctx, d.dt, 3, 1, 1, 8, ids, acts, weights, more));
  reports("embed_backward", -7, d.table.embed_backward(d.ctx, d.dt, 3, 8, vocabulary, ids, reals, table));
  const auto* behind = outside.as<int32_t>();
  reports("embed_backward, behind the table", vocabulary,
          d.table.embed_backward(d.ctx, d.dt, 3, 8, vocabulary, behind, reals, table));
}

// `count` distinct indices below `below`, in random order.
Ints distinct(Test& t, size_t count, int32_t below) {
  Ints all(static_cast<size_t>(below));
  std::iota(all.begin(), all.end(), 0);
  for (size_t i = 0; i < count; ++i) std::swap(all[i], all[i + size_t(t.uniform() * double(all.size() - i))]);
  all.resize(count);
  return all;
}

KERNEL_TEST(gather, "gather_rows") {
  for (LoopDType type : {t.device.dt, t.device.real(), LOOP_I32})
    for (const Size& s : sizes) {
      const Ints index = t.integers(size_t(s.n), 50);
      Values src = t.act_normal(size_t(50 * s.d), 100);
      src = rounded(type, src);
      Buffer at(t.device, index), from(t.device, type, src), to(t.device, type, size_t(s.n * s.d));
      t.device.expect(t.device.table.gather_rows(t.device.ctx, type, s.n, s.d, at.as<int32_t>(), from, to), "gather_rows");
      Values expected;
      for (int32_t row : index) expected.insert(expected.end(), src.begin() + row * s.d, src.begin() + (row + 1) * s.d);
      t.same_bits(s.name() + " type " + std::to_string(type), to.values(), expected);
    }
}

KERNEL_TEST(scatter, "scatter_add_rows") {
  for (const Size& s : sizes) {
    const Ints index = distinct(t, size_t(s.n), int32_t(s.n) + 9);
    const Values src = t.real_normal(size_t(s.n * s.d)), dst = t.real_normal(size_t((s.n + 9) * s.d));
    Buffer at(t.device, index), from = real(t.device, src), to = real(t.device, dst);
    t.device.expect(t.device.table.scatter_add_rows(t.device.ctx, t.device.dt, s.n, s.d, at.as<int32_t>(), from, to),
                    "scatter_add_rows");
    t.same_bits(s.name(), to.values(), plain_scatter(t.plain(), s, index, src, dst));
  }
}

KERNEL_TEST(memory, "memory: allocate, copy, zero") {
  const Device& d = t.device;
  const Values values = t.real_normal(1000);
  Buffer a = real(d, values), b = real(d, values.size());
  const size_t bytes = values.size() * loop_dtype_size(d.real());
  t.claim("alignment", reinterpret_cast<uintptr_t>(static_cast<void*>(a)) % 64 == 0);
  d.expect(d.table.copy(d.ctx, b, a, bytes), "copy");
  d.expect(d.table.synchronize(d.ctx), "synchronize");
  t.same_bits("copy", b.values(), values);
  d.expect(d.table.zero(d.ctx, b, bytes), "zero");
  t.same_bits("zero", b.values(), Values(values.size(), 0.0));
  t.claim("describe", d.table.describe(d.ctx) != nullptr, d.table.describe(d.ctx));
}

REFERENCE_TEST(refusal, "the reference refuses other dtypes and says so") {
  double sum = 0;
  t.claim("status", t.device.table.sum_squares(t.device.ctx, LOOP_F32, 0, nullptr, nullptr, &sum) != 0);
  const std::string message = t.device.table.last_error(t.device.ctx);
  t.claim("message", message.find("sum_squares") != std::string::npos && message.find("float32") != std::string::npos, message);
}

REFERENCE_TEST(philox, "philox known answers") {
  const PhiloxBlock zero = philox4x32({0, 0, 0, 0}, 0);
  t.claim("counter 0, key 0", zero == PhiloxBlock{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  const PhiloxBlock ones = philox4x32({~0u, ~0u, ~0u, ~0u}, ~uint64_t(0));
  t.claim("counter and key all ones", ones == PhiloxBlock{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  const PhiloxBlock pi = philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0x299f31d0a4093822);
  t.claim("the digits of pi", pi == PhiloxBlock{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

REFERENCE_TEST(distributions, "philox uniform and normal moments") {
  const int count = 200000;
  double mean = 0, square = 0, normal_mean = 0, normal_square = 0, lag = 0, least = 1, largest = 0;
  for (int i = 0; i < count; ++i) {
    const double u = uniform(3, 5, uint32_t(i)), z = normal(3, 5, 7, uint32_t(i));
    least = std::min(least, u);
    largest = std::max(largest, u);
    mean += u / count;
    square += u * u / count;
    normal_mean += z / count;
    normal_square += z * z / count;
    lag += z * normal(3, 5, 7, uint32_t(i + 1)) / count;
  }
  t.claim("uniform in (0, 1)", least > 0 && largest < 1);
  t.claim("uniform never reaches the ends", unit_interval(0, 0) > 0 && unit_interval(~0u, ~0u) < 1);
  const double sigma = 5 / std::sqrt(double(count));  // five standard errors for a variance of 1
  t.claim("uniform mean and variance", std::abs(mean - 0.5) < 0.29 * sigma && std::abs(square - 1.0 / 3) < 0.3 * sigma);
  t.claim("normal mean and variance", std::abs(normal_mean) < sigma && std::abs(normal_square - 1) < 1.42 * sigma);
  t.claim("neighbouring normals are uncorrelated", std::abs(lag) < sigma);
  t.claim("streams differ", uniform(3, 5, 0, 0) != uniform(3, 5, 0, 1));
}

}  // namespace
}  // namespace looplm::test::rows_tests

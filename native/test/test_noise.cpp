// Latent noise, initial values of parameters, and the teacher's moving average.
#include <bit>
#include <cmath>
#include <cstring>

#include "../numeric/philox.h"
#include "harness.h"

namespace looplm::test::noise_tests {
namespace {

// The noise of one element as philox.h defines it.
double noise_of(int32_t stream, int32_t position, size_t k) {
  return latent_noise(99, uint32_t(stream), uint32_t(position), 2, uint32_t(k / 4))[k % 4];
}

Values disturbed(const Device& d, const Values& x, const Ints& streams, const Ints& positions, double sigma) {
  Buffer states = act(d, x), s(d, streams), p(d, positions);
  const int64_t n = int64_t(streams.size());
  d.expect(d.table.add_noise(d.ctx, d.dt, n, int64_t(x.size()) / n, sigma, 99, 2, s.as<int32_t>(), p.as<int32_t>(), states),
           "add_noise");
  return states.values();
}

KERNEL_TEST(noise, "add_noise") {
  for (const auto& [n, d] : {std::pair<size_t, size_t>{1, 1}, {3, 7}, {5, 64}, {9, 130}, {40, 300}}) {
    const Ints streams = t.integers(n, 1 << 20), positions = t.integers(n, 512);
    const Values x = t.act_normal(n * d);
    Values want, plain;
    for (size_t i = 0; i < n * d; ++i) {
      want.push_back(x[i] + 0.1 * noise_of(streams[i / d], positions[i / d], i % d));
      plain.push_back(t.plain().act(x[i] + t.plain().act(0.1 * noise_of(streams[i / d], positions[i / d], i % d))));
    }
    const Values got = disturbed(t.device, x, streams, positions, 0.1);
    t.close(std::to_string(n) + " × " + std::to_string(d), got, want, plain);
    const Values alone = disturbed(t.device, Values(x.end() - int64_t(d), x.end()), {streams.back()}, {positions.back()}, 0.1);
    t.same_bits("a row alone", alone, Values(got.end() - int64_t(d), got.end()));
  }
}

REFERENCE_TEST(moments, "latent noise is standard normal") {
  double mean = 0, square = 0, fourth = 0;
  const size_t count = 200000;
  for (size_t i = 0; i < count; ++i) {
    const double x = noise_of(int32_t(i / 1000), int32_t(i % 7), i % 1000);
    mean += x / double(count);
    square += x * x / double(count);
    fourth += x * x * x * x / double(count);
  }
  t.claim("mean 0", std::abs(mean) < 0.01, std::to_string(mean));
  t.claim("variance 1", std::abs(square - 1) < 0.02, std::to_string(square));
  t.claim("fourth moment 3", std::abs(fourth - 3) < 0.1, std::to_string(fourth));
}

// `count` values that the device draws, read as act, followed by 64 values that must not change.
Values drawn(const Device& d, bool truncated, uint32_t first, size_t count, double deviation) {
  Values before(count + 64, 7.0);
  const size_t size = loop_dtype_size(d.dt);
  std::vector<uint8_t> raw(before.size() * size);
  for (size_t i = 0; i < before.size(); ++i) {
    const float seven = 7;
    std::memcpy(&raw[i * size], reinterpret_cast<const uint8_t*>(&seven) + (size == 2 ? 2 : 0), size);
  }
  d.expect(d.table.draw_normals(d.ctx, d.dt, truncated, 77, 5, first, int64_t(count), deviation, raw.data()), "draw_normals");
  for (size_t i = 0; i < before.size(); ++i) {
    uint32_t bits = 0;
    std::memcpy(reinterpret_cast<uint8_t*>(&bits) + (size == 2 ? 2 : 0), &raw[i * size], size);
    before[i] = double(std::bit_cast<float>(bits));
  }
  return before;
}

KERNEL_TEST(first_values, "draw_normals") {
  if (!t.device.table.draw_normals) return;
  struct Case {
    uint32_t first;
    size_t count;
    double deviation;
  };
  for (const bool truncated : {false, true})
    for (const Case& c : {Case{0, 1, 1},
                          {1, 1, 0.02},
                          {3, 2, 1},
                          {0, 15, 1},
                          {1, 70, -0.5},
                          {16382, 16390, 0.02},
                          {7, 40000, 1e-3},
                          {0xfffffff1u, 40, 1},
                          {0, 33, 0},
                          {2, 100000, 0.0173}}) {
      Values want;
      for (size_t i = 0; i < c.count; ++i) {
        const uint32_t index = c.first + uint32_t(i);
        const double x = truncated ? truncated_normal(77, 5, 0, index) : normal(77, 5, 0, index);
        want.push_back(rounded(t.device.dt, double(float(c.deviation * x))));
      }
      want.resize(c.count + 64, 7.0);
      t.same_bits(std::string(truncated ? "truncated, " : "") + std::to_string(c.count) + " from " + std::to_string(c.first),
                  drawn(t.device, truncated, c.first, c.count, c.deviation), want);
    }
}

struct Averaged {
  Values average, parameter;
};
Averaged averaged(const Device& d, const Values& x, const Values& old, double weight) {
  Buffer now = act(d, x), average = real(d, old), parameter = act(d, x.size());
  d.expect(d.table.moving_average(d.ctx, d.dt, int64_t(x.size()), weight, now, average, parameter), "moving_average");
  return {average.values(), parameter.values()};
}

KERNEL_TEST(average, "moving_average") {
  for (size_t count : {1, 7, 64, 20001}) {
    const Values x = t.act_normal(count), old = t.real_normal(count);
    Values plain;
    for (size_t i = 0; i < count; ++i) plain.push_back(old[i] + 0.005 * (x[i] - old[i]));
    const Averaged got = averaged(t.device, x, old, 0.005), truth = averaged(t.reference, x, old, 0.005);
    t.close_real(std::to_string(count) + " elements", got.average, truth.average, plain);
    t.same_bits(std::to_string(count) + " elements, the parameter is the rounded average", got.parameter,
                rounded(t.device.dt, got.average));
  }
}

}  // namespace
}  // namespace looplm::test::noise_tests

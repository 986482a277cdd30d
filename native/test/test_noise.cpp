// Latent noise and the teacher's moving average.
#include <cmath>

#include "../numeric/philox.h"
#include "harness.h"

namespace looplm::test {
namespace {

// One row's draw as philox.h defines it.
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
}  // namespace looplm::test

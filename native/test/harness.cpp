#include "harness.h"

#include <bit>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "../numeric/philox.h"

namespace looplm::test {
namespace {

constexpr size_t canary_bytes = 64;
constexpr unsigned char canary = 0xA5;

// Rounds to `digits` significant bits, but at least to the smallest subnormal 2^(least - digits + 1).
double to_digits(double x, int digits, int least, double largest) {
  if (x == 0 || !std::isfinite(x)) return x;
  const int exponent = std::max(std::ilogb(x), least) - (digits - 1);
  const double y = std::ldexp(std::nearbyint(std::ldexp(x, -exponent)), exponent);
  return std::abs(y) > largest ? std::copysign(INFINITY, x) : y;
}

uint16_t half_bits(double x) {  // x must be a float16 value
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  x = std::abs(x);
  if (std::isnan(x)) return 0x7E00;
  if (std::isinf(x)) return sign | 0x7C00;
  int exponent = 0;
  const double fraction = std::frexp(x, &exponent);  // x = fraction · 2^exponent, 0.5 <= fraction < 1
  if (x < 0x1p-14) return sign | uint16_t(std::ldexp(x, 24));
  return sign | uint16_t((exponent + 14) << 10) | uint16_t(std::ldexp(fraction - 0.5, 11));
}

double half_value(uint16_t bits) {
  const double sign = bits & 0x8000 ? -1 : 1;
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  return exponent == 0 ? sign * fraction * 0x1p-24 : sign * (1 + fraction / 1024.0) * std::pow(2.0, exponent - 15);
}

void encode(LoopDType type, double x, unsigned char* out) {
  const double y = rounded(type, x);
  const float single = float(y);
  const int32_t integer = type == LOOP_I32 ? int32_t(y) : 0;
  const uint16_t half = type == LOOP_F16 ? half_bits(y) : uint16_t(std::bit_cast<uint32_t>(single) >> 16);
  switch (type) {
    case LOOP_F64:
      std::memcpy(out, &y, 8);
      break;
    case LOOP_F32:
      std::memcpy(out, &single, 4);
      break;
    case LOOP_I32:
      std::memcpy(out, &integer, 4);
      break;
    case LOOP_BF16:
    case LOOP_F16:
      std::memcpy(out, &half, 2);
      break;
  }
}

double decode(LoopDType type, const unsigned char* in) {
  double wide;
  float single;
  int32_t integer;
  uint16_t half;
  switch (type) {
    case LOOP_F64:
      return std::memcpy(&wide, in, 8), wide;
    case LOOP_F32:
      return std::memcpy(&single, in, 4), double(single);
    case LOOP_I32:
      return std::memcpy(&integer, in, 4), double(integer);
    case LOOP_BF16:
      return std::memcpy(&half, in, 2), double(std::bit_cast<float>(uint32_t(half) << 16));
    case LOOP_F16:
      return std::memcpy(&half, in, 2), half_value(half);
  }
  return NAN;
}

std::string number(double x) {
  char text[32];
  std::snprintf(text, sizeof text, "%.2g", x);
  return text;
}

}  // namespace

double rounded_seldom(LoopDType type, double x) {
  if (type == LOOP_F16) return to_digits(float(x), 11, -14, 65504);
  return std::isnan(x) ? 0 : std::clamp(std::trunc(x), -0x1p31, 0x1p31 - 1) + 0.0;  // no negative zero
}

Values rounded(LoopDType type, Values x) {
  for (double& value : x) value = rounded(type, value);
  return x;
}

Device::Device(const LoopBackend* table, LoopDType dt, int threads) : table(*table), dt(dt), ctx(table->open(0, threads)) {
  if (table->abi != LOOPLM_BACKEND_ABI) throw std::runtime_error("the backend has another ABI version");
  if (!ctx) throw std::runtime_error("the backend did not open");
}

Device::~Device() { table.close(ctx); }

void Device::expect(int status, const char* operation) const {
  if (status != 0) throw std::runtime_error(std::string(operation) + " failed: " + table.last_error(ctx));
}

Buffer::Buffer(const Device& device, LoopDType type, size_t count)
    : device_(device), type_(type), bytes_(count * loop_dtype_size(type)) {
  fill(std::vector<unsigned char>(bytes_, 0xFF));  // NaN in every floating-point dtype
}

Buffer::Buffer(const Device& device, LoopDType type, const Values& values)
    : device_(device), type_(type), bytes_(values.size() * loop_dtype_size(type)) {
  std::vector<unsigned char> bytes;
  bytes.reserve(bytes_ + canary_bytes);
  bytes.resize(bytes_);
  for (size_t i = 0; i < values.size(); ++i) encode(type, values[i], bytes.data() + i * loop_dtype_size(type));
  fill(std::move(bytes));
}

Buffer::Buffer(const Device& device, const Ints& values) : Buffer(device, values.data(), values.size() * 4) {}

Buffer::Buffer(const Device& device, const void* host, size_t bytes) : device_(device), type_(LOOP_I32), bytes_(bytes) {
  const auto* first = static_cast<const unsigned char*>(host);
  fill({first, first + bytes});
}

Buffer::~Buffer() {
  if (data_) device_.table.release(device_.ctx, data_);
}

void Buffer::fill(std::vector<unsigned char> bytes) {
  bytes.resize(bytes_ + canary_bytes, canary);
  data_ = device_.table.allocate(device_.ctx, bytes.size());
  if (!data_) throw std::runtime_error("allocate returned NULL");
  device_.expect(device_.table.copy_in(device_.ctx, data_, bytes.data(), bytes.size()), "copy_in");
}

Values Buffer::values_as(LoopDType type) const {
  std::vector<unsigned char> bytes(bytes_ + canary_bytes);
  device_.expect(device_.table.copy_out(device_.ctx, bytes.data(), data_, bytes.size()), "copy_out");
  for (size_t i = bytes_; i < bytes.size(); ++i)
    if (bytes[i] != canary) throw std::runtime_error("something was written behind the end of an array");
  const size_t size = loop_dtype_size(type);
  Values values(bytes_ / size);
  for (size_t i = 0; i < values.size(); ++i) values[i] = decode(type, bytes.data() + i * size);
  return values;
}

// NaN and infinities are equal if both arrays have them at the same place; otherwise the error is infinite.
double relative_error(const Values& got, const Values& truth) {
  if (got.size() != truth.size()) return INFINITY;
  double difference = 0, norm = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    if (got[i] == truth[i] || (std::isnan(got[i]) && std::isnan(truth[i]))) {
      if (std::isfinite(truth[i])) norm += truth[i] * truth[i];
      continue;
    }
    if (!std::isfinite(got[i]) || !std::isfinite(truth[i])) return INFINITY;
    difference += (got[i] - truth[i]) * (got[i] - truth[i]);
    norm += truth[i] * truth[i];
  }
  return difference == 0 ? 0 : norm == 0 ? INFINITY : std::sqrt(difference / norm);
}

Values Test::normals(LoopDType type, size_t count, double scale) {
  static std::vector<Values> drawn;  // by draw: every test begins with the same ones
  const uint32_t draw = draws_++;
  if (draw >= drawn.size()) drawn.resize(draw + 1);
  Values& all = drawn[draw];
  const size_t had = all.size();
  if (had < count) all.resize(count + count % 2);
  for (size_t i = had; i < count; i += 2) {
    const auto [first, second] = normal_pair(0, draw, 0, uint32_t(i / 2));
    all[i] = first, all[i + 1] = second;
  }
  Values v(count);
  for (size_t i = 0; i < count; i++) v[i] = rounded(type, scale * all[i]);
  return v;
}

double Test::uniform() { return looplm::uniform(0, draws_++, 0); }

Ints Test::integers(size_t count, int32_t below) {
  Ints v(count);
  for (int32_t& x : v) x = int32_t(uniform() * below);
  return v;
}

void Test::line(const std::string& what, bool ok, const std::string& detail) {
  ++cases;
  if (!ok) ++failures;
  const std::string name = what.empty() ? name_ : name_ + " " + what;
  if (ok) std::printf("ok %s (%s)\n", name.c_str(), detail.c_str());
  else std::printf("not ok %s: %s\n", name.c_str(), detail.c_str());
  std::fflush(stdout);
}

void Test::within(const std::string& what, const Values& got, const Values& truth, double tolerance) {
  const double error = relative_error(got, truth);
  const bool holds = std::isfinite(tolerance) && error <= tolerance;  // a plain evaluation that is not finite allows nothing
  const std::string detail = "error " + number(error);
  line(what, holds, holds ? detail : detail + ", allowed " + number(tolerance));
}

void Test::close_as(LoopDType type, const std::string& what, const Values& got, const Values& truth, const Values& plain) {
  switch (type) {
    case LOOP_F64:
      return within(what, got, plain, 1e-12);
    case LOOP_F32:
      return within(what, got, truth, 1e-5);
    case LOOP_I32:
      return within(what, got, plain, 0);
    case LOOP_BF16:
    case LOOP_F16:
      if (plain.size() != truth.size()) return claim(what, false, "there is no plain evaluation to compare with");
      return within(what, got, truth, 2 * relative_error(plain, truth));
  }
}

void Test::close_real(const std::string& what, const Values& got, const Values& truth, const Values& plain, double tolerance) {
  if (device.dt == LOOP_F64) return within(what, got, plain, 1e-12);
  within(what, got, truth, tolerance);
}

void Test::same_bits(const std::string& what, const Values& a, const Values& b) {
  size_t different = a.size() == b.size() ? 0 : std::max(a.size(), b.size());
  for (size_t i = 0; i < a.size() && different < b.size(); ++i)
    different += std::bit_cast<uint64_t>(a[i]) != std::bit_cast<uint64_t>(b[i]) || std::isnan(a[i]);
  line(what, different == 0,
       different == 0 ? "same bits"
                      : std::to_string(different) + " of " + std::to_string(a.size()) + " numbers differ or are NaN");
}

void Test::claim(const std::string& what, bool holds, const std::string& detail) { line(what, holds, detail); }

void Test::gradient(const std::string& what, const Values& analytic, Values& x, const std::function<double()>& loss,
                    double step) {
  Values numeric;
  for (double& value : x) {
    const double at = value;
    value = at + step;
    const double above = loss();
    value = at - step;
    const double below = loss();
    value = at;
    numeric.push_back((above - below) / (2 * step));
  }
  within(what, analytic, numeric, 1e-6);
}

std::vector<Registration>& registry() {
  static std::vector<Registration> tests;
  return tests;
}

}  // namespace looplm::test

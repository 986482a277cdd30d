// bfloat16 and binary16.
#include <cmath>
#include <functional>
#include <limits>
#include <random>

#include "../../engine/safetensors.h"
#include "../../numeric/half.h"
#include "claims.h"

namespace looplm::test {
namespace {

// The bits of the value nearest to x; ties go to even bits. value(b): the positive value of bits b, ascending; largest: bits
// of the largest finite value.
uint16_t nearest(const std::function<double(uint16_t)>& value, uint16_t largest, double x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const double magnitude = std::abs(x);
  uint16_t low = 0, high = uint16_t(largest + 1);  // value(high): the power of two after the largest value, for infinity
  while (high - low > 1) {
    const uint16_t middle = uint16_t((low + high) / 2);
    (value(middle) <= magnitude ? low : high) = middle;
  }
  const double below = magnitude - value(low), above = value(high) - magnitude;
  if (magnitude >= value(high)) return sign | high;
  return sign | (below < above || (below == above && low % 2 == 0) ? low : high);
}

ENGINE_TEST(test_halves, "half: conversions") {
  // From the definition of the formats: sign, exponent, fraction.
  const auto f16 = [](uint16_t b) {
    const int exponent = b >> 10 & 31, fraction = b & 1023;
    return exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
  };
  const auto bf16 = [](uint16_t b) {
    const int exponent = b >> 7 & 255, fraction = b & 127;
    return exponent ? std::ldexp(128 + fraction, exponent - 134) : std::ldexp(fraction, -133);
  };
  bool f16_values = true, f16_trip = true, bf16_values = true, bf16_trip = true;
  for (uint32_t i = 0; i < 65536; i++) {
    const uint16_t bits = uint16_t(i), magnitude = bits & 0x7FFF;
    const double sign = bits >> 15 ? -1 : 1;
    const float a = f16_to_float(bits), b = bf16_to_float(bits);
    if (magnitude < 0x7C00) f16_values &= double(a) == sign * f16(magnitude) && std::signbit(a) == (bits >> 15);
    if (magnitude == 0x7C00) f16_values &= double(a) == sign * INFINITY;
    if (magnitude > 0x7C00) f16_values &= std::isnan(a);
    f16_trip &= magnitude > 0x7C00 ? (float_to_f16(a) & 0x7FFF) > 0x7C00 : float_to_f16(a) == bits;
    if (magnitude < 0x7F80) bf16_values &= double(b) == sign * bf16(magnitude) && std::signbit(b) == (bits >> 15);
    if (magnitude == 0x7F80) bf16_values &= double(b) == sign * INFINITY;
    if (magnitude > 0x7F80) bf16_values &= std::isnan(b);
    bf16_trip &= magnitude > 0x7F80 ? (float_to_bf16(b) & 0x7FFF) > 0x7F80 : float_to_bf16(b) == bits;
  }
  claim("F16: every bit pattern has its value", f16_values);
  claim("F16: every bit pattern survives float32", f16_trip);
  claim("BF16: every bit pattern has its value", bf16_values);
  claim("BF16: every bit pattern survives float32", bf16_trip);

  // Float32 values that are hard to round (the middle of every two neighbours, and one step to each side), and random bits.
  bool f16_nearest = true, bf16_nearest = true;
  const auto check = [&](float x) {
    f16_nearest &= float_to_f16(x) == nearest(f16, 0x7BFF, double(x));
    bf16_nearest &= float_to_bf16(x) == nearest(bf16, 0x7F7F, double(x));
  };
  for (uint16_t b = 0; b < 0x7C00; b++)
    for (const float middle : {float((f16(b) + f16(uint16_t(b + 1))) / 2), -float((f16(b) + f16(uint16_t(b + 1))) / 2)})
      for (const float x : {middle, std::nextafter(middle, INFINITY), std::nextafter(middle, -INFINITY)}) check(x);
  for (uint16_t b = 0; b < 0x7F7F; b++)
    for (const float middle : {float((bf16(b) + bf16(uint16_t(b + 1))) / 2), -float((bf16(b) + bf16(uint16_t(b + 1))) / 2)})
      for (const float x : {middle, std::nextafter(middle, INFINITY), std::nextafter(middle, -INFINITY)}) check(x);
  std::mt19937 random(7);
  for (int i = 0; i < 200'000; i++) {
    const float x = std::bit_cast<float>(uint32_t(random()));
    if (std::isfinite(x)) check(x);
  }
  check(std::numeric_limits<float>::max());
  check(65519.996f);
  check(65520.0f);
  claim("F16: float32 rounds to the nearest, ties to even", f16_nearest);
  claim("BF16: float32 rounds to the nearest, ties to even", bf16_nearest);
  const float nan = std::bit_cast<float>(0x7F800001u);  // its payload is in the bits that are cut off
  claim("a NaN stays a NaN", float_to_bf16(nan) == 0x7FC0 && float_to_f16(nan) == 0x7E00 && float_to_f16(-INFINITY) == 0xFC00);
}

ENGINE_TEST(test_first_not_finite, "half: the first value that is not finite") {
  bool found = true;
  for (const size_t at : {size_t(0), size_t(4095), size_t(4096), size_t(9999)}) {
    std::vector<float> f32(10000, 1.0f);
    std::vector<uint16_t> bf16(10000, 0x7F7F), f16(10000, 0x7BFF);
    std::vector<double> f64(10000, -1e308);
    found &= first_not_finite(LOOP_F32, f32.data(), 10000) == 10000 && first_not_finite(LOOP_BF16, bf16.data(), 10000) == 10000 &&
             first_not_finite(LOOP_F16, f16.data(), 10000) == 10000 && first_not_finite(LOOP_F64, f64.data(), 10000) == 10000;
    f32[at] = -INFINITY;
    bf16[at] = 0x7F80;
    f16[at] = 0xFC01;
    f64[at] = NAN;
    found &= first_not_finite(LOOP_F32, f32.data(), 10000) == at && first_not_finite(LOOP_BF16, bf16.data(), 10000) == at &&
             first_not_finite(LOOP_F16, f16.data(), 10000) == at && first_not_finite(LOOP_F64, f64.data(), 10000) == at;
  }
  claim("the first NaN or infinity is found, wherever it is", found);
}

}  // namespace
}  // namespace looplm::test

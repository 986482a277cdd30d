// One element of any dtype, read and written as a double. Rounds to nearest, ties to even. 16-bit types are rounded through
// float32, as PyTorch does. Conversion to int32 truncates and saturates; NaN becomes 0.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>

#include "../backend.h"

namespace looplm::reference {

inline double bfloat16_value(uint16_t bits) { return std::bit_cast<float>(uint32_t(bits) << 16); }

inline uint16_t bfloat16_bits(double value) {
  const uint32_t bits = std::bit_cast<uint32_t>(float(value));
  if (std::isnan(value)) return uint16_t(bits >> 16 | 0x40);
  return uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

inline double float16_value(uint16_t bits) {
  const int sign = bits >> 15 ? -1 : 1, exponent = bits >> 10 & 31, fraction = bits & 1023;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  return sign * (exponent ? std::ldexp(1024.0 + fraction, exponent - 25) : std::ldexp(double(fraction), -24));
}

inline uint16_t float16_bits(double value) {
  const float rounded = float(value);
  const uint16_t sign = std::signbit(rounded) ? 0x8000 : 0;
  const double magnitude = std::abs(double(rounded));
  if (std::isnan(rounded)) return sign | 0x7E00;
  if (magnitude >= 65520) return sign | 0x7C00;
  if (magnitude < 0x1p-14) return sign | uint16_t(std::nearbyint(magnitude * 0x1p24));  // subnormal: a multiple of 2^-24
  const int exponent = std::ilogb(magnitude);
  return sign | uint16_t(((exponent + 14) << 10) + int(std::nearbyint(std::ldexp(magnitude, 10 - exponent))));
}

inline double load(LoopDType type, const void* p, int64_t i) {
  switch (type) {
    case LOOP_F32:
      return static_cast<const float*>(p)[i];
    case LOOP_BF16:
      return bfloat16_value(static_cast<const uint16_t*>(p)[i]);
    case LOOP_F64:
      return static_cast<const double*>(p)[i];
    case LOOP_I32:
      return static_cast<const int32_t*>(p)[i];
    case LOOP_F16:
      return float16_value(static_cast<const uint16_t*>(p)[i]);
  }
  return NAN;
}

inline void store(LoopDType type, void* p, int64_t i, double value) {
  switch (type) {
    case LOOP_F32:
      static_cast<float*>(p)[i] = float(value);
      break;
    case LOOP_BF16:
      static_cast<uint16_t*>(p)[i] = bfloat16_bits(value);
      break;
    case LOOP_F64:
      static_cast<double*>(p)[i] = value;
      break;
    case LOOP_I32:
      static_cast<int32_t*>(p)[i] = std::isnan(value)  ? 0
                                    : value >= 0x1p31  ? INT32_MAX
                                    : value <= -0x1p31 ? INT32_MIN
                                                       : int32_t(value);
      break;
    case LOOP_F16:
      static_cast<uint16_t*>(p)[i] = float16_bits(value);
      break;
  }
}

}  // namespace looplm::reference

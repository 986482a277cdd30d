// Conversions between float32 and the bits of bfloat16 or IEEE binary16. They round to nearest, ties to even; NaN stays NaN.
// There are no data-dependent branches, so loops vectorize. Nothing relies on float32 subnormals, which a thread may have
// switched off.
#pragma once
#include <bit>
#include <cstdint>

namespace looplm {

inline float bf16_to_float(uint16_t bits) { return std::bit_cast<float>(uint32_t(bits) << 16); }

inline uint16_t float_to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = bits + 0x7FFF + (bits >> 16 & 1);
  const bool nan = (bits & 0x7FFFFFFF) > 0x7F800000;
  return uint16_t((nan ? bits | 0x400000 : rounded) >> 16);  // the quiet bit keeps a NaN whose remaining payload bits are all
                                                             // cut off
}

// binary16: 5 exponent bits with bias 15, and 10 fraction bits. float32 has bias 127 and 13 more fraction bits.
inline float f16_to_float(uint16_t bits) {
  const uint32_t sign = uint32_t(bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
  const uint32_t normal = (exponent + 112) << 23 | fraction << 13, special = 0x7F800000 | fraction << 13;
  const uint32_t subnormal = std::bit_cast<uint32_t>(float(fraction) * 0x1p-24f);
  return std::bit_cast<float>(sign | (exponent == 0 ? subnormal : exponent == 31 ? special : normal));
}

inline uint16_t float_to_f16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7FFFFFFF;
  const uint32_t normal = (magnitude - (112u << 23) + 0xFFF + (magnitude >> 13 & 1)) >> 13;
  // Near 0.5, float32 has steps of 2^-24, which is the step of binary16 subnormals. So the addition does the rounding.
  const uint32_t subnormal = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - std::bit_cast<uint32_t>(0.5f);
  const uint32_t finite = magnitude < 0x38800000 /* 2^-14 */ ? subnormal : normal;
  const uint32_t special = magnitude > 0x7F800000 ? 0x7E00 : 0x7C00;
  return uint16_t(sign | (magnitude >= 0x477FF000 /* 65520, where infinity is nearer */ ? special : finite));
}

}  // namespace looplm

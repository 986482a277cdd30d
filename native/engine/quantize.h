// Weights in 8 or 4 bits: one scale for every `group` consecutive elements of a row, rounded to nearest. LoopQuantized has
// the layout.
//   8 bits  scale = max |w| / 127, codes -127 … 127
//   4 bits  scale = w / -8 for the w of largest magnitude, so that code -8 represents it exactly; codes -8 … 7
//   4 bits, asymmetric  w ≈ scale · code + middle, both bfloat16, chosen for the smallest square error; codes -8 … 7
#pragma once
#include <cstdint>
#include <vector>

#include "../backend.h"

namespace looplm {

// `values` may be unaligned.
void to_floats(LoopDType dt, const void* values, size_t count, float* out);

// How weights are quantized.
struct CodeFormat {
  int bits, group;
  bool asymmetric = false;
};

// Quantizes one row of `in` values. codes: [in · bits / 8] bytes; scales: [in / group].
void quantize_row(const CodeFormat& format, const float* row, int64_t in, uint8_t* codes, float* scales);

// Values [rows, in] from codes [rows, in · bits / 8] and scales [rows, in / group].
std::vector<double> dequantize_rows(const CodeFormat& format, int64_t rows, int64_t in, const uint8_t* codes,
                                    const float* scales);

}  // namespace looplm

// Weights in 8 or 4 bits: a scale for every `group` neighbours of a row, rounding to nearest (the layout is LoopQuantized's).
//   8 bits  scale = max |w| / 127, codes -127 … 127
//   4 bits  scale = w / -8 for the w of the largest |w|, which the code -8 then gives exactly; codes -8 … 7
//   4 bits, asymmetric  scale · code + middle, both bfloat16: of the grids tried the one with the least square error; codes -8 …
//   7
#pragma once
#include <cstdint>
#include <vector>

#include "../backend.h"

namespace looplm {

// values need not be aligned.
void to_floats(LoopDType dt, const void* values, size_t count, float* out);

// How weights are rounded.
struct CodeFormat {
  int bits, group;
  bool asymmetric = false;
};

// One row of `in` values. codes [in · bits / 8], scales [in / group].
void quantize_row(const CodeFormat& format, const float* row, int64_t in, uint8_t* codes, float* scales);

// [rows, in] from codes [rows, in · bits / 8] and scales [rows, in / group].
std::vector<double> dequantize_rows(const CodeFormat& format, int64_t rows, int64_t in, const uint8_t* codes,
                                    const float* scales);

}  // namespace looplm

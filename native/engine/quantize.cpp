#include "quantize.h"

#include <algorithm>
#include <cmath>

#include "half.h"

namespace looplm {

void to_floats(LoopDType dt, const void* values, size_t count, float* out) {
  for (size_t i = 0; i < count; i++) {
    if (dt == LOOP_F64) out[i] = float(static_cast<const double*>(values)[i]);
    else if (dt == LOOP_F32) out[i] = static_cast<const float*>(values)[i];
    else out[i] = bf16_to_float(static_cast<const uint16_t*>(values)[i]);
  }
}

void quantize_row(int bits, int group, const float* row, int64_t in, uint8_t* codes, float* scales, int64_t stride) {
  const int low = bits == 8 ? -127 : -8, high = bits == 8 ? 127 : 7;
  for (int64_t first = 0; first < in; first += group) {
    float largest = 0;
    for (int64_t l = first; l < first + group; l++)
      if (std::fabs(row[l]) > std::fabs(largest)) largest = row[l];
    const float scale = bits == 8 ? std::fabs(largest) / 127 : largest / -8, inverse = scale == 0 ? 0 : 1 / scale;
    scales[first / group * stride] = scale;
    for (int64_t l = first; l < first + group; l++) {
      const int code = std::clamp(int(std::lrint(row[l] * inverse)), low, high);
      if (bits == 8) codes[l] = uint8_t(int8_t(code));
      else if (l % 2 == 0) codes[l / 2] = uint8_t(code + 8);
      else codes[l / 2] = uint8_t(codes[l / 2] | (code + 8) << 4);
    }
  }
}

std::vector<double> dequantize_rows(int bits, int group, int64_t rows, int64_t in, const uint8_t* codes, const float* scales,
                                    int64_t stride) {
  std::vector<double> out;
  out.reserve(size_t(rows * in));
  for (int64_t i = 0; i < rows; i++)
    for (int64_t l = 0; l < in; l++) {
      const int pair = codes[(i * in + l) * bits / 8];
      const int code = bits == 8 ? int8_t(pair) : (l % 2 ? pair >> 4 : pair & 15) - 8;
      out.push_back(code * double(scales[l / group * stride + i]));
    }
  return out;
}

}  // namespace looplm
